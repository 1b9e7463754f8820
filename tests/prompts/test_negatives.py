"""Negative clicks: the near-miss shell and the hot background, on masks and PETs with known answers."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts import NEGATIVE_STRATEGIES, InputError, negative_click
from prompts.negatives import hot_background


def test_shell_is_measured_in_mm_from_the_nearest_lesion_voxel() -> None:
    mask = torch.zeros(1, 1, 15, 15, 15, dtype=torch.bool)
    mask[0, 0, 7, 7, 7] = True
    n = 500
    clicks = negative_click(
        mask.expand(n, -1, -1, -1, -1),
        keys=[(i,) for i in range(n)],
        spacing_mm=(1.0, 1.0, 4.0),
        shell_mm=(2.0, 4.0),
    )
    distance = ((clicks.coords_vox - 7) * torch.tensor([1.0, 1.0, 4.0])).norm(dim=1)
    assert (clicks.labels == 0).all()
    assert distance.min() == 2.0
    assert distance.max() == 4.0
    assert len(set(map(tuple, clicks.coords_vox[clicks.coords_vox[:, 2] != 7].tolist()))) == 2  # only straight up


def test_near_miss_in_a_full_or_empty_mask_is_no_click() -> None:
    mask = torch.zeros(2, 4, 4, 4, dtype=torch.bool)
    mask[1] = True
    clicks = negative_click(mask, keys=[(0,), (1,)])
    assert clicks.labels.tolist() == [-1, -1]
    assert clicks.coords_vox.tolist() == [[0, 0, 0], [0, 0, 0]]


def test_hot_background_is_the_only_hot_voxel_outside() -> None:
    mask = torch.zeros(1, 1, 8, 8, 8, dtype=torch.bool)
    mask[0, 0, :2, :2, :2] = True
    pet = torch.rand(1, 1, 8, 8, 8)
    pet[mask] = 50.0  # the lesion itself is hottest and must neither be clicked nor raise the bar
    pet[0, 0, 6, 3, 2] = 9.0
    pet[0, 0, 1, 7, 5] = 8.0
    # 504 background voxels: position 0.9975 * 503 = 501.74, between the third hottest and the second (8.0).
    clicks = negative_click(
        mask.expand(60, -1, -1, -1, -1),
        strategy="hot_background",
        keys=[(i,) for i in range(60)],
        pet=pet.expand(60, -1, -1, -1, -1),
    )
    assert {tuple(v) for v in clicks.coords_vox.tolist()} == {(6, 3, 2), (1, 7, 5)}
    assert (clicks.labels == 0).all()


def test_hot_background_of_a_flat_pet_is_no_click_and_of_an_empty_mask_is_one() -> None:
    empty = torch.zeros(2, 8, 8, 8, dtype=torch.bool)
    pet = torch.ones(2, 8, 8, 8)
    pet[1, 5, 6, 7] = 4.0
    clicks = negative_click(empty, strategy="hot_background", keys=[(0,), (1,)], pet=pet)
    assert clicks.labels.tolist() == [-1, 0]
    assert clicks.coords_vox[1].tolist() == [5, 6, 7]


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_hot_background_uses_numpys_percentile(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(2, 14, 3))
    mask, pet = rng.random((2, *shape)) < 0.3, rng.random((2, *shape))
    mask[0, 0, 0, 0] = mask[1, 0, 0, 0] = False
    found = hot_background(torch.from_numpy(mask), torch.from_numpy(pet)).numpy()
    for i in range(2):
        expected = ~mask[i] & (pet[i] > np.percentile(pet[i][~mask[i]], 99.75))
        np.testing.assert_array_equal(found[i], expected)


@pytest.mark.parametrize("strategy", NEGATIVE_STRATEGIES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_never_in_a_lesion_and_the_batch_does_not_matter(strategy: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = torch.from_numpy(rng.random((3, 1, 7, 6, 8)) < rng.random((3, 1, 1, 1, 1)) ** 3)
    pet = torch.from_numpy(rng.random((3, 1, 7, 6, 8)))
    keys = [(seed, 0, i, 0) for i in range(3)]

    def clicks(of: list[int]) -> list[tuple[list[float], int]]:
        found = negative_click(mask[of], strategy=strategy, keys=[keys[i] for i in of], pet=pet[of])
        return list(zip(found.coords_vox.tolist(), found.labels.tolist(), strict=True))

    together = clicks([0, 1, 2])
    assert [clicks([i])[0] for i in (0, 1, 2)] == together
    for i, (voxel, label) in enumerate(together):
        assert label in (0, -1)
        assert label == -1 or not mask[i, 0][tuple(int(c) for c in voxel)]


def test_wrong_input() -> None:
    mask = torch.zeros(1, 4, 4, 4, dtype=torch.bool)
    with pytest.raises(InputError, match="near_miss, hot_background"):
        negative_click(mask, strategy="far", keys=[(0,)])
    with pytest.raises(InputError, match="provide the PET"):
        negative_click(mask, strategy="hot_background", keys=[(0,)])
