"""Paired comparison of methods on the same patients, and correction for multiple comparisons."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, wilcoxon

from sammed3d_ft.errors import InputError

_EXACT_UP_TO = 300  # pairs; with more, the interval's rank uses the normal approximation
_NAN = float("nan")


@dataclass(frozen=True)
class PairedTest:
    """Comparison of two methods on the patients for whom both are defined."""

    n: int
    mean_difference: float
    """First minus second; NaN without pairs."""
    median_difference: float
    p: float
    """Wilcoxon signed-rank test, two-sided; NaN without pairs, 1 if all pairs are equal."""
    hodges_lehmann: float = _NAN
    """Pseudo-median of the differences, see `hodges_lehmann`; NaN without pairs."""
    hl_low: float = _NAN
    """95 % confidence interval of the pseudo-median; NaN below six pairs."""
    hl_high: float = _NAN


def paired_test(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Wilcoxon signed-rank test over pairs; pairs with a NaN are excluded.

    The rank of a zero difference is split between both sides (``zsplit``), so that ties count as evidence for equality.
    The p-value is exact up to 50 pairs without ties and up to 13 with them, as scipy decides.

    Raises:
        InputError: sequences of different lengths.
    """
    if len(first) != len(second):
        raise InputError(f"paired test: got {len(first)} and {len(second)} values, expected the same patients in both")
    differences = np.asarray(first, np.float64) - np.asarray(second, np.float64)
    differences = differences[~np.isnan(differences)]
    if differences.size == 0:
        return PairedTest(0, _NAN, _NAN, _NAN)
    p = 1.0 if not differences.any() else float(wilcoxon(differences, zero_method="zsplit").pvalue)
    return PairedTest(
        len(differences), float(differences.mean()), float(np.median(differences)), p, *hodges_lehmann(differences)
    )


def hodges_lehmann(differences: np.ndarray) -> tuple[float, float, float]:
    """The pseudo-median of paired differences and its 95 % confidence interval.

    The pseudo-median is the median of the Walsh averages: the means of all pairs of differences, each difference also
    paired with itself (Hodges and Lehmann, Ann Math Stat 1963;34:598). The interval runs from the k-th smallest to the
    k-th largest Walsh average, with k from the distribution of Wilcoxon's signed-rank statistic (Hollander and Wolfe,
    Nonparametric Statistical Methods, 1973, section 3.4); it covers at least 95 % if differences are continuous and
    symmetric.

    Args:
        differences: (n,) without NaN.

    Returns:
        Estimate, lower and upper bound; the bounds are NaN below six pairs, where no interval reaches 95 %.
    """
    n = len(differences)
    if n == 0:
        return _NAN, _NAN, _NAN
    rows, columns = np.triu_indices(n)
    walsh = np.sort((differences[rows] + differences[columns]) / 2)
    rank = _interval_rank(n)
    if rank == 0:
        return float(np.median(walsh)), _NAN, _NAN
    return float(np.median(walsh)), float(walsh[rank - 1]), float(walsh[-rank])


def _interval_rank(n: int) -> int:
    """The largest k with P(signed-rank statistic of n pairs < k) <= 2.5 %; 0 if there is none."""
    if n > _EXACT_UP_TO:
        mean, sd = n * (n + 1) / 4, math.sqrt(n * (n + 1) * (2 * n + 1) / 24)
        return math.floor(mean + norm.ppf(0.025) * sd)
    # Each rank enters the sum with probability one half: build the distribution of the sum rank by rank.
    probability = np.zeros(n * (n + 1) // 2 + 1)
    probability[0] = 1.0
    for rank in range(1, n + 1):
        probability[rank:] = (probability[rank:] + probability[: len(probability) - rank]) / 2
        probability[:rank] /= 2
    return int(np.searchsorted(np.cumsum(probability), 0.025, side="right"))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted by Holm's step-down method (Scand J Stat 1979;6:65).

    NaN (no test possible) stays NaN and is not counted.
    """
    adjusted = [_NAN] * len(p_values)
    known = sorted((p, index) for index, p in enumerate(p_values) if p == p)
    highest = 0.0
    for rank, (p, index) in enumerate(known):
        highest = max(highest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = highest
    return adjusted


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """P-values times their number, at most 1; NaN stays NaN and is not counted."""
    count = sum(p == p for p in p_values)
    return [min(1.0, p * count) if p == p else p for p in p_values]
