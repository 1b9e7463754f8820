"""Resampling: a linear function is reproduced wherever it is sampled; hand-computed values at the edges."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sammed3d_ft.images.grids import Volume, from_array
from sammed3d_ft.images.images import read_image
from sammed3d_ft.images.resampling import resample_like
from tests.support.storage_orders import ORIENTATIONS, affine_of, stored_as

GRADIENT = np.array([0.3, -0.7, 1.1])  # per mm


def ramp(shape, affine) -> Volume:
    """An image whose value at a place x (mm) is 5 + GRADIENT . x."""
    volume = from_array(np.zeros(shape, np.float32), affine)
    places_mm = volume.to_mm(np.moveaxis(np.indices(volume.array.shape), 0, -1))
    return Volume((5 + places_mm @ GRADIENT).astype(np.float32), volume.affine, volume.source)


@pytest.mark.parametrize("degrees", [(0, 0, 0), (7, -11, 4)])
def test_a_linear_image_is_reproduced_inside_and_replaced_outside(degrees):
    image = ramp((30, 28, 26), np.diag([1.5, 1.2, 2.0, 1]))
    grid = affine_of(Rotation.from_euler("xyz", degrees, degrees=True), (3.0, 2.7, 4.1), (-6, -7, -8))
    reference = from_array(np.zeros((18, 18, 17), np.float32), grid)
    resampled = resample_like(image, reference, outside=-1000)
    places_mm = reference.to_mm(np.moveaxis(np.indices(reference.array.shape), 0, -1))
    voxels = image.to_vox(places_mm)
    within = ((voxels > 0) & (voxels < np.array(image.array.shape) - 1)).all(-1)
    beyond = ((voxels < -0.51) | (voxels > np.array(image.array.shape) - 0.49)).any(-1)
    assert within.sum() > 500
    assert beyond.sum() > 500
    # offsets are rounded to 1/1024 voxel, which the slope turns into up to 0.002
    np.testing.assert_allclose(resampled.array[within], (5 + places_mm @ GRADIENT)[within], atol=3e-3)
    assert (resampled.array[beyond] == -1000).all()
    covered = ((voxels > -0.49) & (voxels < np.array(image.array.shape) - 0.51)).all(-1)
    assert (resampled.array[covered] != -1000).all()
    np.testing.assert_array_equal(resampled.affine, reference.affine)
    assert resampled.source is reference.source


def test_hand_computed_values_up_to_the_faces():
    line = from_array(np.array([10.0, 20, 40], np.float32).reshape(3, 1, 1), np.eye(4))
    grid = np.diag([0.5, 1, 1, 1])
    grid[0, 3] = -1
    resampled = resample_like(line, from_array(np.zeros((9, 1, 1)), grid), outside=-7)
    # centres at -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3 voxels; the image reaches from -0.5 to 2.5
    np.testing.assert_array_equal(resampled.array.ravel(), [-7, 10, 10, 15, 20, 30, 40, 40, -7])


def test_the_same_grid_returns_the_same_values():
    image = ramp((9, 8, 7), np.diag([1.5, 1.2, 2.0, 1]))
    np.testing.assert_array_equal(resample_like(image, image).array, image.array)


@pytest.mark.parametrize("degrees", [(0, 0, 0), (7, -11, 4)])
@pytest.mark.parametrize("orientation", ORIENTATIONS[::7])
def test_result_has_the_same_bits_in_every_storage_order(degrees, orientation):
    values = np.random.default_rng(0).normal(size=(9, 8, 7)).astype(np.float32)
    affine = affine_of(Rotation.from_euler("xyz", degrees, degrees=True), (1.37, 0.98, 2.0), (-4.3, 1.9, -803.7))
    stored, stored_affine = stored_as(values, affine, *orientation)
    header_affine = stored_affine.astype(np.float32)  # as a file holds it
    reference = from_array(np.zeros((5, 6, 4)), affine @ np.diag([1.7, 1.4, 1.9, 1]))
    expected = resample_like(from_array(values, affine.astype(np.float32)), reference)
    resampled = resample_like(from_array(stored, header_affine), reference)
    np.testing.assert_array_equal(resampled.array, expected.array)


def test_real_ct_lies_on_its_pet(real_data):
    folder = real_data / "fdg_pet_sarcoma" / "STS_001"
    pet, ct = read_image(folder / "PET_image.nii.gz"), read_image(folder / "CT_image.nii.gz")
    resampled = resample_like(ct, pet, outside=-1000)
    assert resampled.array.shape == pet.array.shape
    # by hand at one voxel: trilinear from the eight neighbours in the CT
    voxel = (20, 21, 30)
    x, y, z = ct.to_vox(pet.to_mm(voxel))
    i, j, k = int(x), int(y), int(z)
    weights = np.einsum("i,j,k->ijk", *[np.array([1 - (c % 1), c % 1]) for c in (x, y, z)])
    expected = (weights * ct.array[i : i + 2, j : j + 2, k : k + 2]).sum()
    assert resampled.array[voxel] == pytest.approx(expected, abs=0.5)
