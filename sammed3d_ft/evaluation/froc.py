"""FROC curve, average precision and AUROC of a cohort, from the confidence of every predicted lesion.

The conventions are those of picai_eval (Saha et al., Lancet Oncology 2024; tested against version 1.4.13): a predicted
lesion's confidence is its highest probability, lesions are matched one to one at IoU >= 0.1, and a prediction that
reaches that IoU but whose lesion is matched to a better prediction is neither a hit nor a false positive. Unlike
picai_eval, which uses 26-connected components, lesions are defined as in the rest of the evaluation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ScoredLesions:
    """The predicted lesions of one case with their confidence in (0, 1]."""

    hits: tuple[float, ...]
    """Confidence of each matched prediction."""
    false_alarms: tuple[float, ...]
    """Confidence of each prediction whose IoU with every ground-truth lesion is below the threshold."""
    ignored: int
    """Number of unmatched predictions with sufficient IoU (duplicates), which count as neither."""
    truths: int
    """Number of ground-truth lesions, found or not."""
    case_confidence: float
    """Highest confidence of any predicted lesion; 0 without one."""


@dataclass(frozen=True)
class Froc:
    """Free-response ROC curve: one point per confidence threshold at which predictions are accepted."""

    thresholds: np.ndarray
    """(k,) confidences that occur, decreasing."""
    sensitivity: np.ndarray
    """(k,) share of all ground-truth lesions hit by an accepted prediction; NaN without ground-truth lesions."""
    false_alarms_per_case: np.ndarray
    """(k,) accepted false positives / cases, lesion-free cases included."""
    truths: int
    """Number of ground-truth lesions in all cases."""

    def sensitivity_at(self, false_alarms_per_case: float) -> float:
        """The highest sensitivity with at most this mean number of false positives per case; 0 if there is none.

        NaN (not defined) without ground-truth lesions.
        """
        if self.truths == 0:
            return float("nan")
        allowed = self.sensitivity[self.false_alarms_per_case <= false_alarms_per_case]
        return float(allowed[-1]) if len(allowed) else 0.0


def froc(cases: Sequence[ScoredLesions]) -> Froc:
    """The FROC curve of a cohort of at least one case."""
    thresholds, hits, false_alarms, truths = _accepted(cases)
    with np.errstate(invalid="ignore"):
        return Froc(thresholds, hits / np.float64(truths), false_alarms / len(cases), truths)


def average_precision(cases: Sequence[ScoredLesions]) -> float:
    """Area under the lesions' precision-recall curve, as the sum of (R_k - R_k-1) P_k over decreasing confidence.

    NaN (not defined) without ground-truth lesions. A missed lesion keeps recall below 1 and adds nothing.
    """
    _, hits, false_alarms, truths = _accepted(cases)
    if truths == 0:
        return float("nan")
    return float((np.diff(hits, prepend=0) / truths) @ (hits / (hits + false_alarms)))


def case_auroc(cases: Sequence[ScoredLesions]) -> float:
    """Probability that a case with lesions has a higher case confidence than one without; ties count half.

    NaN (not defined) unless there are cases of both kinds.
    """
    positive = np.array([case.case_confidence for case in cases if case.truths])
    negative = np.array([case.case_confidence for case in cases if not case.truths])
    if len(positive) == 0 or len(negative) == 0:
        return float("nan")
    order = np.sign(positive[:, None] - negative[None])
    return float((order.mean() + 1) / 2)


def _accepted(cases: Sequence[ScoredLesions]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Thresholds (decreasing), hits and false positives accepted at each, and the number of ground-truth lesions."""
    hits = np.sort([confidence for case in cases for confidence in case.hits])
    false_alarms = np.sort([confidence for case in cases for confidence in case.false_alarms])
    thresholds = np.unique(np.concatenate((hits, false_alarms)))[::-1]
    return (
        thresholds,
        len(hits) - np.searchsorted(hits, thresholds),
        len(false_alarms) - np.searchsorted(false_alarms, thresholds),
        sum(case.truths for case in cases),
    )
