"""Evaluates a cohort: reads the files of each case, and keeps a case that fails as a marked one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from prompts.errors import InputError
from sammed3d_ft.data.images import grid_difference, read_image, read_label
from sammed3d_ft.evaluation.case import CaseResult, evaluate_case
from sammed3d_ft.evaluation.pairing import CasePaths, pair_folders
from sammed3d_ft.evaluation.report import CaseEvaluation, write_report

__all__ = ["CaseEvaluation", "Foreground", "evaluate_folders", "evaluate_pair", "evaluate_pairs"]

Foreground = Literal["binary", "any"] | int
"""Which label values are lesion: ``binary`` (only 0 and 1 may occur), ``any`` above 0, or one value."""


def evaluate_folders(
    pred_dir: Path,
    gt_dir: Path,
    out_dir: Path,
    pet_dir: Path | None = None,
    connectivity: int = 18,
    foreground: Foreground = "binary",
) -> list[CaseEvaluation]:
    """Evaluate a folder of predictions against a folder of truths and write the tables to ``out_dir``.

    Files are matched by name (`pair_folders`); the tables are those of `write_report`.

    Raises:
        InputError: files that are missing, extra or on differing grids, all in one message. A case whose
            files turn out to be corrupt or not binary is marked in the tables and does not stop the others.
    """
    pairs = pair_folders(pred_dir, gt_dir, pet_dir)
    evaluations = evaluate_pairs(pairs, connectivity, foreground)
    write_report(evaluations, out_dir, {"connectivity": connectivity, "foreground": foreground})
    return evaluations


def evaluate_pairs(
    pairs: Sequence[CasePaths],
    connectivity: int = 18,
    foreground: Foreground = "binary",
    progress: Callable[[Iterable[CasePaths]], Iterable[CasePaths]] = iter,
) -> list[CaseEvaluation]:
    """Evaluate cases one after the other; ``progress`` may wrap the cases to show a bar, as tqdm does."""
    return [evaluate_pair(case, connectivity, foreground) for case in progress(pairs)]


def evaluate_pair(
    case: CasePaths, connectivity: int = 18, foreground: Foreground = "binary"
) -> CaseEvaluation:
    """Read one case and evaluate it. What is wrong with its files becomes its ``error``, not an exception."""
    try:
        return CaseEvaluation(case, _evaluate(case, connectivity, foreground), None, _hashes(case))
    except InputError as error:
        return CaseEvaluation(case, None, str(error), {})


def _evaluate(case: CasePaths, connectivity: int, foreground: Foreground) -> CaseResult:
    truth = read_label(case.truth, case=case.id)
    pred = read_label(case.pred, case=case.id)
    pet = None if case.pet is None else read_image(case.pet, case=case.id)
    for name, volume in (("prediction", pred), ("PET", pet)):
        difference = None if volume is None else grid_difference(volume, truth)
        if difference:
            raise InputError(f"case {case.id}: {name} is on another grid than the truth ({difference})")
    return evaluate_case(
        _lesion_mask(truth.array, foreground, case.id, case.truth),
        _lesion_mask(pred.array, foreground, case.id, case.pred),
        truth.spacing_mm,
        None if pet is None else pet.array,
        connectivity,
        truth.affine,
    )


def _lesion_mask(labels: np.ndarray, foreground: Foreground, case: str, path: Path) -> np.ndarray:
    if foreground == "any":
        return labels > 0
    if foreground != "binary":
        return labels == foreground
    if labels.max() > 1:
        raise InputError(
            f"case {case}: {path}: is not binary, it holds label {labels.max()}; state which are lesion by "
            "--foreground any, or --foreground and one label"
        )
    return labels > 0


def _hashes(case: CasePaths) -> dict[str, Any]:
    hashes = {}
    for name, path in (("truth", case.truth), ("prediction", case.pred), ("pet", case.pet)):
        if path is not None:
            with path.open("rb") as file:
                hashes[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes
