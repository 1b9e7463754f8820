"""Size classes, Dmax, SUVpeak and the lesion table against hand-computed values and brute force."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.spatial.distance import pdist

from sammed3d_ft.errors import InputError
from sammed3d_ft.lesions import SIZE_CLASSES, dmax_cm, lesion_table, size_class, suv_peak


@pytest.mark.parametrize(
    ("volume_ml", "expected"),
    [
        (0.01, "small"),
        (1.4999, "small"),
        (1.5, "medium"),
        (1.4999999999999998, "medium"),
        (3.9999, "medium"),
        (4.0, "large"),
    ],
)
def test_size_class_limits_belong_to_the_larger_class(volume_ml: float, expected: str) -> None:
    assert size_class(volume_ml) == expected
    assert expected in SIZE_CLASSES


@pytest.mark.parametrize("volume_ml", [0.0, -1.0, math.nan, math.inf])
def test_size_class_refuses_what_is_no_volume(volume_ml: float) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        size_class(volume_ml)


def _all_pairs_cm(coords_mm: np.ndarray) -> float:
    return float(pdist(coords_mm).max()) / 10


@pytest.mark.parametrize("seed", range(20))
def test_dmax_equals_all_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    coords_vox = np.unique(rng.integers(0, rng.integers(2, 30, 3), (rng.integers(2, 400), 3)), axis=0)
    if len(coords_vox) < 2:
        coords_vox = np.array([[0, 0, 0], [1, 0, 0]])
    coords_mm = coords_vox * np.array([4.07, 4.07, 2.0])
    assert dmax_cm(coords_mm) == pytest.approx(_all_pairs_cm(coords_mm), rel=1e-12)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("seed", range(5))
def test_dmax_of_voxels_on_one_line_or_in_one_oblique_plane(directions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    steps = np.array([[1, 2, -1], [0, 3, 2]])[:directions]
    coords_mm = rng.integers(-9, 9, (60, directions)) @ steps * np.array([1.5, 2.5, 3.0]) + 100.0
    assert dmax_cm(coords_mm) == pytest.approx(_all_pairs_cm(coords_mm), rel=1e-12)


def test_dmax_of_few_voxels() -> None:
    assert math.isnan(dmax_cm(np.zeros((0, 3))))
    assert dmax_cm(np.array([[3.0, 4.0, 5.0]])) == 0.0
    assert dmax_cm(np.repeat([[3.0, 4.0, 5.0]], 9, axis=0)) == 0.0
    assert dmax_cm(np.array([[0.0, 0.0, 0.0], [30.0, 40.0, 0.0]])) == pytest.approx(5.0)


def test_dmax_of_a_box_is_its_diagonal() -> None:
    coords_mm = np.argwhere(np.ones((5, 6, 7))) * np.array([1.0, 2.0, 3.0])
    assert dmax_cm(coords_mm) == pytest.approx(math.sqrt(4**2 + 10**2 + 18**2) / 10, rel=1e-14)


def _plain_suv_peak(pet: np.ndarray, centre: np.ndarray, affine: np.ndarray) -> float:
    """Mean over every voxel of the image whose centre lies within 6.2 mm: by looking at all voxels."""
    distance_mm = np.linalg.norm((np.indices(pet.shape).reshape(3, -1).T - centre) @ affine[:3, :3].T, axis=1)
    return float(pet.ravel()[distance_mm <= 6.2].mean())


@pytest.mark.parametrize("spacing_mm", [(1.7, 2.3, 5.1), (4.07, 4.07, 2.0), (2.0, 2.0, 2.0), (7.0, 7.0, 7.0)])
def test_suv_peak_equals_brute_force_in_the_middle_and_at_the_border(spacing_mm: tuple[float, ...]) -> None:
    pet = np.random.default_rng(1).gamma(2.0, 3.0, (13, 12, 9)).astype(np.float32)
    angle = np.deg2rad(20)
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3] = turn @ np.diag(spacing_mm)
    centres = np.array([[6, 6, 4], [0, 0, 0], [12, 11, 8], [6, 0, 4], [1, 6, 8]])
    expected = [_plain_suv_peak(pet, centre, affine) for centre in centres]
    found = [suv_peak(pet, centre[None], affine) for centre in centres]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert suv_peak(pet, centres, affine) == pytest.approx(max(expected), rel=1e-6)


def test_suv_peak_of_a_lesion_taken_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    pet = rng.gamma(2.0, 3.0, (20, 18, 16)).astype(np.float32)
    coords_vox = np.argwhere(rng.random(pet.shape) < 0.05)
    affine = np.diag([3.0, 2.5, 2.0, 1.0])
    whole = suv_peak(pet, coords_vox, affine)
    monkeypatch.setattr("sammed3d_ft.lesions.quantities._BLOCK_VOXELS", 500)
    assert suv_peak(pet, coords_vox, affine) == pytest.approx(whole, rel=1e-12)
    assert whole == pytest.approx(max(_plain_suv_peak(pet, centre, affine) for centre in coords_vox), rel=1e-6)


def test_suv_peak_of_one_hot_voxel_is_diluted_by_its_sphere() -> None:
    # At 5 mm the sphere of 6.2 mm holds the centre and its 6 face neighbours; edge neighbours are at 7.07 mm.
    pet = np.ones((7, 7, 7), np.float32)
    pet[3, 3, 3] = 15.0
    assert suv_peak(pet, np.array([[3, 3, 3]]), np.diag([5.0, 5.0, 5.0, 1.0])) == pytest.approx(3.0)


def test_table_of_two_lesions_by_hand() -> None:
    instances = np.zeros((6, 6, 6), np.int32)
    instances[1:3, 1, 1] = 2  # two voxels
    instances[4, 4, 4:6] = 1
    instances[4, 5, 4:6] = 1  # four voxels
    pet = np.full(instances.shape, 0.5, np.float32)
    pet[1, 1, 1], pet[2, 1, 1] = 4.0, 8.0
    pet[4, 4, 4], pet[4, 4, 5], pet[4, 5, 4], pet[4, 5, 5] = 1.0, 2.0, 2.0, 1.0
    affine = np.array([[-10.0, 0, 0, 100], [0, 10, 0, -50], [0, 0, 5, 7], [0, 0, 0, 1]])  # 0.5 ml voxels

    first, second = lesion_table(instances, affine, pet)
    assert (first.lesion_id, first.voxels, first.volume_ml, first.size_class) == (1, 4, 2.0, "medium")
    assert first.centroid_mm == (60.0, -5.0, 29.5)
    assert (first.suv_max, first.suv_mean, first.tla) == (2.0, 1.5, 3.0)
    assert first.suv_max_vox == (4, 4, 5)  # the first of two equal maxima
    assert not first.suv_peak_flagged
    assert (second.lesion_id, second.voxels, second.volume_ml, second.size_class) == (2, 2, 1.0, "small")
    assert second.centroid_mm == (85.0, -40.0, 12.0)
    assert (second.suv_max, second.suv_mean, second.tla, second.suv_max_vox) == (8.0, 6.0, 6.0, (2, 1, 1))
    # The sphere reaches one voxel along z only (5 mm; 10 mm in plane): 8 and its two neighbours of 0.5.
    assert second.suv_peak == pytest.approx(3.0)
    assert first.suv_peak == pytest.approx(1.5)  # centred on (4, 4, 5) the image ends: (1 + 2) / 2


def test_suv_peak_is_flagged_below_one_ml_only_where_there_is_one() -> None:
    instances = np.zeros((5, 5, 5), np.int32)
    instances[2, 2, 2] = 1
    pet = np.ones(instances.shape, np.float32)
    below, exact = np.diag([9.9, 10.0, 10.0, 1.0]), np.diag([10.0, 10.0, 10.0, 1.0])
    assert lesion_table(instances, below, pet)[0].suv_peak_flagged
    assert not lesion_table(instances, exact, pet)[0].suv_peak_flagged
    without = lesion_table(instances, below)[0]
    assert not without.suv_peak_flagged
    assert without.suv_max_vox is None
    assert all(math.isnan(v) for v in (without.suv_max, without.suv_mean, without.suv_peak, without.tla))


def test_table_equals_a_plain_loop() -> None:
    rng = np.random.default_rng(3)
    instances = rng.integers(0, 12, (14, 15, 16)) * (rng.random((14, 15, 16)) < 0.3)
    instances[instances == 5] = 0  # a missing number
    pet = rng.gamma(2.0, 3.0, instances.shape).astype(np.float32)
    affine = np.array([[2.0, 0.3, 0, 5], [-0.3, 2.1, 0, 6], [0, 0, 3.0, 7], [0, 0, 0, 1]])
    table = lesion_table(instances, affine, pet)
    assert [lesion.lesion_id for lesion in table] == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    voxel_ml = (2.0 * 2.1 + 0.3 * 0.3) * 3.0 / 1000
    for lesion in table:
        coords = np.argwhere(instances == lesion.lesion_id)
        suv = pet[instances == lesion.lesion_id].astype(np.float64)
        assert lesion.voxels == len(coords)
        assert lesion.volume_ml == pytest.approx(len(coords) * voxel_ml)
        np.testing.assert_allclose(lesion.centroid_mm, affine[:3, :3] @ coords.mean(axis=0) + affine[:3, 3], rtol=1e-12)
        assert lesion.suv_max == suv.max()
        assert lesion.suv_max_vox == tuple(coords[suv.argmax()])
        assert lesion.suv_mean == pytest.approx(suv.mean())
        assert lesion.tla == pytest.approx(suv.sum() * voxel_ml)
        assert lesion.suv_peak == pytest.approx(max(_plain_suv_peak(pet, c, affine) for c in coords), rel=1e-6)


def test_table_does_not_depend_on_memory_layout() -> None:
    rng = np.random.default_rng(4)
    instances = rng.integers(0, 3, (5, 6, 7))
    pet = rng.random((5, 6, 7), dtype=np.float32)
    affine = np.diag([4.0, 4.0, 4.0, 1.0])
    as_fortran = lesion_table(np.asfortranarray(instances), affine, np.asfortranarray(pet))
    assert as_fortran == lesion_table(instances, affine, pet)


def test_empty_table_and_refusals() -> None:
    nothing = np.zeros((3, 3, 3), np.int32)
    assert lesion_table(nothing, np.eye(4)) == []
    with pytest.raises(InputError, match="negative number -1"):
        lesion_table(nothing - 1, np.eye(4))
    with pytest.raises(InputError, match="3D integers"):
        lesion_table(nothing.astype(np.float32), np.eye(4))
    with pytest.raises(InputError, match="differ"):
        lesion_table(nothing, np.eye(4), np.zeros((3, 3, 4)))
    pet = np.zeros((3, 3, 3), np.float32)
    pet[1, 2, 0] = np.nan
    with pytest.raises(InputError, match=r"not finite at voxel \(1, 2, 0\)"):
        lesion_table(nothing + 1, np.eye(4), pet)
