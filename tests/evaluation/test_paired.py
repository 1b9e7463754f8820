"""Paired tests against hand-computed values."""

from __future__ import annotations

import math

import pytest

from prompts.errors import InputError
from sammed3d_ft.evaluation.paired import bonferroni, holm, paired_test


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
    with pytest.raises(InputError, match="of 1 and 2 values"):
        paired_test([1.0], [1.0, 2.0])


def test_holm_steps_down() -> None:
    """0.01 * 4, 0.02 * 3, then 0.03 * 2 = 0.06, and 0.04 which may not fall below it."""
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    adjusted = holm([float("nan"), 0.01])
    assert math.isnan(adjusted[0])
    assert adjusted[1] == pytest.approx(0.01)


def test_bonferroni_multiplies() -> None:
    assert bonferroni([0.01, 0.4, 0.02]) == pytest.approx([0.03, 1.0, 0.06])
