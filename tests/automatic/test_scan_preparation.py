"""Resampled scans: world positions, the inverse mapping, axis orders, intensities and the body's bounding box."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from sammed3d_ft.automatic.scan_preparation import ScanPreparation, prepare_scan
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume, from_array
from sammed3d_ft.images.images import read_image, read_label
from tests.support.storage_orders import ORIENTATIONS, affine_of, stored_as

OBLIQUE = affine_of(Rotation.from_euler("xyz", (4, -7, 11), degrees=True), (4.1, 4.1, 3.27), (-50.0, 20.0, 300.0))
SLOPE_PER_MM = np.array([0.02, -0.03, 0.05])


def ramp(affine: np.ndarray, shape: tuple[int, int, int]) -> Volume:
    """An image that is linear in the world: 30 + slope . mm, which linear interpolation keeps exactly."""
    index = np.moveaxis(np.indices(shape), 0, -1)
    mm = index @ affine[:3, :3].T + affine[:3, 3]
    return from_array((30 + mm @ SLOPE_PER_MM).astype(np.float32), affine)


@pytest.mark.parametrize("spacing_mm", [2.0, 4.0, 5.5])
def test_voxels_keep_their_places_in_the_world_both_ways(spacing_mm: float) -> None:
    scan = ramp(OBLIQUE, (14, 17, 20))
    prepared = prepare_scan({"PT": scan}, ScanPreparation(("PT",), spacing_mm))
    voxels = np.moveaxis(np.indices(prepared.channels.shape[1:]), 0, -1)
    mm = voxels @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]
    inside = np.all((scan.to_vox(mm) >= 0) & (scan.to_vox(mm) <= np.array(scan.array.shape) - 1), axis=-1)
    assert inside.mean() > 0.5
    expected = 30 + mm @ SLOPE_PER_MM
    np.testing.assert_allclose(prepared.channels[0][inside], expected[inside], atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(prepared.affine[:3, :3], axis=0), spacing_mm, rtol=1e-5)
    # Every voxel of the scan is on the grid: no returned value is the outside value.
    back = prepared.onto_scan(prepared.channels[0])
    assert back.shape == scan.array.shape
    assert back.min() > 20
    core = (slice(3, -3),) * 3  # away from the faces, where values are clamped
    np.testing.assert_allclose(back[core], scan.array[core], atol=1e-3)


def test_a_scan_of_that_spacing_is_left_as_it_is() -> None:
    array = np.random.default_rng(0).uniform(0.5, 9, (7, 6, 5)).astype(np.float32)
    scan = from_array(array, np.diag([2.0, 2.0, 2.0, 1.0]))
    prepared = prepare_scan({"PT": scan}, ScanPreparation(("PT",), 2.0))
    assert np.array_equal(prepared.channels[0], array)
    assert np.array_equal(prepared.onto_scan(array), array)


def test_one_scan_stored_in_any_axis_order_is_prepared_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    array, mask = rng.uniform(0.2, 9, (6, 5, 4)).astype(np.float32), (rng.random((6, 5, 4)) > 0.7).astype(np.uint8)
    results = []
    for number, (order, signs) in enumerate(ORIENTATIONS):
        paths = tmp_path / f"{number}.nii", tmp_path / f"{number}_label.nii"
        for path, values in zip(paths, (array, mask), strict=True):
            nib.save(nib.Nifti1Image(*stored_as(values, OBLIQUE, order, signs)), path)
        prepared = prepare_scan({"PT": read_image(paths[0])}, ScanPreparation(("PT",), 2.5))
        label = read_label(paths[1])
        results.append((prepared.channels, prepared.target(label), prepared.onto_scan(prepared.channels[0] - 1)))
    for other in results[1:]:
        assert all(np.array_equal(one, two) for one, two in zip(results[0], other, strict=True))


def test_the_label_keeps_its_nearest_voxels() -> None:
    """4 mm voxels at 2 mm: each becomes a cube of eight."""
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    mask = np.zeros((5, 6, 4), np.uint8)
    mask[2, 3, 1], mask[0, 0, 0], mask[4, 5, 3] = 1, 3, 2
    scan = from_array(np.ones(mask.shape, np.float32), affine)
    prepared = prepare_scan({"PT": scan}, ScanPreparation(("PT",), 2.0))
    target = prepared.target(from_array(mask, affine))
    assert target.dtype == bool
    assert np.array_equal(target, np.repeat(np.repeat(np.repeat(mask > 0, 2, 0), 2, 1), 2, 2))


def test_ct_comes_from_its_own_grid_scaled_between_its_extremes() -> None:
    pet = ramp(OBLIQUE, (10, 11, 12))
    ct_affine = affine_of(Rotation.from_euler("z", 3, degrees=True), (1.9, 1.9, 2.5), (-90.0, -30.0, 260.0))
    ct = ramp(ct_affine, (60, 60, 50))
    ct = Volume(ct.array * 100 - 3000, ct.affine, ct.source)
    prepared = prepare_scan({"PT": pet, "CT": ct}, ScanPreparation(("PT", "CT"), 3.0))
    assert prepared.channels.shape[0] == 2
    assert prepared.channels[1].max() == 1.0
    voxels = np.moveaxis(np.indices(prepared.channels.shape[1:]), 0, -1)
    mm = voxels @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]
    hu = (30 + mm @ SLOPE_PER_MM) * 100 - 3000
    within = np.all((ct.to_vox(mm) >= 0) & (ct.to_vox(mm) <= np.array(ct.array.shape) - 1), axis=-1)
    assert within.all()  # so that the least and the greatest value are those of the ramp on the grid
    # The body's box may have cut off the one voxel of the least value; a linear map of HU remains.
    slope, offset = np.polyfit(hu.ravel(), prepared.channels[1].ravel(), 1)
    np.testing.assert_allclose(prepared.channels[1], slope * hu + offset, atol=1e-4)
    assert slope * hu.max() + offset == pytest.approx(1, abs=1e-4)
    assert 0 <= prepared.channels[1].min() < 0.05


def test_the_body_is_that_of_the_ct_or_without_one_that_of_the_pet() -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    pet, ct = np.zeros((10, 9, 8), np.float32), np.full((10, 9, 8), -1000, np.float32)
    pet[3:6, 4, 2:5], ct[2:9, 1:8, 1:7] = 1.0, 40
    images = {"PT": from_array(pet, affine), "CT": from_array(ct, affine)}
    alone = prepare_scan(images, ScanPreparation(("PT",), 2.0))
    assert alone.channels.shape == (1, 3, 1, 3)
    assert np.array_equal(alone.affine[:3, 3], [6, 8, 4])
    both = prepare_scan(images, ScanPreparation(("PT", "CT"), 2.0))
    assert both.channels.shape == (2, 7, 7, 6)
    assert (both.channels[1] == 1).all()
    outside = alone.onto_scan(np.ones((3, 1, 3)))
    assert (outside[3:6, 4, 2:5] == 1).all()
    assert (np.delete(outside, (3, 4, 5), axis=0) == -20).all()


@pytest.mark.parametrize("spacing_mm", [1.5, 5.0])
def test_a_body_within_its_scan_keeps_its_place(spacing_mm: float) -> None:
    """Channels, label and inverse mapping, against scipy at the same world positions."""
    array = np.zeros((16, 15, 14), np.float32)
    array[5:12, 6:13, 4:9] = np.random.default_rng(2).uniform(1, 9, (7, 7, 5))
    scan = from_array(array, OBLIQUE)
    prepared = prepare_scan({"PT": scan}, ScanPreparation(("PT",), spacing_mm))
    shape = prepared.channels.shape[1:]
    mm = np.moveaxis(np.indices(shape), 0, -1) @ prepared.affine[:3, :3].T + prepared.affine[:3, 3]
    places = np.moveaxis(scan.to_vox(mm), -1, 0)
    assert (places.reshape(3, -1).min(1) > 2).all()  # cut out of the scan
    np.testing.assert_allclose(prepared.channels[0], map_coordinates(array, places, order=1, mode="nearest"), atol=1e-3)
    nearest = np.rint(places).astype(int)
    label = Volume((array > 5).astype(np.uint8), scan.affine, scan.source)
    assert np.array_equal(prepared.target(label), array[tuple(nearest)] > 5)
    back = prepared.onto_scan(prepared.channels[0])
    inverse = np.linalg.inv(prepared.affine)
    voxels = np.moveaxis(np.indices(array.shape), 0, -1)
    positions = scan.to_mm(voxels) @ inverse[:3, :3].T + inverse[:3, 3]
    inside = np.all((positions >= 0) & (positions <= np.array(shape) - 1), axis=-1)
    expected = map_coordinates(prepared.channels[0], np.moveaxis(positions, -1, 0), order=1, mode="nearest")
    assert inside.sum() > 50
    np.testing.assert_allclose(back[inside], expected[inside], atol=2e-2)  # places are rounded to a 1/1024 of a voxel
    assert back[0, 0, 0] == -20


def test_a_scan_of_nothing_is_kept_whole() -> None:
    scan = from_array(np.zeros((4, 5, 6), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    assert prepare_scan({"PT": scan}, ScanPreparation(("PT",), 2.0)).channels.shape == (1, 4, 5, 6)


def test_what_is_missing_or_wrong_is_said() -> None:
    scan = ramp(OBLIQUE, (4, 4, 4))
    with pytest.raises(InputError, match="case_7: no CT image, but the model needs PT and CT"):
        prepare_scan({"PT": scan}, ScanPreparation(("PT", "CT"), 2.0), case="case_7")
    for wrong in ((), ("PT", "PT"), ("MR",)):
        with pytest.raises(InputError, match="expected PT, CT or both"):
            ScanPreparation(wrong, 2.0)
    with pytest.raises(InputError, match="expected a positive number"):
        ScanPreparation(("PT",), 0.0)
    preparation = ScanPreparation(("PT", "CT"), 2.5)
    assert ScanPreparation.from_json(preparation.to_json()) == preparation
    with pytest.raises(InputError, match="modalities and spacing_mm as JSON"):
        ScanPreparation.from_json("{}")
