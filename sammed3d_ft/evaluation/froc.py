"""FROC curve, average precision and AUROC of a cohort, from the confidence of every predicted lesion.

The conventions are those of picai_eval (Saha et al., Lancet Oncology 2024; tested against version 1.4.13): a predicted
lesion's confidence is its highest probability, lesions are matched one to one at IoU >= 0.1, and a prediction that
reaches that IoU with a true lesion but lost it to a better one is neither a hit nor a false alarm. There, lesions are
26-connected components; here those that the case was evaluated with.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from prompts.errors import InputError


@dataclass(frozen=True)
class ScoredLesions:
    """The predicted lesions of one case with their confidence in (0, 1]."""

    hits: tuple[float, ...]
    """Confidence of each prediction that is matched."""
    false_alarms: tuple[float, ...]
    """Confidence of each prediction whose IoU with every true lesion is below the threshold."""
    ignored: int
    """Unmatched predictions with enough IoU: duplicates, which count as neither."""
    truths: int
    """True lesions, found or not."""
    case_confidence: float
    """Highest confidence of any predicted lesion; 0 without one."""


class ScoredCase(Protocol):
    """A `CaseResult`, as far as this module looks at it."""

    @property
    def scored(self) -> ScoredLesions | None: ...


@dataclass(frozen=True)
class Froc:
    """Free-response curve: one point for each confidence from which on predictions are accepted, falling."""

    thresholds: np.ndarray
    """(k,) confidences that occur, falling."""
    sensitivity: np.ndarray
    """(k,) share of all true lesions that are hit by an accepted prediction; NaN without true lesions."""
    false_alarms_per_case: np.ndarray
    """(k,) accepted false alarms over all cases, lesion-free ones included."""
    truths: int
    """True lesions of all cases."""

    def sensitivity_at(self, false_alarms_per_case: float) -> float:
        """The highest sensitivity that keeps to this mean number of false alarms; 0 when nothing does.

        NaN (not defined) without true lesions.
        """
        if self.truths == 0:
            return float("nan")
        allowed = self.sensitivity[self.false_alarms_per_case <= false_alarms_per_case]
        return float(allowed[-1]) if len(allowed) else 0.0


def froc(results: Iterable[ScoredCase]) -> Froc:
    """The FROC curve of a cohort.

    Raises:
        InputError: a case was evaluated without probabilities, or there is none.
    """
    cases = _scored(results)
    thresholds, hits, false_alarms, truths = _accepted(cases)
    with np.errstate(invalid="ignore"):
        return Froc(thresholds, hits / np.float64(truths), false_alarms / len(cases), truths)


def average_precision(results: Iterable[ScoredCase]) -> float:
    """Area under the precision-recall curve of lesions, by steps: sum of (R_k - R_k-1) P_k over falling confidence.

    NaN (not defined) without true lesions. A missed lesion keeps recall below 1 and adds nothing.

    Raises:
        InputError: a case was evaluated without probabilities, or there is none.
    """
    _, hits, false_alarms, truths = _accepted(_scored(results))
    if truths == 0:
        return float("nan")
    return float((np.diff(hits, prepend=0) / truths) @ (hits / (hits + false_alarms)))


def case_auroc(results: Iterable[ScoredCase]) -> float:
    """Probability that a case with lesions has a higher case confidence than one without, ties counting half.

    NaN (not defined) unless there are cases of both kinds.

    Raises:
        InputError: a case was evaluated without probabilities, or there is none.
    """
    cases = _scored(results)
    positive = np.array([case.case_confidence for case in cases if case.truths])
    negative = np.array([case.case_confidence for case in cases if not case.truths])
    if len(positive) == 0 or len(negative) == 0:
        return float("nan")
    order = np.sign(positive[:, None] - negative[None])
    return float((order.mean() + 1) / 2)


def _scored(results: Iterable[ScoredCase]) -> list[ScoredLesions]:
    cases = [result.scored for result in results]
    if not cases or None in cases:
        raise InputError(
            f"{cases.count(None)} of {len(cases)} cases have no probabilities: FROC, AP and AUROC need every case's"
        )
    return [case for case in cases if case is not None]


def _accepted(cases: list[ScoredLesions]) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Thresholds, falling; hits and false alarms accepted at each; number of true lesions."""
    hits = np.sort([confidence for case in cases for confidence in case.hits])
    false_alarms = np.sort([confidence for case in cases for confidence in case.false_alarms])
    thresholds = np.unique(np.concatenate((hits, false_alarms)))[::-1]
    return (
        thresholds,
        len(hits) - np.searchsorted(hits, thresholds),
        len(false_alarms) - np.searchsorted(false_alarms, thresholds),
        sum(case.truths for case in cases),
    )
