"""What a run may be continued with: the settings, inputs and number of processes it was begun with."""

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
from prompts.errors import InputError
from sammed3d_ft.model.weights import sha256_of, state_hash
from sammed3d_ft.recipes.config import BaselineConfig, TrainConfig, differences
from sammed3d_ft.recipes.task import Task
from sammed3d_ft.training.checkpoints import list_checkpoints

# What a continuation must share with the run it continues, beside its settings.
_SAME_FACTS = {
    "processes": "number of processes",
    "base_hash": "base weights",
    "data_digest": "cases, splits or their files",
    "samples": "training samples of an epoch",
    "mixed_precision": "precision",
}


def newest_checkpoint(run: Path) -> Path | None:
    """As the first process sees it: another machine's view of a shared folder may lag behind."""
    found = list_checkpoints(run / "checkpoints")
    return broadcast_object_list([found[-1] if found else None])[0]


def refuse_unequal_replicas(accelerator: Accelerator, step: int, state: Mapping[str, Tensor]) -> None:
    if accelerator.num_processes > 1:
        replicas = set(gather_object([(step, state_hash(state))]))
        if len(replicas) > 1:
            raise InputError("processes read different checkpoints: is the run folder the same one on all machines?")


def refuse_changed_config(config: TrainConfig | BaselineConfig, run: Path, tell: bool) -> None:
    """A run goes on with the settings it began with; anything else would be another run under its name."""
    if config.run.resume == "never":
        raise InputError(
            f"{run} holds an earlier run and run.resume is never: choose another run.dir or remove it"
        )
    file = run / "config.yaml"
    before = _earlier(file) or config.as_plain()
    changed, harmless = differences(before, config.as_plain())
    if changed:
        raise InputError(
            f"{run} holds a run with other settings ({'; '.join(changed)}): choose another run.dir, "
            f"or give the settings it began with"
        )
    if harmless and tell:
        print(f"settings that changed since the run began, and may: {'; '.join(harmless)}")


def refuse_changed_facts(facts: dict[str, Any], run: Path, tell: bool) -> None:
    """Same settings are not enough: files behind their names may have changed."""
    before = _earlier(run / "run.json") or {}
    changed = [
        f"{what}: {before[key]} -> {facts[key]}"
        for key, what in _SAME_FACTS.items()
        if key in before and before[key] != facts[key]
    ]
    if changed:
        raise InputError(
            f"{run} was begun with other inputs ({'; '.join(changed)}), though under the same names: "
            f"restore them, or choose another run.dir"
        )
    others = [
        f"{key}: {before[key]} -> {facts[key]}"
        for key in ("sammed3d_ft", "torch", "python", "device", "threads")
        if key in before and before[key] != facts[key]
    ]
    if others and tell:
        print(f"changed since the run began, so that its last digits will differ: {'; '.join(others)}")


def _earlier(file: Path) -> dict[str, Any] | None:
    """What an earlier start wrote there (JSON is YAML, too); None if nothing."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8")) if file.exists() else None
    except (yaml.YAMLError, ValueError) as error:
        content = " ".join(str(error).split())
    if content is None or isinstance(content, dict):
        return content
    raise InputError(f"{file}: not what a run wrote there ({content!s:.120}): remove it, or choose another run.dir")


def run_facts(config: TrainConfig | BaselineConfig, task: Task, accelerator: Accelerator) -> dict[str, Any]:
    return {
        "sammed3d_ft": sammed3d_ft.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "mixed_precision": accelerator.mixed_precision,
        "seed": config.run.seed,
        "base_hash": task.base_hash,
        "manifest_sha256": sha256_of(config.data.manifest),
        "data_digest": task.cases.fingerprint,
        "samples": task.sample_count,
        "tuning": task.lines(),
    }
