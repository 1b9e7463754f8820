"""L1DFL against the golden file, the definition, hand-computed values and its edge cases."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sammed3d_ft.errors import InputError
from sammed3d_ft.losses import L1DFL
from tests.support.plain_l1dfl import plain_l1dfl

GOLDEN = json.loads((Path(__file__).parent / "l1dfl_golden.json").read_text())["cases"]


def golden_inputs(shape: list[int], channels: int) -> tuple[Tensor, Tensor]:
    """Logits and target of a golden case, by the formulas in the golden file."""
    batch, *space = shape
    i = torch.arange(batch * channels * math.prod(space), dtype=torch.float64)
    logits = 3 * torch.sin(1.7 * i + 0.3) + 1.5 * torch.cos(0.013 * i)
    j = torch.arange(batch * math.prod(space)) * 7919 % 97
    target = j % 3 if channels == 3 else (j < 5).long()
    return logits.view(batch, channels, *space), target.view(batch, 1, *space)


def random_case(*shape: int, channels: int = 1, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    batch, *space = shape
    target = torch.randint(0, max(channels, 2), (batch, 1, *space), generator=generator)
    target = target * (torch.rand(target.shape, generator=generator) < 0.2)
    logits = torch.randn(batch, channels, *space, generator=generator, dtype=torch.float64) * 3 - 1
    return logits.to(dtype), target


def gradient(loss: Tensor, logits: Tensor) -> Tensor:
    return torch.autograd.grad(loss, logits)[0]


@pytest.mark.parametrize(
    "case", GOLDEN, ids=lambda c: f"{'x'.join(map(str, c['shape']))}-c{c['channels']}-gamma{c['gamma']:g}"
)
def test_golden(case: dict) -> None:
    logits, target = golden_inputs(case["shape"], case["channels"])
    settings = {"gamma": case["gamma"], "epsilon": case["epsilon"]}
    assert L1DFL(**settings)(logits, target).item() == pytest.approx(case["loss"], abs=1e-6)
    # The form the other tests compare with must itself agree, term by term.
    expected = (case["loss"], case["dice_term"], case["focal_term"])
    assert [x.item() for x in plain_l1dfl(logits, target, **settings)] == pytest.approx(expected, abs=1e-6)


def test_golden_file_is_whole() -> None:
    assert len(GOLDEN) == 18


def test_by_hand() -> None:
    # p = 0.9 for the one lesion voxel; 0.1, 0.4, 0.1 for background. Errors 0.1, 0.1, 0.4, 0.1 with epsilon
    # 0.1: three in the bin round 0.1, one in that round 0.4; weights 4 * 0.1 / 3 and 4 * 0.1 / 1.
    p = torch.tensor([0.9, 0.1, 0.4, 0.1], dtype=torch.float64).view(1, 1, 2, 2)
    target = torch.tensor([1, 0, 0, 0]).view(1, 1, 2, 2)
    many, rare = 0.4 / 3, 0.4
    foreground = 2 * many * 0.9 / (many * (0.81 + 1 + 0.01 + 0.01) + rare * 0.16)
    background = 2 * (many * 1.8 + rare * 0.6) / (many * (2 * 1.81 + 0.01) + rare * 1.36)
    focal = (3 * 0.1**2 * -math.log(0.9) + 0.4**2 * -math.log(0.6)) / 8
    expected = 1 - (foreground + background) / 2 + focal
    assert L1DFL(epsilon=0.1)(torch.logit(p), target).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("target_dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_value_and_gradient_over_many_pieces(gamma: float, target_dtype: torch.dtype) -> None:
    # Three samples of 198 800 voxels: several pieces, several rows each and a rest.
    logits, target = random_case(3, 40, 70, 71)
    logits.requires_grad_()
    loss = L1DFL(gamma=gamma)(logits, target.to(target_dtype))
    expected, _, _ = plain_l1dfl(logits, target, gamma=gamma)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits), rtol=1e-9, atol=1e-16)


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("space", [(5, 6), (4, 3, 5)])
@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_gradcheck(channels: int, space: tuple[int, ...], gamma: float) -> None:
    logits, target = random_case(2, *space, channels=channels)
    two = torch.cat([torch.zeros_like(logits), logits], dim=1) if channels == 1 else logits
    p = torch.softmax(two, dim=1)
    # Between bins the loss jumps: the points must be off the edges.
    assert ((p * 20 + 0.5).frac() - 0.5).abs().max() < 0.5 - 1e-4
    loss = L1DFL(gamma=gamma)
    assert torch.autograd.gradcheck(lambda z: loss(z, target), logits.requires_grad_(), atol=1e-6)


@pytest.mark.parametrize("space", [(9, 11), (6, 7, 8)])
def test_one_logit_equals_two_classes(space: tuple[int, ...]) -> None:
    one, target = random_case(2, *space)
    one.requires_grad_()
    two = torch.cat([torch.zeros_like(one), one], dim=1)
    shifted = torch.cat([torch.zeros_like(one), one], dim=1) + torch.linspace(-2, 2, one.numel()).view_as(one)
    loss = L1DFL()(one, target)
    slope = gradient(loss, one)
    for other in (two, shifted):
        same = L1DFL()(other, target)
        assert same.item() == pytest.approx(loss.item(), abs=1e-12)
        torch.testing.assert_close(gradient(same, one), slope)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_float32_against_float64(channels: int) -> None:
    logits, target = random_case(2, 24, 24, 24, channels=channels, dtype=torch.float32)
    exact = logits.double().requires_grad_()
    logits.requires_grad_()
    loss, expected = L1DFL()(logits, target), L1DFL()(exact, target)
    assert loss.dtype == torch.float32
    assert expected.dtype == torch.float64
    assert loss.item() == pytest.approx(expected.item(), abs=2e-6)
    # A voxel on a bin's edge may fall on either side, which changes its own gradient only.
    slope = gradient(expected, exact)
    error = (gradient(loss, logits) - slope).abs() / slope.abs().max()
    assert (error > 1e-5).sum() <= 5


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(channels: int, half: torch.dtype) -> None:
    logits, target = random_case(1, 12, 12, 12, channels=channels, dtype=half)
    logits.requires_grad_()
    exact = logits.detach().float().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = L1DFL()(logits, target)
    expected = L1DFL()(exact, target)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    grad = gradient(loss, logits)
    assert grad.dtype == half
    torch.testing.assert_close(grad, gradient(expected, exact).to(half), rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("label", [0, 1])
def test_empty_and_full_target_by_hand(label: int) -> None:
    # p = 0.5 everywhere: one bin, weight 0.05. The absent class scores 0, the other 2 * 0.5 / (0.25 + 1).
    logits = torch.zeros(2, 1, 8, 8, 8, requires_grad=True)
    target = torch.full_like(logits, label, dtype=torch.uint8)
    loss = L1DFL()(logits, target)
    assert loss.item() == pytest.approx(1 - 0.8 / 2 + 0.25 * math.log(2) / 2, abs=1e-6)
    grad = gradient(loss, logits)
    assert torch.isfinite(grad).all()
    assert (grad > 0).all() if label == 0 else (grad < 0).all()


@pytest.mark.parametrize("size", [1.0, 8.0, 30.0, 200.0, 1e6])
@pytest.mark.parametrize("channels", [1, 3])
def test_empty_target_has_finite_gradient_at_any_confidence(size: float, channels: int) -> None:
    logits, _ = random_case(1, 8, 8, 8, channels=channels, dtype=torch.float32)
    logits = (logits.abs() * -size).requires_grad_()
    loss = L1DFL()(logits, torch.zeros(1, 1, 8, 8, 8, dtype=torch.bool))
    assert torch.isfinite(loss)
    assert torch.isfinite(gradient(loss, logits)).all()


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_perfect_prediction_costs_nothing(channels: int) -> None:
    _, target = random_case(2, 8, 8, 8, channels=channels)
    if channels == 1:
        logits = (target.float() * 2 - 1) * 50
    else:
        logits = torch.zeros(2, channels, 8, 8, 8).scatter_(1, target, 50.0)
    for labels in (target, target * 0):
        ideal = logits if labels is target else logits.new_zeros(logits.shape)
        if labels is not target:
            ideal[:, 0] = -50.0 if channels == 1 else 50.0
        ideal.requires_grad_()
        loss = L1DFL()(ideal, labels)
        assert loss.item() == pytest.approx(0, abs=1e-6)
        assert torch.isfinite(gradient(loss, ideal)).all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_logits_that_are_not_finite_are_refused(value: float, channels: int, dtype: torch.dtype) -> None:
    logits, target = random_case(2, 12, 12, 12, channels=channels, dtype=dtype)
    logits[1, 0, 3, 4, 5] = value
    with pytest.raises(InputError, match=r"[12] of \d+ logits .* are NaN or infinite"):
        L1DFL()(logits, target)


@pytest.mark.parametrize(
    ("channels", "wrong"),
    [(1, 2.0), (1, 0.5), (1, 255.0), (1, -1.0), (1, math.nan), (2, 2.0), (3, 3.0), (3, -1.0)],
)
def test_target_that_is_no_class_is_refused(channels: int, wrong: float) -> None:
    logits, target = random_case(1, 6, 6, 6, channels=channels)
    target = target.float()
    target[0, 0, 1, 2, 3] = wrong
    said = f"target values {wrong:g}; expected class numbers 0 to {max(channels, 2) - 1}"
    with pytest.raises(InputError, match=said):
        L1DFL()(logits, target)


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        ((1, 1, 4, 4, 4), (1, 4, 4, 4)),
        ((1, 1, 4, 4, 4), (1, 1, 4, 4, 5)),
        ((2, 1, 4, 4), (1, 1, 4, 4)),
        ((2, 3, 4, 4), (2, 3, 4, 4)),
        ((2, 1, 4), (2, 1, 4)),
        ((0, 1, 4, 4), (0, 1, 4, 4)),
    ],
)
def test_shapes_that_do_not_fit_are_one_line(logits: tuple[int, ...], target: tuple[int, ...]) -> None:
    with pytest.raises(InputError) as caught:
        L1DFL()(torch.zeros(logits), torch.zeros(target))
    assert str(logits) in str(caught.value)
    assert str(target) in str(caught.value)


@pytest.mark.parametrize("epsilon", [0.03, 0.3, 0.06, 1.5, 0.0, -0.1, math.nan, math.inf])
def test_bins_that_do_not_align_are_refused(epsilon: float) -> None:
    with pytest.raises(InputError, match=f"epsilon {epsilon}; 1/epsilon must be a whole number"):
        L1DFL(epsilon=epsilon)


@pytest.mark.parametrize("epsilon", [1.0, 0.5, 0.2, 1 / 3, 0.01, 0.001])
def test_any_aligned_bins(epsilon: float) -> None:
    logits, target = random_case(1, 10, 10, 10)
    expected = plain_l1dfl(logits, target, epsilon=1 / round(1 / epsilon))[0]
    assert L1DFL(epsilon=epsilon)(logits, target).item() == pytest.approx(expected.item(), abs=1e-9)


@pytest.mark.parametrize("gamma", [-1.0, math.nan, math.inf])
def test_focal_exponent_out_of_range_is_refused(gamma: float) -> None:
    with pytest.raises(InputError, match="gamma"):
        L1DFL(gamma=gamma)


def test_repeated_calls_are_identical() -> None:
    logits, target = random_case(2, 30, 30, 30, dtype=torch.float32)
    logits.requires_grad_()
    first, second = (gradient(L1DFL()(logits, target), logits) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.gpu
def test_same_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    logits, target = random_case(2, 40, 40, 40)
    logits.requires_grad_()
    on_gpu = logits.detach().cuda().requires_grad_()
    loss, expected = L1DFL()(on_gpu, target.cuda()), L1DFL()(logits, target)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    slope = gradient(expected, logits)
    torch.testing.assert_close(gradient(loss, on_gpu).cpu(), slope, rtol=1e-9, atol=1e-16)
