"""Outlines and start masks that are not determined by the image."""

from __future__ import annotations

import cc3d
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sammed3d_ft.prompted.ambiguity import (
    START_INSIDE,
    START_OUTSIDE,
    component_at,
    draw_outline,
    draw_start,
    mask_logits,
    smooth_noise,
)


def ball(radius: float, size: int = 32) -> np.ndarray:
    index = np.stack(np.indices((size, size, size)), -1) - size // 2
    return (index**2).sum(-1) <= radius**2


@given(st.integers(0, 10_000), st.floats(0.5, 13.0))
@settings(max_examples=60, deadline=None)
def test_an_outline_is_one_piece_that_holds_the_click(seed: int, radius: float) -> None:
    rng = np.random.default_rng(seed)
    target = ball(radius)
    click = rng.permutation(np.argwhere(target))[0]
    outline = draw_outline(target, click, rng)
    assert outline.dtype == bool
    assert outline[tuple(click)]
    assert int(cc3d.connected_components(outline, connectivity=26).max()) == 1


def test_outlines_differ_from_the_lesion_as_far_as_a_reader_might() -> None:
    rng = np.random.default_rng(1)
    target, overlaps, sizes = ball(8), [], []
    for _ in range(60):
        outline = draw_outline(target, np.array([16, 16, 16]), rng)
        overlaps.append(2 * (outline & target).sum() / (outline.sum() + target.sum()))
        sizes.append(outline.sum() / target.sum())
    assert np.mean(np.array(overlaps) < 1) > 0.9
    assert 0.6 < np.median(overlaps) < 0.95
    assert min(sizes) < 0.7  # parts
    assert max(sizes) > 1.15  # wider ones


def test_what_is_too_small_stays_as_it_is() -> None:
    target = ball(1)
    assert np.array_equal(draw_outline(target, np.array([16, 16, 16]), np.random.default_rng(0)), target)


def test_start_masks_are_right_or_empty_or_wrong() -> None:
    rng = np.random.default_rng(2)
    target = ball(6)
    starts = [draw_start(target, np.array([16, 16, 16]), rng) for _ in range(300)]
    right = sum(np.array_equal(start, target) for start in starts) / 300
    empty = sum(not start.any() for start in starts) / 300
    assert 0.13 < right < 0.3
    assert 0.13 < empty < 0.27
    assert any((start & ~target).any() for start in starts)
    assert any((target & ~start).any() and start.any() for start in starts)


def test_the_logits_of_a_mask_by_hand() -> None:
    mask = torch.zeros(1, 8, 8, 8)
    mask[0, 0:2, 0:2, 0:2] = 1  # one low-resolution voxel, whole
    mask[0, 4:6, 0:2, 0:1] = 1  # one, half
    mask[0, 0, 4, 0] = 1  # one eighth of one
    logits = mask_logits(mask, 4)
    assert logits.shape == (1, 4, 4, 4)
    assert float(logits[0, 0, 0, 0]) == START_INSIDE
    assert float(logits[0, 2, 0, 0]) == 0
    assert float(logits[0, 0, 2, 0]) == pytest.approx(-0.75 * -START_OUTSIDE)
    assert float(logits[0, 3, 3, 3]) == START_OUTSIDE
    assert (mask_logits(torch.zeros(1, 8, 8, 8), 4) == START_OUTSIDE).all()


def test_a_lesion_smaller_than_a_low_resolution_voxel_is_seen() -> None:
    mask = torch.zeros(1, 8, 8, 8)
    mask[0, 3, 3, 3] = 1
    assert float(mask_logits(mask, 4).max()) == START_INSIDE


def test_the_component_at_a_voxel() -> None:
    mask = np.zeros((5, 5, 5), bool)
    mask[0, 0, 0] = mask[1, 1, 1] = mask[4, 4, 4] = True  # the first two touch at a corner
    assert np.argwhere(component_at(mask, np.array([1, 1, 1]))).tolist() == [[0, 0, 0], [1, 1, 1]]


def test_noise_is_as_smooth_as_asked() -> None:
    rng = np.random.default_rng(6)
    rough, smooth = smooth_noise((32, 24, 16), 1.0, rng), smooth_noise((32, 24, 16), 8.0, rng)
    for noise in (rough, smooth):
        assert noise.shape == (32, 24, 16)
        assert abs(noise.mean()) < 1e-4
        assert abs(noise.std() - 1) < 1e-3
    assert np.diff(smooth, axis=0).std() < 0.3 * np.diff(rough, axis=0).std()
