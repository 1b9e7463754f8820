"""Clicks on all lesions of a scan, and the autoPET IV protocol against the challenge's own file."""

import json
from pathlib import Path

import cc3d
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from prompts import ScanClicks, autopet_clicks, clicks_from_mask, lesions_from_mask
from sammed3d_ft.errors import InputError


def two_lesions() -> np.ndarray:
    mask = np.zeros((20, 24, 28), np.uint8)
    mask[2:5, 2:7, 2:9] = 1
    mask[12, 15, 20] = 1
    return mask


def test_one_click_per_lesion_and_no_lesion_is_too_small() -> None:
    clicks = clicks_from_mask(two_lesions())
    assert clicks.coords_vox.tolist() == [[3, 4, 5], [12, 15, 20]]
    assert clicks.labels.tolist() == [1, 1]
    assert clicks.lesions == (1, 2)


def test_further_clicks_spread_and_stop_when_the_lesion_is_used_up() -> None:
    clicks = clicks_from_mask(two_lesions(), clicks_per_lesion=3)
    assert clicks.lesions == (1, 1, 1, 2)
    first = clicks.coords_vox[:3]
    assert first[0].tolist() == [3, 4, 5]
    # The second one keeps away from the first, where depth is now 0.
    assert np.linalg.norm(first[1] - first[0]) >= 2


def test_suvmax_clicks_run_down_the_uptake() -> None:
    mask = two_lesions()
    pet = np.zeros(mask.shape)
    pet[2, 2, 2], pet[4, 6, 8], pet[0, 0, 0] = 5.0, 9.0, 99.0
    clicks = clicks_from_mask(mask, strategy="suvmax", pet=pet, clicks_per_lesion=2)
    assert clicks.coords_vox[:2].tolist() == [[4, 6, 8], [2, 2, 2]]


def test_a_lesions_clicks_do_not_depend_on_later_lesions() -> None:
    mask = two_lesions()
    alone = mask.copy()
    alone[12, 15, 20] = 0
    options = {"strategy": "uniform", "key": (9, "scan"), "clicks_per_lesion": 4}
    both = clicks_from_mask(mask, **options)  # type: ignore[arg-type]
    one = clicks_from_mask(alone, **options)  # type: ignore[arg-type]
    np.testing.assert_array_equal(both.coords_vox[:4], one.coords_vox)
    other = clicks_from_mask(mask, strategy="uniform", key=(10, "scan"), clicks_per_lesion=4)
    assert not np.array_equal(both.coords_vox, other.coords_vox)


def test_near_misses_belong_to_their_lesion_and_lie_in_none() -> None:
    mask = two_lesions()
    mask[2:5, 2:7, 10:12] = 1  # a neighbour inside the first lesion's shell
    spacing = (2.0, 1.0, 1.5)
    clicks = clicks_from_mask(mask, negatives=50, spacing_mm=spacing, shell_mm=(1.0, 6.0))
    lesions, n = lesions_from_mask(mask)
    assert n == 3
    background = clicks.labels == 0
    assert background.sum() == 150
    assert len({tuple(v) for v in clicks.coords_vox[background].tolist()}) > 140
    for voxel, lesion in zip(clicks.coords_vox[background], np.array(clicks.lesions)[background], strict=True):
        distance = ndimage.distance_transform_edt(lesions != lesion, sampling=spacing)[tuple(voxel)]
        assert 1.0 <= distance <= 6.0
        assert mask[tuple(voxel)] == 0


def test_hot_background_clicks_are_per_scan_and_all_different() -> None:
    mask = two_lesions()
    pet = np.zeros(mask.shape)
    pet[mask > 0] = 80.0
    pet[0, 0, 20:27] = np.arange(10.0, 17.0)
    clicks = clicks_from_mask(mask, pet=pet, negatives=10, negative_strategy="hot_background")
    background = clicks.coords_vox[clicks.labels == 0]
    assert {tuple(v) for v in background.tolist()} == {(0, 0, z) for z in range(20, 27)}
    assert clicks.lesions == (1, 2) + (None,) * 7


def test_empty_mask_has_no_foreground() -> None:
    clicks = clicks_from_mask(np.zeros((5, 5, 5), bool), negatives=2)
    assert clicks.coords_vox.shape == (0, 3)
    assert clicks.labels.shape == (0,)


def test_to_world_applies_the_affine_unrounded() -> None:
    affine = np.array([[0.0, -2.0, 0, 5], [1.1, 0, 0, -7.3], [0, 0, 3, 0.1], [0, 0, 0, 1]])
    clicks = ScanClicks(np.array([[1, 2, 3]]), np.array([1]), (4,))
    (click,) = clicks.to_world(affine)
    assert click.position_mm == (1.0, 1.1 - 7.3, 9.1)
    assert (click.label, click.lesion) == (1, 4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"strategy": "middle"}, "deepest, uniform"),
        ({"negative_strategy": "cold"}, "near_miss"),
        ({"strategy": "suvmax"}, "provide the PET"),
        ({"negatives": 1, "negative_strategy": "hot_background"}, "provide the PET"),
        ({"strategy": "autopet"}, "provide the PET"),
        ({"pet": np.ones((2, 2, 2))}, "on the same grid"),
        ({"clicks_per_lesion": 0}, "at least 1"),
        ({"strategy": "autopet", "negatives": 3, "pet": np.ones((20, 24, 28))}, "autopet protocol fixes"),
        ({"strategy": "autopet", "key": (1, 2), "pet": np.ones((20, 24, 28))}, "one whole number"),
        ({"strategy": "autopet", "key": (-1,), "pet": np.ones((20, 24, 28))}, "0 to 4294967295"),
    ],
)
def test_wrong_input(options: dict, says: str) -> None:
    with pytest.raises(InputError, match=says):
        clicks_from_mask(two_lesions(), **options)


def test_autopet_reproduces_the_published_tumour_clicks(real_data: Path) -> None:
    """The challenge's example file, in its order; the label is the one it was made from."""
    label = np.asarray(nib.load(real_data / "psma_masks" / "label_expert.nii.gz").dataobj)
    points = json.loads((real_data / "psma_masks" / "lesion-clicks.json").read_text())["points"]
    published = [p["point"] for p in points if p["name"] == "tumor"]
    clicks = clicks_from_mask(label, strategy="autopet", pet=np.zeros(label.shape, np.float32))
    assert clicks.coords_vox.tolist() == published
    assert len(published) == 10


def test_autopet_fills_up_from_the_drawn_components_in_turn() -> None:
    mask = two_lesions()
    rng = np.random.default_rng(1)
    pet = ndimage.gaussian_filter(rng.random(mask.shape), 1.0)
    pet[mask > 0] += 50
    clicks = autopet_clicks(mask, pet, seed=42)
    assert clicks.labels.tolist() == [1] * 10 + [0] * 10
    assert clicks.lesions == (None,) * 20
    lesions, _ = lesions_from_mask(mask, 26)
    visited = [int(lesions[tuple(v)]) for v in clicks.coords_vox[:10]]
    assert visited in ([1, 2] * 5, [2, 1] * 5)
    # First the deepest voxel of each in voxels, the first of equals; then voxels of the surface.
    in_large = clicks.coords_vox[:10][np.array(visited) == 1]
    assert in_large[0].tolist() == [3, 3, 3]
    depth = ndimage.distance_transform_edt(lesions == 1)
    assert all(depth[tuple(v)] == 1 for v in in_large[1:])


def test_autopet_background_clicks_are_hot_and_start_at_component_centres() -> None:
    mask = np.zeros((30, 30, 30), np.uint8)
    mask[10:12, 10:12, 10:12] = 1
    pet = np.zeros(mask.shape)
    pet[mask > 0] = 100.0
    pet[20:23, 20:23, 20:23] = 10.0  # 27 + 1 of 26992 background voxels: all above the percentile
    pet[5, 5, 25] = 20.0
    clicks = autopet_clicks(mask, pet).coords_vox[10:]
    hot = (pet > np.percentile(pet[mask == 0], 99.75)) & (mask == 0)
    assert hot.sum() == 28
    assert all(hot[tuple(v)] for v in clicks)
    assert {tuple(v) for v in clicks[:2].tolist()} == {(21, 21, 21), (5, 5, 25)}
    components = cc3d.connected_components(hot, connectivity=26)
    turns = [int(components[tuple(v)]) for v in clicks]
    assert turns == turns[:2] * 5


def protocol_step(region: np.ndarray, random: np.random.RandomState, surface: bool) -> list[list[int]]:
    """The protocol on whole volumes, with scipy's components (numbered along the transposed array)."""
    components, n = ndimage.label(region.T, np.ones((3, 3, 3)))
    components = components.T
    drawn = random.choice(n, min(10, n), replace=False) + 1
    depths = [ndimage.distance_transform_edt(components == number) for number in drawn]
    clicks = [np.unravel_index(np.argmax(depth), depth.shape) for depth in depths]
    while len(clicks) < 10:
        depth = depths[len(clicks) % len(drawn)]
        pool = np.argwhere(depth == 1) if surface else np.argwhere(depth > 0)
        clicks.append(pool[random.choice(len(pool))])
    return [[int(c) for c in click] for click in clicks]


@pytest.mark.parametrize(("seed", "lesions"), [(42, 2), (42, 30), (7, 3)])
def test_autopet_equals_the_protocol_written_out(seed: int, lesions: int) -> None:
    rng = np.random.default_rng(lesions)
    mask = np.zeros((40, 36, 44), np.uint8)
    for centre in rng.integers(0, mask.shape, (lesions, 3)):
        mask[tuple(slice(max(c - 2, 0), c + 2) for c in centre)] = 1
    pet = ndimage.gaussian_filter(rng.random(mask.shape), 3.0)
    random = np.random.RandomState(seed)
    expected = protocol_step(mask > 0, random, surface=True)
    hot = (mask == 0) & (pet > np.percentile(pet[mask == 0], 99.75))
    expected += protocol_step(hot, random, surface=False)
    assert autopet_clicks(mask, pet, seed=seed).coords_vox.tolist() == expected


def test_autopet_of_empty_masks_and_flat_pets() -> None:
    empty = np.zeros((8, 8, 8), np.uint8)
    pet = np.zeros(empty.shape)
    pet[1, 2, 3] = 5.0
    clicks = autopet_clicks(empty, pet)
    assert clicks.labels.tolist() == [0] * 10
    assert (clicks.coords_vox == [1, 2, 3]).all()
    assert len(autopet_clicks(empty, np.ones(empty.shape)).labels) == 0
    full = autopet_clicks(np.ones((4, 4, 4), np.uint8), np.ones((4, 4, 4)))
    assert full.labels.tolist() == [1] * 10
