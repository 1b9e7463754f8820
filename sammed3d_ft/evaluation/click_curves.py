"""Figures of a click curve: a metric after k clicks, for k = 0, 1, 2, ..."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from prompts.errors import InputError


def click_curve_area(clicks: Sequence[int], values: Sequence[float], *, normalised: bool = True) -> float:
    """Area under a metric over the number of clicks, by the trapezoidal rule.

    Normalised it is divided by the span of clicks, so that it is the mean height of the curve: 1 for a Dice of 1
    throughout. As it stands (autoPET IV, steps 0 to 10) a Dice of 1 throughout gives 10.

    Args:
        clicks: (n,) numbers of clicks, rising, at least two.
        values: (n,) the metric after so many clicks.
        normalised: divide by the last number of clicks minus the first.

    Returns:
        The area; NaN if a value is NaN.

    Raises:
        InputError: fewer than two points, clicks that do not rise, or sequences of different lengths.
    """
    k, metric = _curve(clicks, values)
    if len(k) < 2:
        raise InputError(f"the area under a click curve needs two points or more, got {len(k)}")
    area = float(np.sum(np.diff(k) * (metric[1:] + metric[:-1]) / 2))
    return area / float(k[-1] - k[0]) if normalised else area


def clicks_to_reach(clicks: Sequence[int], values: Sequence[float], target: float) -> float:
    """The smallest number of clicks after which the metric is at least ``target``, infinite if it never is.

    Nothing is interpolated: a click is given or not. A NaN does not reach anything.

    Raises:
        InputError: as `click_curve_area`, save that one point is enough.
    """
    k, metric = _curve(clicks, values)
    reached = np.flatnonzero(metric >= target)
    return float(k[reached[0]]) if len(reached) else math.inf


def _curve(clicks: Sequence[int], values: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    k, metric = np.asarray(clicks, np.float64), np.asarray(values, np.float64)
    if k.shape != metric.shape or k.ndim != 1 or not len(k):
        raise InputError(f"a click curve of {k.size} numbers of clicks and {metric.size} values: one value each")
    if (np.diff(k) <= 0).any():
        raise InputError(f"numbers of clicks {list(clicks)}: they must rise")
    return k, metric
