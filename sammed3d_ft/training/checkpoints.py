"""Training checkpoints: complete, written atomically, without pickle.

``step_N/`` holds ``model.safetensors`` (trainable parameters), ``optimizer.safetensors`` and ``state.json``.
It is written under a hidden name and then renamed, so a folder called ``step_N`` is always complete.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sammed3d_ft.errors import InputError
from sammed3d_ft.files import INCOMPLETE, write_whole
from sammed3d_ft.model.weights import save_safetensors


@dataclass(frozen=True)
class LoadedCheckpoint:
    """Content of one checkpoint."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Write ``folder/step_N``; if it exists (a run stopped right after a checkpoint), keep it.

    Raises:
        InputError: the checkpoint cannot be written; earlier checkpoints are unchanged.
    """
    final = folder / f"step_{step}"
    new = folder / f".step_{step}{INCOMPLETE}"
    if final.is_dir():
        return final
    shutil.rmtree(new, ignore_errors=True)
    try:
        save_safetensors(new / "model.safetensors", model, {})
        save_safetensors(new / "optimizer.safetensors", optimizer, {})
        write_whole(new / "state.json", json.dumps(dict(state), indent=1, sort_keys=True))
        new.rename(final)
    except (InputError, OSError) as error:
        earlier = list_checkpoints(folder)
        kept = f"the last complete checkpoint is {earlier[-1]}" if earlier else "there is no earlier one"
        raise InputError(
            f"cannot save the checkpoint at step {step}: {error}; {kept}. Free disk space and re-run the same command"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return final


def prune_checkpoints(folder: Path, bests: Path, keep: int) -> None:
    """Remove all but the newest ``keep`` checkpoints, and the best models that none of these refers to."""
    checkpoints = list_checkpoints(folder)
    named = {read_state(path)["best"]["step"] for path in checkpoints[-keep:]}
    forgotten = [path for path in list_checkpoints(bests) if int(path.name[5:]) not in named]
    for old in (*checkpoints[:-keep], *forgotten):
        hidden = old.with_name(f".{old.name}{INCOMPLETE}")  # so that a partly removed checkpoint is never visible
        shutil.rmtree(hidden, ignore_errors=True)
        old.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step_*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def read_state(path: Path) -> dict[str, Any]:
    """Read the progress of the run from a checkpoint's ``state.json``; InputError if it is damaged."""
    with _readable(path):
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError("state.json is not a JSON object")
        return state


def read_checkpoint(path: Path) -> LoadedCheckpoint:
    """Read one checkpoint. Only JSON and safetensors are read, so no code in the files can run.

    Raises:
        InputError: the checkpoint is damaged, or the folder is something else.
    """
    with _readable(path):
        model, optimizer = (load_file(path / f"{name}.safetensors") for name in ("model", "optimizer"))
    return LoadedCheckpoint(path, model, optimizer, read_state(path))


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, SafetensorError) as error:  # UnicodeDecodeError and JSON's are ValueErrors
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: the checkpoint is unreadable ({reason}): remove this folder to resume from the previous one"
        ) from error
