"""Scores the masks of a run with `sammed3d_ft.evaluation`, level by level; resumes where it stopped."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sammed3d_ft.benchmark.folds import patient_of
from sammed3d_ft.benchmark.segmenters import find_mask, masks_in
from sammed3d_ft.dataset.manifest import Case
from sammed3d_ft.evaluation.cohort import evaluate_pair
from sammed3d_ft.evaluation.kept_cases import CaseEvaluation, stored_result
from sammed3d_ft.evaluation.pairing import CasePaths
from sammed3d_ft.evaluation.report import write_report
from sammed3d_ft.evaluation.results import CaseResult
from sammed3d_ft.files import write_whole

_RECORD = "scored.json"


def score_masks(
    masks: Path, cases: Sequence[Case], out: Path, connectivity: int, reasons: Mapping[str, str]
) -> dict[str, str]:
    """Write ``cases.csv``, ``lesions.csv`` and ``summary.json`` for one folder of masks, unless nothing has changed.

    A mask that is missing, unreadable or on another grid becomes a row with an ``error``.

    Args:
        masks: folder of ``<case>.nii.gz``, or another of `IMAGE_SUFFIXES`.
        out: output folder, named by what the scores depend on.
        connectivity: of lesions.
        reasons: why a mask is missing, by case ID.

    Returns:
        Error messages by case ID.
    """
    made_of = {"masks": masks_in(masks, [case.id for case in cases]), "reasons": dict(reasons)}
    if _scored(out).get("made_of") != made_of:
        for kept in out.parent.parent.glob(f"*/{out.name}/cases/*.json"):  # reused where nothing has changed
            if not (mine := out / "cases" / kept.name).exists():
                write_whole(mine, kept.read_bytes())
        evaluations = []
        for case in tqdm(cases, "scores", unit="case", leave=False):
            assert case.label is not None
            path = find_mask(masks, case.id)
            paths = CasePaths(
                case.id, case.label, path or masks / f"{case.id}.nii.gz", case.images.get("PT"), patient_of(case)
            )
            if path is None or case.id in reasons:
                reason = reasons.get(case.id, f"no prediction at {paths.pred}")
                evaluations.append(CaseEvaluation(paths, None, reason, {}))
            else:
                evaluations.append(evaluate_pair(paths, connectivity, keep_in=out / "cases"))
        write_report(evaluations, out, {"masks": str(masks), "connectivity": connectivity})
        errors = {case.paths.id: case.error for case in evaluations}
        write_whole(out / _RECORD, json.dumps({"made_of": made_of, "errors": errors}, indent=1))
    return errors_of(out)


def is_scored(out: Path) -> bool:
    """Whether the folder contains finished scores, possibly with failed cases."""
    return (out / _RECORD).is_file()


def errors_of(out: Path) -> dict[str, str]:
    """Error messages of the last scoring by case ID; empty if nothing was scored."""
    return {case: error for case, error in _scored(out).get("errors", {}).items() if error}


def scores_in(out: Path) -> dict[str, CaseResult | str]:
    """The result of each scored case, or its error message; empty if nothing was scored.

    Raises:
        InputError: a result that cannot be read.
    """
    errors = _scored(out).get("errors", {})
    return {case: error or stored_result(out / "cases", case) for case, error in errors.items()}


def _scored(out: Path) -> dict[str, Any]:
    if not is_scored(out):
        return {}
    content: dict[str, Any] = json.loads((out / _RECORD).read_text(encoding="utf-8"))
    return content
