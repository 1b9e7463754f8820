"""Checks before a run is resumed: same settings, inputs and number of processes as when it started."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor

import sammed3d_ft
from sammed3d_ft.errors import InputError
from sammed3d_ft.provenance import file_hash, state_hash
from sammed3d_ft.training.checkpoints import list_checkpoints
from sammed3d_ft.training.config_file import differences
from sammed3d_ft.training.task import Task

# Facts that must be unchanged when a run is resumed, besides its settings.
_SAME_FACTS = {
    "processes": "number of processes",
    "base_hash": "base weights",
    "data_digest": "cases, splits or their files",
    "samples": "training samples per epoch",
    "mixed_precision": "precision",
}


def newest_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint as seen by the first process: other machines may see a shared folder with delay."""
    found = list_checkpoints(run / "checkpoints")
    return broadcast_object_list([found[-1] if found else None])[0]


def refuse_unequal_replicas(accelerator: Accelerator, step: int, state: Mapping[str, Tensor]) -> None:
    """Raise InputError if the processes loaded different checkpoints."""
    if accelerator.num_processes > 1:
        replicas = set(gather_object([(step, state_hash(state))]))
        if len(replicas) > 1:
            raise InputError("processes read different checkpoints: is the run folder the same one on all machines?")


def refuse_changed_config(settings: dict[str, Any], run: Path, tell: bool) -> None:
    """Raise InputError if settings that affect the result differ from those the run started with."""
    if settings["run"]["resume"] == "never":
        raise InputError(
            f"{run} contains an earlier run and run.resume is never: choose another run.dir, or remove the folder"
        )
    file = run / "config.yaml"
    changed, harmless = differences(_earlier(file) or settings, settings)
    if changed:
        raise InputError(
            f"{run} contains a run with other settings ({'; '.join(changed)}): choose another run.dir, "
            f"or restore its original settings"
        )
    if harmless and tell:
        print(f"changed since the run started (allowed): {'; '.join(harmless)}")


def refuse_changed_facts(facts: dict[str, Any], run: Path, tell: bool) -> None:
    """Raise InputError if inputs differ from those at the start: files may change while their names do not.

    Of a case, the label's content and the images' sizes are compared (`case_content`).
    """
    before = _earlier(run / "run.json") or {}
    changed = [
        f"{what}: {before[key]} -> {facts[key]}"
        for key, what in _SAME_FACTS.items()
        if key in before and before[key] != facts[key]
    ]
    if changed:
        raise InputError(
            f"{run} was started with other inputs under the same names ({'; '.join(changed)}): "
            f"restore them, or choose another run.dir"
        )
    others = [
        f"{key}: {before[key]} -> {facts[key]}"
        for key in ("sammed3d_ft", "torch", "python", "device", "threads")
        if key in before and before[key] != facts[key]
    ]
    if others and tell:
        print(f"changed since the run started; results may differ in the last digits: {'; '.join(others)}")


def _earlier(file: Path) -> dict[str, Any] | None:
    """Read what an earlier start of the run wrote (JSON is also YAML); None if there is nothing."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None
    except (yaml.YAMLError, ValueError) as error:
        content = " ".join(str(error).split())
    if content is None or isinstance(content, dict):
        return content
    raise InputError(f"{file}: not a file written by a run ({content!s:.120}): remove it, or choose another run.dir")


def run_facts(seed: int, manifest: Path, task: Task, accelerator: Accelerator) -> dict[str, Any]:
    """The facts recorded in ``run.json``."""
    return {
        "sammed3d_ft": sammed3d_ft.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
        "seed": seed,
        "base_hash": task.base_hash,
        "manifest_sha256": file_hash(manifest),
        "data_digest": task.cases.fingerprint,
        "samples": task.sample_count,
        "tuning": task.lines(),
    }
