"""Loss selection: each name accepts one logit and several classes; invalid settings give a one-line error."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from sammed3d_ft.errors import InputError
from sammed3d_ft.losses import L1DFL
from sammed3d_ft.losses.choice import LOSSES, build_loss


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("space", [(8, 9), (6, 7, 8)])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float32])
def test_every_loss_takes_every_form(name: str, channels: int, space: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    n_classes = 2 if dtype == torch.bool else max(channels, 2)
    target = torch.randint(0, n_classes, (2, 1, *space), generator=generator)
    right = (target * 2 - 1) * 40.0
    if channels > 1:
        right = torch.full((2, channels, *space), -40.0).scatter_(1, target, 40.0)
    logits = torch.randn(right.shape, generator=generator).requires_grad_()
    loss = build_loss(name)
    value = loss(logits, target.to(dtype))
    assert value.shape == ()
    value.backward()
    assert logits.grad is not None
    assert logits.grad.abs().sum() > 0
    assert value > 0.1
    assert loss(right, target.to(dtype)).item() == pytest.approx(0, abs=1e-4)


def test_monai_losses_of_one_logit_by_hand() -> None:
    logits = torch.tensor([2.0, -1.0, 0.0, -3.0]).view(1, 1, 2, 2)
    target = torch.tensor([1, 0, 0, 0]).view(1, 1, 2, 2)
    p = torch.sigmoid(logits).flatten()
    dice = 1 - (2 * p[0] + 1e-5) / (p.sum() + 1 + 1e-5)
    hit = torch.cat([p[:1], 1 - p[1:]])
    ce = -hit.log().mean()
    focal = ((1 - hit) ** 2 * -hit.log()).mean()
    assert build_loss("dice")(logits, target).item() == pytest.approx(dice.item(), abs=1e-6)
    assert build_loss("dice_ce")(logits, target).item() == pytest.approx((dice + ce).item(), abs=1e-6)
    assert build_loss("dice_focal")(logits, target).item() == pytest.approx((dice + focal).item(), abs=1e-6)


def test_monai_dice_ce_of_three_classes_by_hand() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 3, 4, 4, generator=generator)
    target = torch.randint(0, 3, (1, 1, 4, 4), generator=generator)
    p, t = torch.softmax(logits, 1), F.one_hot(target[:, 0], 3).movedim(-1, 1)
    dice = 1 - ((2 * (p * t).sum((2, 3)) + 1e-5) / ((p + t).sum((2, 3)) + 1e-5)).mean()
    expected = dice + F.cross_entropy(logits, target[:, 0])
    assert build_loss("dice_ce")(logits, target).item() == pytest.approx(expected.item(), abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_float32_under_autocast(name: str) -> None:
    logits = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    target = logits > 0.5
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = build_loss(name)(logits, target)
    assert value.dtype == torch.float32
    assert torch.equal(value, build_loss(name)(logits.float(), target))


def test_options_reach_the_loss() -> None:
    loss = build_loss("l1dfl", gamma=0.0, epsilon=0.1, sync_counts=True)
    assert isinstance(loss, L1DFL)
    assert (loss.gamma, loss.epsilon, loss.sync_counts) == (0.0, 0.1, True)
    logits = torch.zeros(1, 1, 4, 4)
    target = torch.ones_like(logits)
    both, dice = build_loss("dice_focal", gamma=1.0)(logits, target), build_loss("dice")(logits, target)
    assert (both - dice).item() == pytest.approx(0.5 * math.log(2), abs=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("l1df", {}, "unknown loss 'l1df', did you mean 'l1dfl'; expected one of l1dfl, dice, "),
        ("l1dfl", {"eps": 0.1}, "loss l1dfl has no option 'eps'"),
        ("l1dfl", {"epsilon": 0.3}, "1/epsilon"),
        ("dice", {"sync_counts": True}, "loss dice has no option 'sync_counts'"),
        ("dice", {"sigmoid": False}, "loss dice has no option 'sigmoid'"),
        ("dice_ce", {"lambda_dise": 1}, "did you mean 'lambda_dice'"),
        ("dice_ce", {"lambda_dice": -1.0}, "loss dice_ce does not accept the options"),
    ],
)
def test_wrong_settings_are_one_line(name: str, options: dict, said: str) -> None:
    with pytest.raises(InputError) as caught:
        build_loss(name, **options)
    assert said in str(caught.value)


@pytest.mark.parametrize("name", LOSSES)
def test_shapes_are_checked_alike(name: str) -> None:
    with pytest.raises(InputError, match=r"\(1, 4, 4\)"):
        build_loss(name)(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4))
