"""Plots of one evaluation: agreement of quantities, Dice by lesion size, detection curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

_POINTS, _LINE = "#0072b2", "#d55e00"
_JITTER = 0.3  # largest sideways shift of a point

Curve = tuple[Sequence[float], Sequence[float]]
"""Horizontal and vertical values, of equal length."""


def agreement_figure(
    truth: np.ndarray,
    pred: np.ndarray,
    label: str,
    difference: tuple[float, float, float],
    ratio: tuple[float, float, float],
) -> Figure:
    """Three plots of one quantity: prediction against ground truth, and Bland-Altman plots of difference and ratio.

    Args:
        truth: (n,) the quantity in the ground truth, one value per patient.
        pred: (n,) the same in the prediction.
        label: name and unit of the quantity.
        difference: bias, lower and upper limit of agreement of prediction minus ground truth; NaN is not drawn.
        ratio: the same for prediction / ground truth.
    """
    figure = Figure(figsize=(12, 3.8), layout="constrained")
    scatter, differences, ratios = figure.subplots(1, 3)
    mean = (truth + pred) / 2

    _points(scatter, truth, pred)
    ends = [min(scatter.get_xlim()[0], scatter.get_ylim()[0]), max(scatter.get_xlim()[1], scatter.get_ylim()[1])]
    scatter.plot(ends, ends, color="0.7", linewidth=1, zorder=0)
    scatter.set(title="prediction vs. ground truth", xlabel=f"{label}, ground truth", ylabel=f"{label}, prediction")
    scatter.set(xlim=ends, ylim=ends)

    _points(differences, mean, pred - truth)
    _limits(differences, difference, 0.0)
    differences.set(title="difference", xlabel=f"{label}, mean of both", ylabel="prediction - ground truth")

    positive = (truth > 0) & (pred > 0)
    _points(ratios, mean[positive], pred[positive] / truth[positive])
    ratios.set_yscale("log")
    _limits(ratios, ratio, 1.0)
    ratios.set(title="ratio", xlabel=f"{label}, mean of both", ylabel="prediction / ground truth")
    ratios.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ratios.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ratios.yaxis.set_minor_formatter(NullFormatter())
    low, high = ratios.get_ylim()
    ratios.set_ylim(min(low, 0.45), max(high, 2.2))  # so that at least two labelled ticks are visible
    return figure


def size_figure(dice: Mapping[str, Sequence[float]]) -> Figure:
    """Dice of every ground-truth lesion with its match (0 if missed) by size class, with median and number found.

    Args:
        dice: by name of the size class, one value per ground-truth lesion, 0 if unmatched.
    """
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    generator = np.random.default_rng(0)  # seeded, so that the figure is reproducible
    for place, values in enumerate(dice.values()):
        shift = generator.uniform(-_JITTER, _JITTER, len(values))
        axes.scatter(place + shift, values, s=14, color=_POINTS, alpha=0.6, linewidths=0, clip_on=False, zorder=3)
        if len(values):
            middle = float(np.median(np.asarray(values)))
            axes.hlines(middle, place - 0.4, place + 0.4, color=_LINE, linewidth=2.2, zorder=2)
    names = [
        f"{name}\n{len(values)} lesions\n{sum(value > 0 for value in values)} found" for name, values in dice.items()
    ]
    axes.set_xticks(range(len(names)), names)
    axes.set(ylabel="Dice with the matched prediction", ylim=(-0.02, 1.02), xlim=(-0.6, len(names) - 0.4))
    axes.plot([], [], color=_LINE, linewidth=2.2, label="median, missed lesions as 0")
    figure.legend(loc="outside upper right", frameon=False)
    return figure


def detection_figure(curves: Mapping[str, Curve], froc: Curve | None = None) -> Figure:
    """Detection scores by the IoU threshold of a match and, if given, the FROC curve beside them.

    Args:
        curves: by score (F1, ...): IoU thresholds, and the score at each.
        froc: false positives per case, and lesion sensitivity.
    """
    figure = Figure(figsize=(12 if froc else 7, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if froc else 1, squeeze=False)[0]
    for (name, (x, y)), marker in zip(curves.items(), "osD^v<>", strict=False):
        panels[0].plot(x, y, marker=marker, label=name, clip_on=False, markersize=5)
    panels[0].set(xlabel="IoU threshold of a match", ylabel="pooled over all lesions", ylim=(0, 1), xlim=(0, None))
    panels[0].legend(frameon=False)
    if froc:
        panels[1].step(*froc, where="post", color=_POINTS)
        panels[1].set(xlabel="false positives per case", ylabel="lesion sensitivity", ylim=(0, 1), xlim=(0, None))
        panels[1].set_title("FROC")
    return figure


def _points(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    axes.scatter(x, y, s=18, color=_POINTS, alpha=0.7, linewidths=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", nbins=5)


def _limits(axes: Axes, of: tuple[float, float, float], equality: float) -> None:
    """Lines at equality, bias and limits of agreement; bias and limits are labelled with their values."""
    axes.axhline(equality, color="0.7", linewidth=1)
    bias, low, high = of
    for value, style in ((bias, "solid"), (low, "dashed"), (high, "dashed")):
        if math.isfinite(value):
            axes.axhline(value, color=_LINE, linestyle=style, linewidth=1.2)
            axes.annotate(
                f"{value:.3g}",
                (1, value),
                xycoords=axes.get_yaxis_transform(),
                xytext=(2, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
                color=_LINE,
            )
