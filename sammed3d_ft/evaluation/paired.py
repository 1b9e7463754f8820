"""Paired comparison of methods on the same patients, and correction for many comparisons."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import wilcoxon

from prompts.errors import InputError


@dataclass(frozen=True)
class PairedTest:
    """Two methods on the patients for which both are defined."""

    n: int
    mean_difference: float
    """Of the first minus the second; NaN without pairs."""
    median_difference: float
    p: float
    """Wilcoxon signed-rank test, two-sided; NaN without pairs, 1 if all pairs are equal."""


def paired_test(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Wilcoxon's signed-rank test over pairs; a pair with NaN on either side is left out.

    Equal pairs are dropped before ranking (Wilcoxon's own treatment); the p-value is exact up to 50 pairs without
    ties, as scipy decides.

    Raises:
        InputError: sequences of different lengths.
    """
    if len(first) != len(second):
        raise InputError(f"paired test of {len(first)} and {len(second)} values: the same patients are needed in both")
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    differences = differences[~np.isnan(differences)]
    if differences.size == 0:
        return PairedTest(0, float("nan"), float("nan"), float("nan"))
    p = 1.0 if not differences.any() else float(wilcoxon(differences, zero_method="wilcox").pvalue)
    return PairedTest(len(differences), float(differences.mean()), float(np.median(differences)), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's step-down method (Scand J Stat 1979;6:65).

    NaN (no test was possible) stays NaN and does not count.
    """
    adjusted = [float("nan")] * len(p_values)
    known = sorted((p, index) for index, p in enumerate(p_values) if p == p)
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = highest
    return adjusted


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """P-values times their number, at most 1; NaN stays NaN and does not count."""
    count = sum(p == p for p in p_values)
    return [min(1.0, p * count) if p == p else p for p in p_values]
