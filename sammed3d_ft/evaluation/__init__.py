"""Evaluation of predicted masks: voxel, surface, detection and PET metrics, cohort statistics, tables."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sammed3d_ft.evaluation.case import CaseResult, evaluate_case
    from sammed3d_ft.evaluation.cohort import CaseEvaluation, evaluate_folders, evaluate_pairs
    from sammed3d_ft.evaluation.detection import Detection
    from sammed3d_ft.evaluation.metrics import METRICS, Metric
    from sammed3d_ft.evaluation.pairing import CasePaths, pair_files, pair_folders, pair_manifest
    from sammed3d_ft.evaluation.report import write_report
    from sammed3d_ft.evaluation.statistics import summarise

_PUBLIC = {
    "METRICS": "metrics",
    "CaseEvaluation": "cohort",
    "CasePaths": "pairing",
    "CaseResult": "case",
    "Detection": "detection",
    "Metric": "metrics",
    "evaluate_case": "case",
    "evaluate_folders": "cohort",
    "evaluate_pairs": "cohort",
    "pair_files": "pairing",
    "pair_folders": "pairing",
    "pair_manifest": "pairing",
    "summarise": "statistics",
    "write_report": "report",
}

__all__ = [
    "METRICS",
    "CaseEvaluation",
    "CasePaths",
    "CaseResult",
    "Detection",
    "Metric",
    "evaluate_case",
    "evaluate_folders",
    "evaluate_pairs",
    "pair_files",
    "pair_folders",
    "pair_manifest",
    "summarise",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
