"""Figures that compare methods: the given numbers are drawn, and a method keeps its colour."""

from __future__ import annotations

import pytest
from matplotlib.colors import to_rgba

from sammed3d_ft.figures.benchmark import boxes_figure, click_curves_figure, size_figure

ROWS = ["unet", "sam", "rule"]
NAN = float("nan")


def test_click_curves() -> None:
    curves = {"sam": {5: (0.8, 0.7, 0.85), 1: (0.6, 0.5, 0.7)}, "rule": {1: (0.4, NAN, NAN), 5: (0.5, 0.4, 0.6)}}
    (axes,) = click_curves_figure(curves, {"unet": 0.55}, "Dice", "clicks per lesion", ROWS).axes
    solid = [line for line in axes.lines if line.get_marker() in "os"]
    assert [line.get_ydata().tolist() for line in solid] == [[0.6, 0.8], [0.4, 0.5]]
    assert [round(float(line.get_xdata()[0])) for line in solid] == [1, 1]
    level = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert [line.get_ydata()[0] for line in level] == [0.55]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["sam", "rule", "unet (no clicks)"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("clicks per lesion", "mean Dice")


def test_boxes_of_patients() -> None:
    values = {"rule": [0.2, NAN, 0.4], "unet": [0.1, 0.5, 0.9], "sam": [NAN, NAN, NAN]}
    (axes,) = boxes_figure(values, "Dice", ["rule"], ROWS).axes
    assert [patch.get_hatch() or "" for patch in axes.patches] == ["", "///"]
    means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "D"]
    assert means == pytest.approx([0.3, 0.5])
    points = [line.get_xdata().tolist() for line in axes.lines if line.get_marker() == "."]
    assert points == [[0.2, 0.4], [0.1, 0.5, 0.9]]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["rule", "unet", "sam"]


def test_a_row_keeps_its_colour() -> None:
    boxes = boxes_figure({"rule": [0.2, 0.4]}, "Dice", [], ROWS).axes[0].patches[0].get_facecolor()
    curves = click_curves_figure({"rule": {1: (0.4, 0.3, 0.5)}}, {}, "Dice", "clicks", ROWS).axes[0].lines[0]
    sizes = size_figure({"small": {"rule": (3, (0.4, 0.3, 0.5), (0.2, NAN, NAN))}}, ROWS).axes[0].lines[0]
    assert to_rgba(curves.get_color())[:3] == boxes[:3] == to_rgba(sizes.get_color())[:3]


def test_lesions_by_size() -> None:
    small, large = (7, (0.4, 0.3, 0.5), (0.2, 0.1, 0.3)), (2, (1, 1, 1), (0.9, 0.8, 1))
    estimates = {"small": {"unet": small}, "large": {"unet": large}}
    left, right = size_figure(estimates, ROWS).axes
    assert [left.get_title(), right.get_title()] == ["recall", "mean lesion Dice"]
    assert list(left.lines[0].get_ydata()) == pytest.approx([0.4, 1])
    assert list(right.lines[0].get_ydata()) == pytest.approx([0.2, 0.9])
    assert [label.get_text() for label in left.get_xticklabels()] == ["small\nn = 7", "large\nn = 2"]
