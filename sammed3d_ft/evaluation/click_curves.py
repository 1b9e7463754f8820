"""Summary numbers of a click curve, which is a metric after k = 0, 1, 2, ... clicks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sammed3d_ft.errors import InputError


def click_curve_area(clicks: Sequence[int], values: Sequence[float], *, normalised: bool = True) -> float:
    """Area under a metric over the number of clicks, by the trapezoidal rule.

    Normalised, the area is divided by the range of clicks, which gives the mean height of the curve: a constant Dice of
    1 gives 1. Not normalised (autoPET IV, steps 0 to 10), a constant Dice of 1 gives 10.

    Args:
        clicks: (n,) numbers of clicks, increasing, at least two.
        values: (n,) the metric after that many clicks.
        normalised: divide by the last number of clicks minus the first.

    Returns:
        The area; NaN if a value is NaN.

    Raises:
        InputError: fewer than two points, clicks that do not increase, or sequences of different lengths.
    """
    k, metric = _curve(clicks, values)
    if len(k) < 2:
        raise InputError(f"the area under a click curve needs at least two points, got {len(k)}")
    area = float(np.sum(np.diff(k) * (metric[1:] + metric[:-1]) / 2))
    return area / float(k[-1] - k[0]) if normalised else area


def clicks_to_reach(clicks: Sequence[int], values: Sequence[float], target: float) -> float:
    """The smallest number of clicks after which the metric is at least ``target``; infinity if it never is.

    There is no interpolation, since clicks are whole. A NaN does not reach the target.

    Raises:
        InputError: as for `click_curve_area`, except that one point is enough.
    """
    k, metric = _curve(clicks, values)
    reached = np.flatnonzero(metric >= target)
    return float(k[reached[0]]) if len(reached) else math.inf


def _curve(clicks: Sequence[int], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    k, metric = np.asarray(clicks, np.float64), np.asarray(values, np.float64)
    if k.shape != metric.shape or k.ndim != 1 or not len(k):
        raise InputError(f"click curve: got {k.size} numbers of clicks and {metric.size} values, expected one each")
    if (np.diff(k) <= 0).any():
        raise InputError(f"click curve: numbers of clicks {list(clicks)} must increase")
    return k, metric
