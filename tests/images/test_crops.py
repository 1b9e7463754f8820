"""Crops: the map between crop and scan, interpolation against scipy and torch, and the z-score by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from torch.nn import functional as F

from sammed3d_ft.images.crops import (
    CropGrid,
    covered_region,
    crop_grid,
    logits_on_region,
    read_crop,
    read_target,
    rotation_matrix,
)
from sammed3d_ft.images.intensity import z_score

SPACING_MM = np.array([4.07, 2.5, 3.0])
spacings = st.tuples(*[st.floats(0.4, 10)] * 3)


def volume(shape=(19, 23, 17), channels=1, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(channels, *shape)).astype(np.float32))


def voxels(size):
    """(3, S, S, S): the crop's own voxel indices."""
    return np.indices((size,) * 3).astype(float)


def by_scipy(array, coords_vox):
    """Linear interpolation at (3, ...) voxel coordinates; what lies outside is 0, fading in over one voxel."""
    return ndimage.map_coordinates(array.astype(float), coords_vox, order=1, mode="grid-constant", cval=0.0)


@given(spacings, st.tuples(*[st.integers(0, 60)] * 3), st.tuples(*[st.booleans()] * 3), st.floats(0.8, 1.3))
@settings(max_examples=50, deadline=None)
def test_the_click_is_a_crop_voxel(spacing, click, flips, zoom):
    grid = crop_grid(np.array(click), np.array(spacing), 1.5, 64, zoom=zoom, flips=flips)
    assert grid.to_crop(np.array(click)).tolist() == [32, 32, 32]
    assert grid.to_source(np.array([32, 32, 32])).tolist() == list(click)
    somewhere = np.array([3.0, 40.0, 17.5])
    np.testing.assert_allclose(grid.to_crop(grid.to_source(somewhere)), somewhere, atol=1e-9)


def test_one_crop_voxel_is_the_crop_spacing():
    grid = crop_grid(np.array([10, 10, 10]), SPACING_MM, 1.5, 16)
    moved_vox = grid.to_source(np.array([9, 8, 8])) - grid.to_source(np.array([8, 8, 8]))
    np.testing.assert_allclose(moved_vox * SPACING_MM, [1.5, 0, 0], atol=1e-5)
    mirrored = crop_grid(np.array([10, 10, 10]), SPACING_MM, 1.5, 16, zoom=2.0, flips=(True, False, False))
    moved_vox = mirrored.to_source(np.array([9, 9, 8])) - mirrored.to_source(np.array([8, 8, 8]))
    np.testing.assert_allclose(moved_vox * SPACING_MM, [-0.75, 0.75, 0], atol=1e-5)


@pytest.mark.parametrize("click", [(9.0, 11.0, 8.0), (0.0, 22.0, 3.0), (4.25, 7.5, 16.0)])
@pytest.mark.parametrize("spacing_mm", [0.9, 3.0, 7.0])
def test_reading_equals_scipy(click, spacing_mm):
    """In the middle, at the border (where the crop sticks out) and between voxels."""
    image = volume(channels=2)
    grid = crop_grid(np.array(click), SPACING_MM, spacing_mm, 20, flips=(False, True, False))
    coords_vox = np.moveaxis(grid.to_source(np.moveaxis(voxels(20), 0, -1)), -1, 0)
    expected = [by_scipy(channel.numpy(), coords_vox) for channel in image]
    np.testing.assert_allclose(read_crop(image, grid), expected, atol=2e-6)


def test_a_crop_beyond_the_image_is_empty():
    grid = CropGrid((-100.0, 5.0, 5.0), (1.0, 1.0, 1.0), 8)
    assert not read_crop(volume(), grid).any()
    region = covered_region(grid, (19, 23, 17))
    assert region.shape[0] == 0
    assert logits_on_region(torch.zeros(4, 4, 4), grid, region).shape == region.shape


def test_flips_mirror_about_the_click():
    image = volume()
    plain = crop_grid(np.array([9, 11, 8]), SPACING_MM, 2.0, 16)
    mirrored = crop_grid(np.array([9, 11, 8]), SPACING_MM, 2.0, 16, flips=(True, False, True))
    # Voxel 8 + i of one is voxel 8 - i of the other; voxel 0 has no partner.
    one, other = read_crop(image, plain)[0, 1:, :, 1:], read_crop(image, mirrored)[0, 1:, :, 1:]
    torch.testing.assert_close(other, one.flip(0, 2), atol=2e-6, rtol=0)


@pytest.mark.parametrize("flips", [(False, False, False), (True, False, True)])
def test_the_rotated_path_without_rotation_is_the_separable_one(flips):
    image = volume(channels=2)
    grid = crop_grid(np.array([3, 20, 8]), SPACING_MM, 2.2, 18, zoom=1.1, flips=flips)
    torch.testing.assert_close(read_crop(image, grid, np.eye(3)), read_crop(image, grid), atol=2e-5, rtol=0)


def test_a_rotation_turns_in_mm_about_the_click():
    image = volume()
    rotation = rotation_matrix(np.deg2rad([10.0, -25.0, 40.0]))
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    grid = crop_grid(np.array([9, 11, 8]), SPACING_MM, 2.0, 16)
    offset_mm = np.tensordot(rotation, (voxels(16) - 8) * 2.0, axes=1)
    coords_vox = np.array([9, 11, 8])[:, None, None, None] + offset_mm / SPACING_MM[:, None, None, None]
    expected = by_scipy(image[0].numpy(), coords_vox)
    np.testing.assert_allclose(read_crop(image, grid, rotation)[0], expected, atol=1e-4)


@pytest.mark.parametrize("rotation", [None, rotation_matrix(np.deg2rad([10.0, -25.0, 40.0]))])
def test_a_shift_moves_whole_crop_voxels(rotation):
    image = volume()
    grid = crop_grid(np.array([9, 11, 8]), SPACING_MM, 2.0, 16, flips=(True, False, False))
    moved = read_crop(image, grid.shifted(np.array([2, -1, 3]), rotation), rotation)
    still = read_crop(image, grid, rotation)
    torch.testing.assert_close(moved[0, :-2, 1:, :-3], still[0, 2:, :-1, 3:], atol=2e-5, rtol=0)


@given(spacings, st.floats(0.5, 8), st.tuples(*[st.integers(0, 6)] * 3))
@settings(max_examples=80, deadline=None)
def test_a_lesion_of_one_voxel_is_never_lost(spacing, crop_spacing_mm, place):
    mask = torch.zeros(7, 7, 7, dtype=torch.bool)
    mask[place] = True
    target = read_target(mask, crop_grid(np.array(place), np.array(spacing), crop_spacing_mm, 12))
    assert target.shape == (1, 12, 12, 12)
    assert target[0, 6, 6, 6]


def test_a_voxel_half_covered_counts():
    mask = torch.zeros(5, 5, 5, dtype=torch.bool)
    mask[2, 2, 2] = True
    target = read_target(mask, CropGrid((2.0, 2.0, 2.0), (0.5, 1.0, 1.0), 8))
    assert target.nonzero()[:, 1:].tolist() == [[3, 4, 4], [4, 4, 4], [5, 4, 4]]


def test_the_covered_region_by_hand():
    # Crop voxels 0..7 lie at 6, 6.5, ... 9.5, with outer faces at 5.75 and 9.75.
    region = covered_region(CropGrid((8.0, 8.0, 8.0), (0.5, 0.5, -0.5), 8), (20, 9, 20))
    assert region.start == (6, 6, 7)  # flipped: 10, 9.5, ... 6.5, faces at 10.25 and 6.25
    assert region.stop == (10, 9, 11)  # cut at the volume's end, voxel 8
    assert region.shape == (4, 3, 4)
    assert np.zeros((20, 9, 20))[region.slices].shape == region.shape


@given(spacings, st.tuples(*[st.integers(0, 15)] * 3), st.tuples(*[st.booleans()] * 3))
@settings(max_examples=30, deadline=None)
def test_the_covered_region_holds_the_voxels_within_the_crop(spacing, click, flips):
    grid = crop_grid(np.array(click), np.array(spacing), 2.0, 10, flips=flips)
    place = grid.to_crop(np.moveaxis(np.indices((16, 16, 16)), 0, -1))
    expected = ((place >= -0.5 - 1e-6) & (place <= 9.5 + 1e-6)).all(-1)
    surely = ((place >= -0.5 + 1e-6) & (place <= 9.5 - 1e-6)).all(-1)
    found = np.zeros((16, 16, 16), bool)
    found[covered_region(grid, (16, 16, 16)).slices] = True
    assert not (surely & ~found).any()
    assert not (found & ~expected).any()


@pytest.mark.parametrize("spacing_mm", [0.8, 2.0, 5.0])
def test_logits_equal_upsampling_then_scipy(spacing_mm):
    low = volume((8, 8, 8))[0]
    grid = crop_grid(np.array([9, 3, 8]), SPACING_MM, spacing_mm, 32, flips=(False, True, False))
    region = covered_region(grid, (19, 23, 17))
    crop = F.interpolate(low[None, None], size=(32, 32, 32), mode="trilinear", align_corners=False)[0, 0]
    source = np.stack(np.meshgrid(*(np.arange(a, b) for a, b in zip(region.start, region.stop, strict=True)),
                                  indexing="ij"), -1)  # fmt: skip
    place = np.moveaxis(grid.to_crop(source), -1, 0)
    expected = ndimage.map_coordinates(crop.double().numpy(), place, order=1, mode="nearest")
    found = logits_on_region(low, grid, region)
    assert found.shape == region.shape
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_z_score_by_hand():
    # Positive voxels 1, 2, 3: mean 2, SD 1 (over n - 1). The zero is not counted, but mapped.
    crop = torch.tensor([0.0, 1.0, 2.0, 3.0, 0.0, 0.0, -5.0, 0.0]).reshape(1, 2, 2, 2)
    assert z_score(crop).flatten().tolist() == [-2, -1, 0, 1, -2, -2, -7, -2]
    two = torch.cat([crop, 10 * crop])
    torch.testing.assert_close(z_score(two)[1], z_score(crop)[0])  # each channel by itself


@pytest.mark.parametrize("value", [0.0, -3.0, 7.0])
def test_the_z_score_of_a_flat_crop_is_zero(value):
    scored = z_score(torch.full((1, 4, 4, 4), value))
    assert not scored.any()
    one = torch.zeros(1, 4, 4, 4)
    one[0, 1, 1, 1] = 5.0
    assert not z_score(one).any()  # a single positive voxel has no SD
