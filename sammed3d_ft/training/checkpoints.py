"""Checkpoints: complete, atomic, and never a pickle.

``step_N/`` holds ``model.safetensors`` (parameters that train), ``optimizer.safetensors`` and ``state.json``.
It is written under a hidden name and then renamed, so a folder with that name is whole.
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

from prompts.errors import InputError
from prompts.whole_files import INCOMPLETE, write_whole
from sammed3d_ft.model.weights import save_safetensors


@dataclass(frozen=True)
class LoadedCheckpoint:
    """One checkpoint's content."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, model: Mapping[str, Tensor], optimizer: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Writes ``folder/step_N``, unless that step is there already: a run that stops right after a checkpoint.

    Raises:
        InputError: it cannot be written; earlier checkpoints are as they were.
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
        kept = f"the last whole checkpoint is {earlier[-1]}" if earlier else "there is no earlier one"
        raise InputError(
            f"no checkpoint at step {step}: {error}; {kept}. Make room and run the same command again"
        ) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)
    return final


def prune_checkpoints(folder: Path, bests: Path, keep: int) -> None:
    """Removes all but the newest ``keep`` checkpoints, and of the best models all that none of these names."""
    checkpoints = list_checkpoints(folder)
    named = {read_state(path)["best"]["step"] for path in checkpoints[-keep:]}
    forgotten = [path for path in list_checkpoints(bests) if int(path.name[5:]) not in named]
    for old in (*checkpoints[:-keep], *forgotten):
        hidden = old.with_name(f".{old.name}{INCOMPLETE}")  # so that none is ever seen half removed
        shutil.rmtree(hidden, ignore_errors=True)
        old.rename(hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step_*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def read_state(path: Path) -> dict[str, Any]:
    """A checkpoint's ``state.json``: where the run was; `InputError` if it is damaged."""
    with _readable(path):
        state: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError("state.json holds no object")
        return state


def read_checkpoint(path: Path) -> LoadedCheckpoint:
    """Reads one checkpoint. JSON and safetensors only: no code runs, whatever the files hold.

    Raises:
        InputError: it is damaged, or something else lies in its place.
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
            f"{path}: no readable checkpoint ({reason}): remove this folder to go on from the one before it"
        ) from error
