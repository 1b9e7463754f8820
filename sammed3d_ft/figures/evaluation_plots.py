"""Plots of one evaluation: agreement of quantities, Dice by lesion size, detection curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

_POINTS, _LINE = "#0072b2", "#d55e00"
_JITTER = 0.3  # largest sideways shift of a point within its class

Curve = tuple[Sequence[float], Sequence[float]]
"""Horizontal and vertical values of equal number."""


def agreement_figure(
    truth: np.ndarray,
    pred: np.ndarray,
    label: str,
    difference: tuple[float, float, float],
    ratio: tuple[float, float, float],
) -> Figure:
    """Three views of one quantity: prediction over truth; difference over mean; ratio over mean (Bland-Altman).

    Args:
        truth: (n,) the quantity in the truth, one value per patient.
        pred: (n,) in the prediction.
        label: name and unit of the quantity.
        difference: bias, lower and upper limit of agreement of prediction minus truth; NaN is not drawn.
        ratio: the same of prediction / truth.
    """
    figure = _figure(12, 3.8)
    scatter, differences, ratios = figure.subplots(1, 3)
    mean = (truth + pred) / 2

    _points(scatter, truth, pred)
    ends = [min(scatter.get_xlim()[0], scatter.get_ylim()[0]), max(scatter.get_xlim()[1], scatter.get_ylim()[1])]
    scatter.plot(ends, ends, color="0.7", linewidth=1, zorder=0)
    scatter.set(title="prediction over truth", xlabel=f"{label}, truth", ylabel=f"{label}, prediction")
    scatter.set(xlim=ends, ylim=ends)

    _points(differences, mean, pred - truth)
    _limits(differences, difference, 0.0)
    differences.set(title="difference", xlabel=f"mean of both, {label}", ylabel="prediction - truth")

    positive = (truth > 0) & (pred > 0)
    _points(ratios, mean[positive], pred[positive] / truth[positive])
    ratios.set_yscale("log")
    _limits(ratios, ratio, 1.0)
    ratios.set(title="ratio", xlabel=f"mean of both, {label}", ylabel="prediction / truth")
    ratios.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    ratios.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ratios.yaxis.set_minor_formatter(NullFormatter())
    low, high = ratios.get_ylim()
    ratios.set_ylim(min(low, 0.45), max(high, 2.2))  # so that two labelled ticks are in sight
    return figure


def size_figure(dice: Mapping[str, Sequence[float]]) -> Figure:
    """Dice of every true lesion with its match by size class, missed ones at 0, with median and share found.

    Args:
        dice: by name of the size class, one value per true lesion, 0 for one that was not matched.
    """
    figure = _figure(8, 4.2)
    axes = figure.subplots()
    generator = np.random.default_rng(0)  # the same picture from the same numbers
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
    """Detection scores over the IoU that a match needs; beside it, where there is one, the FROC curve.

    Args:
        curves: by score (F1, ...), IoU thresholds and the score at each.
        froc: false alarms per case and lesion sensitivity.
    """
    figure = _figure(12 if froc else 7, 4.2)
    panels = figure.subplots(1, 2 if froc else 1, squeeze=False)[0]
    for (name, (x, y)), marker in zip(curves.items(), "osD^v<>", strict=False):
        panels[0].plot(x, y, marker=marker, label=name, clip_on=False, markersize=5)
    panels[0].set(xlabel="IoU a match needs, at least", ylabel="pooled over all lesions", ylim=(0, 1), xlim=(0, None))
    panels[0].legend(frameon=False)
    if froc:
        panels[1].step(*froc, where="post", color=_POINTS)
        panels[1].set(xlabel="false alarms per case", ylabel="lesion sensitivity", ylim=(0, 1), xlim=(0, None))
        panels[1].set_title("FROC")
    return figure


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _points(axes: Axes, x: np.ndarray, y: np.ndarray) -> None:
    axes.scatter(x, y, s=18, color=_POINTS, alpha=0.7, linewidths=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.locator_params(axis="x", nbins=5)


def _limits(axes: Axes, of: tuple[float, float, float], equality: float) -> None:
    """Lines at no difference, at the bias and at the limits of agreement, the latter two with their values."""
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
