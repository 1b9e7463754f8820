"""Curves and projections: positions of what is drawn, and the written PNG."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from sammed3d_ft.errors import InputError
from sammed3d_ft.figures.curves import curves_figure, draw_training_curves, read_curves
from sammed3d_ft.figures.mip import draw_mip, mip_figure


def _write(path: Path, *entries: object) -> None:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def test_curves_are_drawn_as_logged(tmp_path: Path) -> None:
    _write(
        tmp_path / "metrics.jsonl",
        {"step": 1, "epoch": 0, "train/loss": 2.0},
        {"step": 2, "epoch": 0, "train/loss": 1.5, "train/dice": 0.2},
        {"step": 2, "val/dice@1": 0.4, "val/dice@10": 0.6},
        {"step": 4, "val/dice@1": 0.5, "val/dice@10": 0.55, "val/dice@5": float("nan")},
    )
    curves = read_curves(tmp_path / "metrics.jsonl")
    assert "val/dice@5" not in curves
    loss, dice = curves_figure(curves, tmp_path).axes
    np.testing.assert_array_equal(loss.lines[0].get_xydata(), [[1, 2.0], [2, 1.5]])
    np.testing.assert_array_equal(dice.lines[0].get_xydata(), [[2, 0.4], [4, 0.5]])
    np.testing.assert_array_equal(dice.lines[1].get_xydata(), [[2, 0.6], [4, 0.55]])
    labels = [text.get_text() for text in dice.get_legend().get_texts()]
    assert labels == ["1 click (best 0.500 at step 4)", "10 clicks (best 0.600 at step 2)"]


def test_smoothed_loss_looks_back_only(tmp_path: Path) -> None:
    values = np.random.default_rng(0).random(60)
    _write(tmp_path / "m.jsonl", *({"step": s, "train/loss": v} for s, v in enumerate(values)))
    loss, _ = curves_figure(read_curves(tmp_path / "m.jsonl"), tmp_path).axes
    expected = [values[max(0, i - 2) : i + 1].mean() for i in range(60)]  # 5 % of 60 steps
    np.testing.assert_allclose(loss.lines[1].get_ydata(), expected, rtol=1e-12)


def test_resumed_run_and_cut_off_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    _write(path, {"step": 1, "train/loss": 3.0}, {"step": 2, "train/loss": 9.0}, {"step": 2, "train/loss": 2.0})
    with path.open("a") as file:
        file.write('{"step": 3, "train/lo')
    steps, values = read_curves(path)["train/loss"]
    assert steps.tolist() == [1, 2]
    assert values.tolist() == [3.0, 2.0]
    assert "line 4" in caplog.text


def test_curves_png_and_refusals(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        draw_training_curves(tmp_path)
    _write(tmp_path / "metrics.jsonl", {"step": 1, "lr": 1e-4})
    with pytest.raises(InputError, match="neither train/loss nor"):
        draw_training_curves(tmp_path)
    _write(tmp_path / "metrics.jsonl", {"step": 1, "train/loss": 1.0})
    out = draw_training_curves(tmp_path)
    assert out == tmp_path / "curves.png"
    assert imread(out).shape[:2] == (600, 1500)


def test_mip_shows_right_on_the_left_anterior_on_the_left_and_head_up() -> None:
    pet = np.zeros((6, 5, 4), np.float32)
    pet[5, 4, 3] = 7.0  # right, anterior, superior
    coronal, sagittal = mip_figure(pet, (2.0, 3.0, 4.0)).axes[:2]
    for axes, columns, width_mm in ((coronal, 6, 12.0), (sagittal, 5, 15.0)):
        image = axes.images[0]
        shown = image.get_array()
        assert shown.shape == (4, columns)
        assert shown[3, 0] == 7.0  # with the origin below: up and left
        assert image.origin == "lower"
        assert image.get_extent() == [0.0, width_mm, 0.0, 16.0]
        assert axes.get_aspect() == 1.0  # a millimetre is as long in both directions
        assert image.get_cmap().name == "gray_r"
        assert image.get_clim() == (0.0, 10.0)


def test_mip_outline_follows_the_voxel_edges() -> None:
    pet = np.zeros((6, 5, 4), np.float32)
    truth, prediction = np.zeros(pet.shape, bool), np.zeros(pet.shape, bool)
    truth[1, 2, 1:3] = True  # x 1 of 6 voxels of 2 mm: seen from the front at 8 to 10 mm from the left
    prediction[0, 0, 0] = True  # at the border: still a closed outline
    coronal = mip_figure(pet, (2.0, 3.0, 4.0), truth, prediction).axes[0]
    truth_outline, prediction_outline = (c.get_paths()[0].vertices for c in coronal.collections)
    np.testing.assert_allclose(truth_outline.min(axis=0), [8, 4], atol=0.3)
    np.testing.assert_allclose(truth_outline.max(axis=0), [10, 12], atol=0.3)
    np.testing.assert_allclose(prediction_outline.min(axis=0), [10, 0], atol=0.3)
    np.testing.assert_allclose(prediction_outline.max(axis=0), [12, 4], atol=0.3)


def test_mip_png_and_refusals(tmp_path: Path) -> None:
    pet = np.random.default_rng(0).random((8, 6, 20), dtype=np.float32)
    out = draw_mip(pet, (4.0, 4.0, 3.0), tmp_path / "mip.png", pet > 0.9, np.zeros(pet.shape, bool), title="A")
    assert imread(out).shape[0] == 1200
    with pytest.raises(InputError, match="prediction has shape"):
        mip_figure(pet, (4.0, 4.0, 3.0), None, np.zeros((8, 6, 19), bool))


def test_a_slab_of_few_slices_keeps_to_a_page() -> None:
    mask = np.zeros((40, 40, 2), bool)
    mask[10:20, 10:20] = True
    coronal = mip_figure(None, (5.0, 5.0, 1.0), mask).axes[0]  # 200 mm wide twice, 2 mm high
    assert coronal.figure.get_size_inches().max() <= 20
    assert coronal.get_aspect() == 1.0


def test_places_are_marked_where_their_voxel_is_drawn() -> None:
    pet = np.zeros((6, 5, 4), np.float32)
    pet[4, 1, 2] = 7.0
    coronal, sagittal = mip_figure(pet, (2.0, 3.0, 4.0), places_vox={"12": (4, 1, 2)}).axes[:2]
    for axes in (coronal, sagittal):
        (mark,) = axes.lines
        image = axes.images[0]
        left, right, bottom, top = image.get_extent()
        rows, columns = np.unravel_index(np.argmax(image.get_array()), image.get_array().shape)
        height, width = image.get_array().shape
        np.testing.assert_allclose(mark.get_xdata(), left + (columns + 0.5) * (right - left) / width)
        np.testing.assert_allclose(mark.get_ydata(), bottom + (rows + 0.5) * (top - bottom) / height)
        assert "12" in [text.get_text() for text in axes.texts]
