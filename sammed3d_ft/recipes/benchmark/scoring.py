"""Scores the masks of a run with `sammed3d_ft.evaluation`, level by level; resumes where it stopped."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prompts.whole_files import write_whole
from sammed3d_ft.data.manifest import Case
from sammed3d_ft.evaluation.cohort import evaluate_pair
from sammed3d_ft.evaluation.kept_cases import CaseEvaluation
from sammed3d_ft.evaluation.pairing import CasePaths
from sammed3d_ft.evaluation.report import write_report
from sammed3d_ft.recipes.benchmark.folds import patient_of
from sammed3d_ft.recipes.benchmark.segmenters import find_mask, masks_in

_RECORD = "made_of.json"


def score_masks(
    masks: Path, cases: Sequence[Case], out: Path, connectivity: int, reasons: Mapping[str, str]
) -> dict[str, str]:
    """Write ``cases.csv``, ``lesions.csv`` and ``summary.json`` for one folder of masks, unless nothing has changed.

    A mask that is missing, unreadable or on another grid becomes a row with an ``error``.

    Args:
        masks: folder of ``<case>.nii.gz``, or another of `IMAGE_SUFFIXES`.
        out: output folder, named by what the scores depend on.
        connectivity: of lesions.
        reasons: why a mask is missing, by case id.

    Returns:
        Error messages by case id.
    """
    made_of = {"masks": masks_in(masks, [case.id for case in cases]), "reasons": dict(reasons)}
    record = out / _RECORD
    if _content(record) != made_of:
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
        write_whole(record, json.dumps(made_of, indent=1))
    return errors_of(out)


def is_scored(out: Path) -> bool:
    """Whether the folder contains finished scores, possibly with failed cases."""
    return (out / _RECORD).is_file()


def errors_of(out: Path) -> dict[str, str]:
    """Error messages of an earlier scoring by case id; empty if there was none."""
    return {line["case"]: line["error"] for line in read_csv(out / "cases.csv") if line["error"]}


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; empty if the file is missing."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _content(record: Path) -> Any:
    try:
        return json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
