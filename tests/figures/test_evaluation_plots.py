"""Plots of an evaluation: every value is drawn where it belongs."""

from __future__ import annotations

import numpy as np
import pytest

from sammed3d_ft.errors import InputError
from sammed3d_ft.figures.evaluation_plots import agreement_figure, detection_figure, size_figure
from sammed3d_ft.figures.mip import mip_figure


def test_agreement_points_and_limits() -> None:
    truth, pred = np.array([1.0, 10.0, 0.0]), np.array([2.0, 5.0, 4.0])
    figure = agreement_figure(truth, pred, "TMTV (ml)", (0.5, -3.0, 4.0), (1.0, float("nan"), float("nan")))
    scatter, difference, ratio = figure.axes
    assert scatter.collections[0].get_offsets().tolist() == [[1, 2], [10, 5], [0, 4]]
    assert scatter.get_xlim() == scatter.get_ylim()  # so that equality is the diagonal
    assert difference.collections[0].get_offsets().tolist() == [[1.5, 1], [7.5, -5], [2, 4]]
    assert [line.get_ydata()[0] for line in difference.lines] == [0, 0.5, -3, 4]
    assert ratio.collections[0].get_offsets().tolist() == [[1.5, 2], [7.5, 0.5]]  # no ratio to nothing
    assert [line.get_ydata()[0] for line in ratio.lines] == [1, 1]  # limits that are not defined are not drawn
    assert ratio.get_yscale() == "log"


def test_sizes_show_every_lesion_and_the_median() -> None:
    figure = size_figure({"small": [0.0, 0.4, 0.8], "large": []})
    (axes,) = figure.axes
    points = axes.collections[0].get_offsets()
    assert points[:, 1].tolist() == [0.0, 0.4, 0.8]
    assert (abs(points[:, 0]) <= 0.3).all()
    median = axes.collections[1].get_segments()[0]
    assert median[:, 1].tolist() == [0.4, 0.4]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["small\n3 lesions\n2 found", "large\n0 lesions\n0 found"]


def test_detection_with_and_without_froc() -> None:
    curves = {"F1": ((0.1, 0.5), (0.8, 0.4)), "recall": ((0.1, 0.5), (0.7, 0.3))}
    (left, right) = detection_figure(curves, ([0.0, 2.0], [0.1, 0.6])).axes
    assert [line.get_ydata().tolist() for line in left.lines] == [[0.8, 0.4], [0.7, 0.3]]
    assert right.lines[0].get_xdata().tolist() == [0, 2]
    assert right.lines[0].get_drawstyle() == "steps-post"
    assert len(detection_figure(curves).axes) == 1


def test_masks_alone_are_projected_on_white() -> None:
    truth, prediction = np.zeros((6, 5, 4), bool), np.zeros((6, 5, 4), bool)
    truth[1, 2, 1:3] = True
    figure = mip_figure(None, (2.0, 3.0, 4.0), truth, prediction, title="case")
    coronal, sagittal = figure.axes  # and no colour bar
    assert not coronal.images
    assert coronal.get_xlim() == (0, 12)
    assert sagittal.get_xlim() == (0, 15)
    np.testing.assert_allclose(coronal.collections[0].get_paths()[0].vertices.min(axis=0), [8, 4], atol=0.3)
    with pytest.raises(InputError, match="a PET or a mask"):
        mip_figure(None, (2.0, 3.0, 4.0))
    with pytest.raises(InputError, match="prediction has shape"):
        mip_figure(None, (2.0, 3.0, 4.0), truth, prediction[:3])
