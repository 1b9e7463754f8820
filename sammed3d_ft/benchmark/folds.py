"""The folds of a benchmark: which cases are tested together, and one manifest per fold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sammed3d_ft.benchmark.config import BenchmarkConfig
from sammed3d_ft.dataset.manifest import SPLITS, Case, listing, read_json, read_manifest, write_manifest
from sammed3d_ft.errors import InputError

_SHUFFLE_SEED = 0


def patient_of(case: Case) -> str:
    """The unit of all statistics: the manifest's group, or the case itself."""
    return case.group or case.id


def write_folds(config: BenchmarkConfig) -> dict[str, Path]:
    """Write one manifest per fold, in which that fold is test, the next one val, and the others train.

    With ``folds: split`` there is one fold, "split", with the splits of the benchmark's manifest.

    Returns:
        The manifests by fold name, in the order of the folds.

    Raises:
        InputError: an unreadable manifest or file of folds; cases without a label; folds that do not contain every case
            exactly once, or that leak a patient; a missing or unknown split.
    """
    every = read_manifest(config.manifest).cases
    used = [case for case in every if case.split] if config.folds == "split" else every
    unlabelled = [case.id for case in used if case.label is None]
    if unlabelled:
        raise InputError(f"{config.manifest}: {listing(unlabelled, 'case has no label', 'cases have no label')}")
    if config.folds == "split":
        return {"split": _own_split(used, config)}
    if isinstance(config.folds, int):
        fold_of = _drawn(used, config.folds)
    else:
        fold_of = _read(config.folds, config.folds_key)
        _check(fold_of, used, config)
    order = list(dict.fromkeys(fold_of.values()))
    manifests = {}
    for number, fold in enumerate(order):
        split_of = {fold: "test", order[(number + 1) % len(order)]: "val"}
        cases = [replace(case, split=split_of.get(fold_of[case.id], "train")) for case in used]
        manifests[fold] = config.out / "folds" / f"{fold}.json"
        write_manifest(manifests[fold], cases)
    return manifests


def _own_split(cases: Sequence[Case], config: BenchmarkConfig) -> Path:
    there = {str(case.split) for case in cases}
    if unknown := sorted(there - {*SPLITS}):
        raise InputError(f"{config.manifest}: unknown split {', '.join(unknown)}, expected {', '.join(SPLITS)}")
    wanted = SPLITS if any(map(config.is_trained, config.rows)) else ("test",)
    if missing := [split for split in wanted if split not in there]:
        raise InputError(f"{config.manifest}: no case in {', '.join(missing)}, needed by folds: split; or give folds")
    _refuse_torn({case.id: str(case.split) for case in cases}, cases, config.manifest, "split")
    path = config.out / "folds" / "split.json"
    write_manifest(path, cases)
    return path


def _read(path: Path, key: str | None) -> dict[str, str]:
    """The fold of each case ID, in the order of the folds."""
    content = read_json(path)
    content = content.get(key) if key and isinstance(content, dict) else content
    named: dict[Any, Any] = content if isinstance(content, dict) else dict(enumerate(content or []))
    # In nnU-Net's splits_final.json, val lists the cases that each fold holds out.
    named = {name: ids.get("val") if isinstance(ids, dict) else ids for name, ids in named.items()}
    if len(named) < 3 or not all(isinstance(ids, list) for ids in named.values()):
        raise InputError(f"{path}: expected at least 3 folds, each a list of case IDs (folds_key selects an entry)")
    fold_of = {str(case): str(fold) for fold, ids in named.items() for case in ids}
    if sum(map(len, named.values())) != len(fold_of):
        raise InputError(f"{path}: a case is in two folds, or twice in one")
    return fold_of


def _check(fold_of: dict[str, str], cases: Sequence[Case], config: BenchmarkConfig) -> None:
    missing = sorted(case.id for case in cases if case.id not in fold_of)
    unknown = sorted(fold_of.keys() - {case.id for case in cases})
    if missing or unknown:
        raise InputError(
            f"{config.folds} does not fit {config.manifest}: {len(missing)} cases without a fold {missing[:3]}, "
            f"{len(unknown)} unknown case IDs {unknown[:3]}"
        )
    _refuse_torn(fold_of, cases, config.folds, "fold")


def _refuse_torn(part_of: dict[str, str], cases: Sequence[Case], file: object, what: str) -> None:
    """Refuse patient leakage: no patient may be in two parts, which are folds or splits."""
    of_patient: dict[str, set[str]] = {}
    for case in cases:
        of_patient.setdefault(patient_of(case), set()).add(part_of[case.id])
    torn = sorted(patient for patient, parts in of_patient.items() if len(parts) > 1)
    if torn:
        leak = listing(torn, f"patient is in two {what}s", f"patients are in two {what}s")
        raise InputError(f"{file}: {leak}; models would be tested on patients they were trained on (patient leakage)")


def _drawn(cases: Sequence[Case], count: int) -> dict[str, str]:
    """Folds of about equally many cases, with whole patients drawn at random; the result depends only on the ids."""
    patients = sorted({patient_of(case) for case in cases})
    if not 3 <= count <= len(patients):
        raise InputError(f"folds: got {count} for {len(patients)} patients; expected at least 3, each with a patient")
    members: dict[str, list[str]] = {patient: [] for patient in patients}
    for case in cases:
        members[patient_of(case)].append(case.id)
    folds: list[list[str]] = [[] for _ in range(count)]
    for index in np.random.default_rng(_SHUFFLE_SEED).permutation(len(patients)):
        min(folds, key=len).extend(members[patients[index]])
    return {case: str(number) for number, ids in enumerate(folds) for case in ids}
