"""Summary numbers of a click curve, which is a metric after k = 0, 1, 2, ... clicks."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sammed3d_ft.errors import InputError


def click_curve_area(clicks: Sequence[int], values: Sequence[float]) -> float:
    """Area under a metric over the number of clicks, by the trapezoidal rule; over steps 0 to 10, a Dice of 1 gives 10.

    Args:
        clicks: (n,) numbers of clicks, increasing, at least two.
        values: (n,) the metric after that many clicks.

    Returns:
        The area; NaN if a value is NaN.

    Raises:
        InputError: fewer than two points, clicks that do not increase, or sequences of different lengths.
    """
    k, metric = np.asarray(clicks, np.float64), np.asarray(values, np.float64)
    if k.shape != metric.shape or k.ndim != 1:
        raise InputError(f"click curve: got {k.size} numbers of clicks and {metric.size} values, expected one each")
    if (np.diff(k) <= 0).any():
        raise InputError(f"click curve: numbers of clicks {list(clicks)} must increase")
    if len(k) < 2:
        raise InputError(f"the area under a click curve needs at least two points, got {len(k)}")
    return float(np.sum(np.diff(k) * (metric[1:] + metric[:-1]) / 2))
