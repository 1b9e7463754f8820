"""Checkpoints: complete, atomic, and never a pickle.

``checkpoints/step_N/`` holds ``model.safetensors`` (parameters that train), ``optimizer.safetensors`` and
``state.json``. It is written to a temporary folder and renamed, so a folder with that name is whole.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class LoadedCheckpoint:
    """One checkpoint's content."""

    path: Path
    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    state: Mapping[str, Any],
    keep: int,
) -> Path:
    """Writes ``folder/step_N`` and removes all but the newest ``keep``."""
    final = folder / f"step_{step}"
    temporary = folder / f".step_{step}.{os.getpid()}.incomplete"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    _save(temporary / "model.safetensors", model)
    _save(temporary / "optimizer.safetensors", optimizer)
    (temporary / "state.json").write_text(json.dumps(dict(state), indent=1, sort_keys=True))
    if final.exists():
        shutil.rmtree(final)
    temporary.rename(final)
    for stale in folder.glob(".step_*.incomplete"):
        shutil.rmtree(stale, ignore_errors=True)
    for old in list_checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    found = [path for path in folder.glob("step_*") if path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def read_checkpoint(path: Path) -> LoadedCheckpoint:
    """Reads one checkpoint; JSON and safetensors only, no code runs."""
    return LoadedCheckpoint(
        path,
        load_file(path / "model.safetensors"),
        load_file(path / "optimizer.safetensors"),
        json.loads((path / "state.json").read_text()),
    )


def _save(path: Path, tensors: Mapping[str, Tensor]) -> None:
    save_file({name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
