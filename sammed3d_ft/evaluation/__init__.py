"""Evaluation of predicted masks: voxel, surface, detection and PET metrics, cohort statistics, tables."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sammed3d_ft.evaluation.case import CaseResult, evaluate_case
    from sammed3d_ft.evaluation.click_curves import click_curve_area, clicks_to_reach
    from sammed3d_ft.evaluation.cohort import CaseEvaluation, evaluate_folders, evaluate_pairs
    from sammed3d_ft.evaluation.compat import COMPAT, compat_columns
    from sammed3d_ft.evaluation.metrics import METRICS, Metric
    from sammed3d_ft.evaluation.paired import bonferroni, hodges_lehmann, holm, paired_test
    from sammed3d_ft.evaluation.pairing import CasePaths, pair_files, pair_folders, pair_manifest
    from sammed3d_ft.evaluation.report import write_report
    from sammed3d_ft.evaluation.results import Detection
    from sammed3d_ft.evaluation.statistics import summarise

_PUBLIC = {
    "COMPAT": "compat",
    "METRICS": "metrics",
    "CaseEvaluation": "cohort",
    "CasePaths": "pairing",
    "CaseResult": "case",
    "Detection": "results",
    "Metric": "metrics",
    "bonferroni": "paired",
    "click_curve_area": "click_curves",
    "clicks_to_reach": "click_curves",
    "compat_columns": "compat",
    "evaluate_case": "case",
    "evaluate_folders": "cohort",
    "evaluate_pairs": "cohort",
    "hodges_lehmann": "paired",
    "holm": "paired",
    "pair_files": "pairing",
    "pair_folders": "pairing",
    "pair_manifest": "pairing",
    "paired_test": "paired",
    "summarise": "statistics",
    "write_report": "report",
}

__all__ = [
    "COMPAT",
    "METRICS",
    "CaseEvaluation",
    "CasePaths",
    "CaseResult",
    "Detection",
    "Metric",
    "bonferroni",
    "click_curve_area",
    "clicks_to_reach",
    "compat_columns",
    "evaluate_case",
    "evaluate_folders",
    "evaluate_pairs",
    "hodges_lehmann",
    "holm",
    "pair_files",
    "pair_folders",
    "pair_manifest",
    "paired_test",
    "summarise",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
