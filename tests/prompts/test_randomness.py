"""Random numbers from keys, and the draw of a voxel."""

from collections import Counter

import numpy as np
import pytest
import torch

from prompts import uniforms
from prompts.randomness import first_voxel, random_voxel


def test_same_key_same_numbers_and_recorded_once() -> None:
    # Recorded: a change here changes every seeded run.
    expected = [0.7628297434795933, 0.03543846781114979, 0.1223436490025066]
    np.testing.assert_array_equal(uniforms((42, 0, "STS_001", 1), 3), expected)
    np.testing.assert_array_equal(uniforms((42, 0, "STS_001", 1), 2), expected[:2])


def test_keys_that_look_alike_differ() -> None:
    keys = [(1,), (1, 0), (0, 1), (1 << 32,), (-1,), (1, 0, 0), ("1",), ("a", "b"), ("ab",)]
    firsts = {float(uniforms(key, 1)[0]) for key in keys}
    assert len(firsts) == len(keys)


@pytest.mark.parametrize("key", [(), "abc"])
def test_a_key_is_a_sequence_of_parts(key: object) -> None:
    with pytest.raises(ValueError, match="key"):
        uniforms(key, 1)  # type: ignore[arg-type]


def test_uniform_draw_is_uniform() -> None:
    mask = torch.zeros(1, 4, 5, 300, dtype=torch.bool)  # rows longer than 255 take the wide counter
    mask[0, 0, 1, 299] = mask[0, 0, 1, 3] = mask[0, 3, 4, 0] = mask[0, 2, 0] = True
    n = 3000
    voxels, found = random_voxel(mask.expand(n, -1, -1, -1), [(i,) for i in range(n)])
    assert found.all()
    assert mask[0][tuple(voxels.T)].all()
    per_x = Counter(voxels[:, 0].tolist())
    # 303 voxels: 2, 300 and 1 of them; the bounds are five standard deviations.
    assert 2800 < per_x[2] <= n
    assert per_x[1] == 0
    assert 2 <= per_x[0] <= 43
    ends = voxels[voxels[:, 0] == 2][:, 2]
    assert abs(float(ends.float().mean()) - 149.5) < 8
    assert ends.min() < 5
    assert ends.max() > 294


def test_every_rank_is_found() -> None:
    # Against the plain list of true voxels: rank r of n is drawn by the uniforms in [r/n, (r+1)/n).
    mask = torch.from_numpy(np.random.default_rng(3).random((6, 7, 8)) < 0.2)
    listed = mask.nonzero()
    keys = [(7, i) for i in range(200)]
    ranks = [int(uniforms(key, 1)[0] * len(listed)) for key in keys]
    voxels, _ = random_voxel(mask.expand(200, -1, -1, -1), keys)
    assert torch.equal(voxels, listed[ranks])
    assert torch.equal(first_voxel(mask[None])[0], listed[:1])


def test_empty_masks_are_reported() -> None:
    mask = torch.zeros(2, 3, 3, 3, dtype=torch.bool)
    mask[1, 2, 2, 2] = True
    voxels, found = random_voxel(mask, [(0,), (1,)])
    assert found.tolist() == [False, True]
    assert voxels[1].tolist() == [2, 2, 2]


def test_one_key_per_sample() -> None:
    with pytest.raises(ValueError, match="one key per sample"):
        random_voxel(torch.ones(2, 3, 3, 3, dtype=torch.bool), [(0,)])
