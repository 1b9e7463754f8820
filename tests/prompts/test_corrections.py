"""Next clicks: each strategy on hand-made errors; empty, full and perfect masks; batches."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts import CORRECTION_STRATEGIES, InputError, next_click

KEYS = [(5, 0, 0, 1)]


def masks(shape: tuple[int, int, int] = (20, 20, 20)) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.zeros(1, 1, *shape, dtype=torch.bool), torch.zeros(1, 1, *shape, dtype=torch.bool)


def click(pred: torch.Tensor, target: torch.Tensor, strategy: str, **options: object) -> tuple[list[int], int]:
    clicks = next_click(pred, target, strategy=strategy, keys=KEYS, **options)  # type: ignore[arg-type]
    return [int(c) for c in clicks.coords_vox[0]], int(clicks.labels[0])


@pytest.mark.parametrize("strategy", CORRECTION_STRATEGIES)
def test_one_missed_voxel_and_one_false_voxel(strategy: str) -> None:
    pred, target = masks()
    pred[..., 2:5, 2:5, 2:5] = target[..., 2:5, 2:5, 2:5] = True
    pred[0, 0, 3, 3, 3] = False
    assert click(pred, target, strategy) == ([3, 3, 3], 1)
    pred[0, 0, 3, 3, 3], pred[0, 0, 17, 0, 19] = True, True
    assert click(pred, target, strategy) == ([17, 0, 19], 0)


def test_deepest_takes_the_deeper_of_missed_and_false_and_missed_on_a_tie() -> None:
    pred, target = masks()
    target[..., 1:4, 1:4, 1:4] = True  # missed cube, depth 2
    pred[..., 8:13, 8:13, 8:13] = True  # false cube, depth 3
    assert click(pred, target, "error_deepest") == ([10, 10, 10], 0)
    pred[..., 8:13, 8:13, 8:13] = False
    pred[..., 8:11, 8:11, 8:11] = True  # depth 2 as well
    assert click(pred, target, "error_deepest") == ([2, 2, 2], 1)


def test_deepest_never_joins_missed_and_false_voxels_that_touch() -> None:
    # As one region the depth would be largest at the seam.
    pred, target = masks()
    target[..., 2:7, 2:11, 2:11] = True
    pred[..., 7:10, 2:11, 2:11] = True
    assert click(pred, target, "error_deepest") == ([4, 6, 6], 1)


def test_deepest_measures_in_mm() -> None:
    pred, target = masks()
    target[..., 2:5, 2:17, 2:17] = True  # 3 voxels thick along x
    pred[..., 8:19, 8:19, 19:20] = True  # 1 voxel thick along z
    assert click(pred, target, "error_deepest")[1] == 1
    assert click(pred, target, "error_deepest", spacing_mm=(1.0, 1.0, 9.0))[1] == 0


def test_largest_goes_by_voxels_not_by_depth() -> None:
    pred, target = masks()
    target[..., 1:6, 1:6, 1:6] = True  # missed cube: 125 voxels, depth 3
    pred[..., 8:10, 0:20, 0:19] = True  # false plate: 760 voxels, depth 1
    voxel, label = click(pred, target, "error_largest")
    assert label == 0
    assert voxel in ([8, 9, 9], [8, 10, 9])
    assert click(pred, target, "error_deepest") == ([3, 3, 3], 1)


def test_largest_prefers_a_missed_component_among_equals() -> None:
    pred, target = masks()
    pred[..., 1:4, 1:4, 1:4] = True
    target[..., 11:14, 11:14, 11:14] = True
    assert click(pred, target, "error_largest") == ([12, 12, 12], 1)


@pytest.mark.parametrize("strategy", CORRECTION_STRATEGIES)
def test_empty_full_and_perfect_masks(strategy: str) -> None:
    lesion = torch.zeros(1, 6, 6, 6, dtype=torch.bool)
    lesion[0, 1:4, 1:4, 1:4] = True
    empty, full = torch.zeros_like(lesion), torch.ones_like(lesion)
    assert click(lesion, lesion, strategy) == ([0, 0, 0], -1)
    assert click(empty, empty, strategy) == ([0, 0, 0], -1)
    assert click(full, full, strategy) == ([0, 0, 0], -1)
    voxel, label = click(empty, lesion, strategy)
    assert label == 1
    assert lesion[0][tuple(voxel)]
    voxel, label = click(full, lesion, strategy)
    assert label == 0
    assert not lesion[0][tuple(voxel)]
    voxel, label = click(lesion, empty, strategy)
    assert label == 0
    assert lesion[0][tuple(voxel)]


@pytest.mark.parametrize("strategy", CORRECTION_STRATEGIES)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1 << 30))
def test_label_tells_the_error_and_the_batch_does_not_matter(strategy: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    target = torch.from_numpy(rng.random((4, 1, 5, 7, 6)) < rng.random((4, 1, 1, 1, 1)))
    pred = torch.from_numpy(rng.random((4, 1, 5, 7, 6)) < rng.random((4, 1, 1, 1, 1)) ** 3)
    pred[2] = target[2]
    keys = [(seed, 1, i, 2) for i in range(4)]

    def clicks(of: list[int]) -> list[tuple[list[float], int]]:
        found = next_click(pred[of], target[of], strategy=strategy, keys=[keys[i] for i in of])
        return list(zip(found.coords_vox.tolist(), found.labels.tolist(), strict=True))

    together = clicks([0, 1, 2, 3])
    assert clicks([2, 0]) == [together[2], together[0]]
    assert [clicks([i])[0] for i in range(4)] == together
    assert together[2][1] == -1
    for i, (position, label) in enumerate(together):
        voxel = tuple(int(c) for c in position)
        if label == 1:
            assert target[i, 0][voxel]
            assert not pred[i, 0][voxel]
        elif label == 0:
            assert pred[i, 0][voxel]
            assert not target[i, 0][voxel]
        else:
            assert torch.equal(pred[i], target[i])


def test_random_errors_are_all_reached_and_rounds_differ() -> None:
    pred, target = masks((3, 3, 3))
    target[0, 0, :2] = True
    pred[0, 0, 1:] = True
    n = 600
    found = next_click(
        pred.expand(n, -1, -1, -1, -1),
        target.expand(n, -1, -1, -1, -1),
        keys=[(0, 0, 0, i) for i in range(n)],
    )
    assert len({tuple(v) for v in found.coords_vox.tolist()}) == 18
    assert 0.4 < float(found.labels.float().mean()) < 0.6


def test_mixed_errors_are_random_or_deepest() -> None:
    pred, target = masks((9, 9, 9))
    target[..., 1:8, 1:8, 1:8] = True
    n = 200
    both = pred.expand(n, -1, -1, -1, -1), target.expand(n, -1, -1, -1, -1)
    keys = [(0, 0, i, 1) for i in range(n)]
    mixed, drawn = (next_click(*both, strategy=f"error_{name}", keys=keys) for name in ("mixed", "random"))
    deepest = torch.tensor([4.0, 4.0, 4.0])
    is_deepest, is_drawn = ((mixed.coords_vox == other).all(1) for other in (deepest, drawn.coords_vox))
    assert (is_deepest | is_drawn).all()
    assert 70 < int(is_deepest.sum()) < 130


def test_other_types_of_mask_mean_the_same() -> None:
    pred, target = masks()
    target[..., 3:9, 3:9, 3:9] = True
    pred[..., 3:9, 3:9, 5:12] = True
    expected = next_click(pred, target, keys=KEYS)
    for other in (
        next_click(pred[:, 0].int(), target[:, 0].float(), keys=KEYS),
        next_click(pred.to(torch.uint8), target.long(), keys=KEYS),
        next_click(pred.transpose(2, 4).contiguous().transpose(2, 4), target, keys=KEYS),
    ):
        assert torch.equal(other.coords_vox, expected.coords_vox)
        assert torch.equal(other.labels, expected.labels)


def test_logits_are_refused() -> None:
    _, target = masks()
    with pytest.raises(ValueError, match="logits > 0"):
        next_click(torch.zeros(target.shape), target, keys=KEYS)


def test_wrong_input() -> None:
    pred, target = masks()
    with pytest.raises(InputError, match="choose one of error_random"):
        next_click(pred, target, strategy="random", keys=KEYS)
    with pytest.raises(ValueError, match="must be equal"):
        next_click(pred[..., :5], target, keys=KEYS)


@pytest.mark.gpu
@pytest.mark.parametrize("strategy", CORRECTION_STRATEGIES)
def test_gpu_chooses_as_the_cpu_does(strategy: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    generator = torch.Generator().manual_seed(0)
    pred, target = torch.rand(2, 3, 1, 32, 32, 32, generator=generator) > 0.6
    keys = [(0, 0, i, 0) for i in range(3)]
    cpu = next_click(pred, target, strategy=strategy, keys=keys)
    gpu = next_click(pred.cuda(), target.cuda(), strategy=strategy, keys=keys)
    assert gpu.coords_vox.is_cuda
    assert torch.equal(gpu.coords_vox.cpu(), cpu.coords_vox)
    assert torch.equal(gpu.labels.cpu(), cpu.labels)
