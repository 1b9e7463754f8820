"""The training loss: Dice-CE first, then the chosen loss; NaN for invalid input."""

from __future__ import annotations

import logging

import pytest
import torch

from sammed3d_ft.errors import InputError
from sammed3d_ft.losses import L1DFL
from sammed3d_ft.losses.choice import build_loss
from sammed3d_ft.losses.training_loss import TrainingLoss

LOGITS = torch.randn(2, 1, 6, 7, 8, generator=torch.Generator().manual_seed(0))
TARGET = LOGITS + torch.randn(LOGITS.shape, generator=torch.Generator().manual_seed(1)) > 1


def test_the_loss_changes_at_the_share_of_the_steps() -> None:
    loss = TrainingLoss("l1dfl", {"gamma": 0.0, "epsilon": 0.1}, warm_start=0.3)
    first, then = (float(each(LOGITS, TARGET)) for each in (build_loss("dice_ce"), L1DFL(gamma=0.0, epsilon=0.1)))
    assert first != then
    assert [float(loss(LOGITS, TARGET, step / 10)) for step in range(10)] == [first] * 3 + [then] * 7


@pytest.mark.parametrize("name", ["l1dfl", "dice", "dice_ce", "dice_focal"])
def test_without_a_warm_start_it_is_the_chosen_loss_from_the_first_step(name: str) -> None:
    assert torch.equal(TrainingLoss(name, {})(LOGITS, TARGET, 0.0), build_loss(name)(LOGITS, TARGET))


def test_a_refused_input_is_nan_with_a_gradient_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    logits = LOGITS.clone().requires_grad_()
    with pytest.raises(InputError):
        L1DFL()(logits * torch.inf, TARGET)
    loss = TrainingLoss("l1dfl", {})
    with caplog.at_level(logging.WARNING):
        values = [loss(logits * torch.inf, TARGET, 0.5) for _ in range(3)]
    assert all(bool(value.isnan()) for value in values)
    values[0].backward()
    assert logits.grad is not None
    assert bool(logits.grad.isnan().all())
    assert [record.message.partition(";")[0] for record in caplog.records] == [
        "672 of 672 logits passed to the loss are NaN or infinite"
    ]
