"""Click curves against areas computed by hand."""

from __future__ import annotations

import math

import pytest

from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.click_curves import click_curve_area, clicks_to_reach


def test_area_by_hand() -> None:
    """0.2 and 0.6 one click apart: 0.4; 0.6 and 0.8 two apart: 1.4; together 1.8 over 3 clicks."""
    assert click_curve_area([0, 1, 3], [0.2, 0.6, 0.8], normalised=False) == pytest.approx(1.8)
    assert click_curve_area([0, 1, 3], [0.2, 0.6, 0.8]) == pytest.approx(0.6)
    assert click_curve_area(range(11), [1.0] * 11, normalised=False) == 10
    assert click_curve_area(range(11), [1.0] * 11) == 1
    assert math.isnan(click_curve_area([1, 2], [0.5, float("nan")]))


def test_clicks_to_reach_a_dice() -> None:
    assert clicks_to_reach([1, 3, 5, 10], [0.5, 0.79, 0.8, 0.7], 0.8) == 5
    assert clicks_to_reach([1, 3], [0.9, 0.2], 0.8) == 1  # once reached is reached
    assert clicks_to_reach([1, 3], [0.5, float("nan")], 0.8) == math.inf


def test_refusals() -> None:
    with pytest.raises(InputError, match="must increase"):
        click_curve_area([1, 1], [0.1, 0.2])
    with pytest.raises(InputError, match="at least two points"):
        click_curve_area([1], [0.1])
    with pytest.raises(InputError, match="expected one each"):
        clicks_to_reach([1, 2], [0.1], 0.5)
