"""Figures that compare the methods of a benchmark: click curves, box plots over patients, results by lesion size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

Estimate = Sequence[float]
"""A mean, and the lower and upper bound of its interval (NaN if not defined)."""

_MARKERS = "osD^vP*X<>"
_NO_CLICKS = " (no clicks)"


def click_curves_figure(
    curves: Mapping[str, Mapping[int, Estimate]],
    flat: Mapping[str, float],
    metric: str,
    unit: str,
    rows: Sequence[str],
) -> Figure:
    """A metric against the number of clicks, one line per method.

    Args:
        curves: estimates by method and number of clicks.
        flat: means of methods without clicks, drawn as dashed horizontal lines.
        metric: the metric's name.
        unit: label of the horizontal axis.
        rows: all methods of the benchmark; their order sets the colours of all figures.
    """
    figure, axes = _figure(10, 5)
    colours = _colours(rows)
    clicks = sorted({k for curve in curves.values() for k in curve})
    step = float(np.diff(clicks).min()) if len(clicks) > 1 else 1.0
    for number, (row, curve) in enumerate(curves.items()):
        k = np.array(sorted(curve))
        mean, low, high = np.array([curve[at] for at in k], np.float64).T
        # Shifted sideways, so that intervals do not hide each other.
        shift = 0.35 * step * (number - (len(curves) - 1) / 2) / len(curves)
        style: dict[str, Any] = {"color": colours[row], "marker": _MARKERS[number % len(_MARKERS)], "markersize": 5}
        errors = np.abs(np.nan_to_num(np.stack([mean - low, high - mean])))
        axes.errorbar(k + shift, mean, errors, label=row, linewidth=1.5, elinewidth=0.8, capsize=2, **style)
    for row, value in flat.items():
        axes.axhline(value, color=colours[row], linestyle="--", linewidth=1.2, label=f"{row}{_NO_CLICKS}")
    axes.set(xlabel=unit, ylabel=f"mean {metric}", xticks=clicks)
    _legend_beside(axes)
    return figure


def boxes_figure(
    values: Mapping[str, Sequence[float]], metric: str, prompted: Sequence[str], rows: Sequence[str]
) -> Figure:
    """A metric's distribution over patients, with a box per method and a point per patient.

    Args:
        values: by method, one value per patient; NaN is left out.
        metric: the metric's name.
        prompted: the methods that were given clicks; the boxes of the others are hatched.
        rows: all methods of the benchmark.
    """
    figure, axes = _figure(10, 1.2 + 0.42 * len(values))
    colours = _colours(rows)
    for place, (row, of) in enumerate(values.items()):
        known = np.array([value for value in of if value == value])
        if not len(known):
            continue
        box = axes.boxplot(
            known, positions=[place], orientation="horizontal", widths=0.62, showfliers=False, patch_artist=True
        )
        for patch in box["boxes"]:
            patch.set(facecolor=(*colours[row][:3], 0.35), edgecolor="0.3", hatch="" if row in prompted else "///")
        for line in (*box["medians"], *box["whiskers"], *box["caps"]):
            line.set_color("0.2")
        # Vertical jitter that depends only on a point's index, so that the figure is reproducible.
        heights = place + 0.22 * np.sin(2.4 * np.arange(len(known)))
        axes.plot(known, heights, ".", color="0.25", markersize=3.5, alpha=0.7)
        axes.plot(known.mean(), place, "D", color="white", markeredgecolor="black", markersize=5.5)
    axes.set_yticks(range(len(values)), list(values))
    axes.invert_yaxis()
    axes.set_ylim(len(values) - 0.4, -0.6)
    axes.set_xlabel(f"{metric}, per patient")
    return figure


def size_figure(by_size: Mapping[str, Mapping[str, tuple[int, Estimate, Estimate]]], rows: Sequence[str]) -> Figure:
    """Recall and mean Dice of lesions, with a group per size class and a marker per method.

    Args:
        by_size: by class and method: number of lesions, recall, and Dice.
        rows: all methods of the benchmark.
    """
    shown = [row for row in rows if any(row in of for of in by_size.values())]
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    colours = _colours(rows)
    for axes, which, title in ((left, 1, "recall"), (right, 2, "mean lesion Dice")):
        for number, row in enumerate(shown):
            places, means, errors = [], [], []
            for place, of in enumerate(by_size.values()):
                if row in of:
                    estimate = of[row][which]
                    assert not isinstance(estimate, int)
                    mean, low, high = estimate
                    places.append(place + 0.75 * (number - (len(shown) - 1) / 2) / len(shown))
                    means.append(mean)
                    errors.append(np.nan_to_num([mean - low, high - mean]))
            style: dict[str, Any] = {"color": colours[row], "marker": _MARKERS[number % len(_MARKERS)], "markersize": 6}
            axes.errorbar(places, means, np.abs(errors).T, linestyle="none", capsize=2, label=row, **style)
        axes.set_title(title)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlim(-0.5, len(by_size) - 0.5)
        labels = [f"{name}\nn = {max(count for count, _, _ in of.values())}" for name, of in by_size.items()]
        axes.set_xticks(range(len(by_size)), labels)
        for place in range(len(by_size) - 1):
            axes.axvline(place + 0.5, color="0.85", linewidth=0.8)
        _plain(axes)
    _legend_beside(right)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    _plain(axes)
    return figure, axes


def _plain(axes: Axes) -> None:
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(6))


def _legend_beside(axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    # Lines with intervals first; matplotlib would list them after plain ones.
    order = sorted(range(len(labels)), key=lambda number: labels[number].endswith(_NO_CLICKS))
    axes.legend(
        [handles[number] for number in order],
        [labels[number] for number in order],
        frameon=False,
        loc="center left",
        bbox_to_anchor=(1.01, 0.5),
    )


def _colours(rows: Sequence[str]) -> dict[str, tuple[float, float, float, float]]:
    """A colour for each method, the same in every figure of the same methods."""
    palette = colormaps["tab10" if len(rows) <= 10 else "tab20"]
    return {row: palette(number % palette.N) for number, row in enumerate(rows)}
