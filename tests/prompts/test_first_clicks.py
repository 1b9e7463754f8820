"""First clicks: each strategy on masks with a known answer; empty masks; batches; invalid input."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts import FIRST_STRATEGIES, InputError, first_click

KEYS = [(1, 2, 3, 4)]


def block(*sides: slice, shape: tuple[int, int, int] = (16, 16, 16)) -> torch.Tensor:
    mask = torch.zeros(1, 1, *shape, dtype=torch.bool)
    mask[0, 0][sides] = True
    return mask


def at(clicks: object) -> list[int]:
    return [int(c) for c in clicks.coords_vox[0]]  # type: ignore[attr-defined]


def test_deepest_is_the_middle_of_a_block_in_x_y_z_order() -> None:
    clicks = first_click(block(slice(2, 7), slice(4, 11), slice(1, 10)), strategy="deepest", keys=KEYS)
    # Depth 3 along the thin axis x leaves a plateau; its voxel nearest to the centre (4, 7, 5) is the centre.
    assert at(clicks) == [4, 7, 5]
    assert clicks.coords_vox.dtype == torch.float32
    assert clicks.labels.tolist() == [1]
    assert clicks.labels.dtype == torch.int64


def test_deepest_at_the_edge_of_the_volume_keeps_away_from_it() -> None:
    # The volume's border cuts this block; with the outside as background the middle wins, not the border.
    assert at(first_click(block(slice(0, 5), slice(0, 5), slice(0, 5)), keys=KEYS)) == [2, 2, 2]
    assert at(first_click(torch.ones(1, 7, 7, 7, dtype=torch.bool), keys=KEYS)) == [3, 3, 3]


def test_deepest_uses_each_samples_own_spacing() -> None:
    # A 3 x 9 x 9 slab joined to a 1 x 9 x 9 one that is thick only when x is coarse: tested by two plates.
    mask = torch.zeros(2, 20, 20, 20, dtype=torch.bool)
    mask[:, 2, 2:17, 2:17] = True  # a plate, one voxel thick along x
    mask[:, 8:19, 8:19, 18] = True  # a plate, one voxel thick along z
    clicks = first_click(mask, keys=[(0,), (0,)], spacing_mm=[[4.0, 1.0, 1.0], [1.0, 1.0, 4.0]])
    assert clicks.coords_vox[0, 0] == 2
    assert clicks.coords_vox[1, 2] == 18


def test_suvmax_is_the_hottest_voxel_of_the_mask_and_the_first_of_equals() -> None:
    mask = block(slice(2, 6), slice(2, 6), slice(2, 6))
    pet = torch.zeros(1, 1, 16, 16, 16)
    pet[0, 0, 10, 10, 10] = 99.0  # hotter, outside
    pet[0, 0, 3, 4, 5] = pet[0, 0, 5, 2, 2] = 7.0
    assert at(first_click(mask, strategy="suvmax", keys=KEYS, pet=pet)) == [3, 4, 5]
    # An uptake below zero everywhere (a subtraction image) still has its maximum inside.
    assert at(first_click(mask, strategy="suvmax", keys=KEYS, pet=pet - 200)) == [3, 4, 5]


def test_boundary_voxels_have_a_face_outside_the_mask_or_the_volume() -> None:
    mask = block(slice(0, 5), slice(0, 5), slice(0, 5)).expand(400, -1, -1, -1, -1)
    voxels = first_click(mask, strategy="boundary", keys=[(i,) for i in range(400)]).coords_vox
    on_surface = ((voxels == 0) | (voxels == 4)).any(dim=1)
    assert on_surface.all()
    assert (voxels <= 4).all()
    assert len({tuple(v.tolist()) for v in voxels}) > 80  # of 98 surface voxels


def test_jitter_stays_within_its_radius_in_mm_and_inside() -> None:
    mask = block(slice(1, 14), slice(1, 14), slice(6, 9)).expand(300, -1, -1, -1, -1)
    clicks = first_click(
        mask, strategy="jittered", keys=[(i,) for i in range(300)], spacing_mm=(1.0, 2.0, 3.0), jitter_mm=4.0
    )
    offset_mm = (clicks.coords_vox - torch.tensor([7.0, 7.0, 7.0])) * torch.tensor([1.0, 2.0, 3.0])
    distance = offset_mm.norm(dim=1)
    assert distance.max() <= 4.0
    assert distance.max() > 3.0
    assert mask[0, 0][tuple(clicks.coords_vox.long().T)].all()


def test_without_jitter_jittered_is_deepest() -> None:
    mask = block(slice(2, 7), slice(4, 11), slice(1, 10))
    assert at(first_click(mask, strategy="jittered", keys=KEYS, jitter_mm=0.0)) == [4, 7, 5]


@pytest.mark.parametrize("strategy", FIRST_STRATEGIES)
def test_empty_mask_has_no_click_and_a_single_voxel_is_clicked(strategy: str) -> None:
    mask = torch.zeros(2, 1, 5, 6, 7, dtype=torch.bool)
    mask[1, 0, 4, 0, 6] = True
    clicks = first_click(mask, strategy=strategy, keys=[(0,), (1,)], pet=torch.ones(2, 1, 5, 6, 7))
    assert clicks.labels.tolist() == [-1, 1]
    assert clicks.coords_vox.tolist() == [[0, 0, 0], [4, 0, 6]]


@pytest.mark.parametrize("strategy", FIRST_STRATEGIES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_click_lies_inside_and_does_not_depend_on_the_batch(strategy: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = torch.from_numpy(rng.random((4, 1, 6, 7, 5)) < rng.random((4, 1, 1, 1, 1)) ** 2)
    pet = torch.from_numpy(rng.random((4, 1, 6, 7, 5)))
    keys = [(seed, 0, i, 0) for i in range(4)]

    def click(of: list[int]) -> list[tuple[list[float], int]]:
        clicks = first_click(mask[of], strategy=strategy, keys=[keys[i] for i in of], pet=pet[of])
        return list(zip(clicks.coords_vox.tolist(), clicks.labels.tolist(), strict=True))

    together = click([0, 1, 2, 3])
    assert click([3, 1]) == [together[3], together[1]]
    assert [click([i])[0] for i in range(4)] == together
    for i, (voxel, label) in enumerate(together):
        assert (label == 1) == bool(mask[i].any())
        assert label == -1 or mask[i, 0][tuple(int(c) for c in voxel)]


def test_wrong_input() -> None:
    mask = torch.ones(1, 4, 4, 4, dtype=torch.bool)
    with pytest.raises(InputError, match="choose one of deepest"):
        first_click(mask, strategy="centre", keys=KEYS)
    with pytest.raises(InputError, match="provide the PET"):
        first_click(mask, strategy="suvmax", keys=KEYS)
    with pytest.raises(ValueError, match=r"\(B, X, Y, Z\)"):
        first_click(mask[0], keys=KEYS)
    with pytest.raises(ValueError, match="spacing_mm"):
        first_click(mask, keys=KEYS, spacing_mm=(1.0, 0.0, 1.0))
    with pytest.raises(ValueError, match="PET has shape"):
        first_click(mask, strategy="suvmax", keys=KEYS, pet=torch.ones(1, 4, 4, 5))
