"""Paired tests against hand-computed values."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy.stats import wilcoxon

from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.paired import _interval_rank, bonferroni, hodges_lehmann, holm, paired_test


def test_all_pairs_in_one_direction() -> None:
    """Five pairs, all positive, no ties: the two most extreme of 2^5 sign patterns, p = 2 / 32."""
    found = paired_test([0.5, 0.6, 0.7, 0.8, 0.9], [0.49, 0.58, 0.67, 0.76, 0.85])
    assert found.n == 5
    assert found.p == pytest.approx(2 / 32)
    assert found.mean_difference == pytest.approx(0.03)
    assert found.median_difference == pytest.approx(0.03)


def test_an_undecided_case() -> None:
    """Differences 1, -2, 3: W+ = 4, W- = 2. Of 8 sign patterns, 3 have W- <= 2: p = 2 * 3 / 8."""
    assert paired_test([1, 0, 3], [0, 2, 0]).p == pytest.approx(0.75)


def test_undefined_pairs_are_left_out_and_equal_ones_say_nothing() -> None:
    nan = float("nan")
    found = paired_test([nan, 0.5, 0.6, 0.7, 0.8, 0.9], [0.9, 0.49, 0.58, 0.67, 0.76, 0.85])
    assert (found.n, found.p) == (5, pytest.approx(2 / 32))
    assert paired_test([0.5, 0.6], [0.5, 0.6]).p == 1
    assert math.isnan(paired_test([nan], [1.0]).p)
    with pytest.raises(InputError, match="got 1 and 2 values"):
        paired_test([1.0], [1.0, 2.0])


def test_equals_scipy_with_ties_and_zeros() -> None:
    rng = np.random.default_rng(3)
    for n in (6, 13, 20, 60):
        first, second = rng.integers(0, 6, n) / 10, rng.integers(0, 6, n) / 10
        expected = wilcoxon(first - second, zero_method="zsplit").pvalue
        assert paired_test(first.tolist(), second.tolist()).p == pytest.approx(float(expected), abs=1e-12)


def test_zeros_split_their_ranks() -> None:
    """Differences 0, 0, 1, 2: ranks 1.5 1.5 3 4, so W+ = 7 + 3/2; dropped, both would be left, at the same side.

    Of the sign patterns of 1 and 2 the two where both agree are as extreme: p = 2 / 4, whatever the zeros' signs.
    """
    assert paired_test([0.0, 0.0, 1.0, 2.0], [0.0] * 4).p == pytest.approx(0.5)
    many = paired_test([0.0] * 20 + [1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 25).p
    assert many > paired_test([1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5).p  # ties speak for equality


def test_hodges_lehmann_equals_a_published_example() -> None:
    """Hollander and Wolfe 1973, depression scale of nine patients before and after a tranquilliser.

    Estimate -0.46; their interval of 96.1 % is -0.786 to -0.010, the smallest that reaches 95 %.
    """
    before = np.array([1.83, 0.50, 1.62, 2.48, 1.68, 1.88, 1.55, 3.06, 1.30])
    after = np.array([0.878, 0.647, 0.598, 2.05, 1.06, 1.29, 1.06, 3.14, 1.29])
    estimate, low, high = hodges_lehmann(after - before)
    assert estimate == pytest.approx(-0.46)
    assert (low, high) == (pytest.approx(-0.786), pytest.approx(-0.010))
    assert paired_test(after.tolist(), before.tolist()).hodges_lehmann == pytest.approx(-0.46)


def test_hodges_lehmann_by_brute_force() -> None:
    rng = np.random.default_rng(1)
    for n in (1, 2, 5, 8):
        values = rng.normal(size=n)
        means = [(values[i] + values[j]) / 2 for i in range(n) for j in range(i, n)]
        assert hodges_lehmann(values)[0] == pytest.approx(float(np.median(means)))
    assert math.isnan(hodges_lehmann(np.arange(5.0))[1])  # 2 / 2^5 is more than 5 %
    assert hodges_lehmann(np.arange(6.0))[1:] == (0, 5)
    assert math.isnan(hodges_lehmann(np.array([]))[0])


@pytest.mark.parametrize("n", [4, 6, 9, 12])
def test_rank_of_the_interval_by_all_sign_patterns(n: int) -> None:
    sums = sorted(sum(pattern) for pattern in itertools.product(*((0, rank) for rank in range(1, n + 1))))
    k = 0
    while sum(value < k + 1 for value in sums) <= 0.025 * 2**n:
        k += 1
    assert _interval_rank(n) == k


def test_rank_of_the_interval_for_many_pairs_is_close_to_the_exact_one(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = _interval_rank(100)
    monkeypatch.setattr("sammed3d_ft.evaluation.paired._EXACT_UP_TO", 50)
    assert exact - 3 <= _interval_rank(100) <= exact  # a little wider, never narrower


def test_holm_steps_down() -> None:
    """0.01 * 4, 0.02 * 3, then 0.03 * 2 = 0.06, and 0.04 which may not fall below it."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    adjusted = holm([float("nan"), 0.01])
    assert math.isnan(adjusted[0])
    assert adjusted[1] == pytest.approx(0.01)


def test_bonferroni_multiplies() -> None:
    assert bonferroni([0.01, 0.4, 0.02]) == pytest.approx([0.03, 1.0, 0.06])
