"""Click curves against areas computed by hand."""

from __future__ import annotations

import math

import pytest

from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.click_curves import click_curve_area


def test_area_by_hand() -> None:
    """0.2 and 0.6 one click apart: 0.4; 0.6 and 0.8 two apart: 1.4; together 1.8 over 3 clicks."""
    assert click_curve_area([0, 1, 3], [0.2, 0.6, 0.8]) == pytest.approx(1.8)
    assert click_curve_area(range(11), [1.0] * 11) == 10
    assert math.isnan(click_curve_area([1, 2], [0.5, float("nan")]))


def test_refusals() -> None:
    with pytest.raises(InputError, match="must increase"):
        click_curve_area([1, 1], [0.1, 0.2])
    with pytest.raises(InputError, match="at least two points"):
        click_curve_area([1], [0.1])
    with pytest.raises(InputError, match="expected one each"):
        click_curve_area([1, 2], [0.1])
