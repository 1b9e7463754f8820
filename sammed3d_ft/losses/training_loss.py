"""The loss as a training calls it: with a warm start, and NaN where it refuses its input."""

from __future__ import annotations

import logging
import math
from typing import Any

from torch import Tensor, nn

from sammed3d_ft.errors import InputError
from sammed3d_ft.losses.choice import build_loss

_log = logging.getLogger(__name__)


class TrainingLoss(nn.Module):
    """A loss that may start as Dice-CE, and is NaN where it refuses its input.

    L1DFL has a plateau between probabilities of 0.2 and 0.4, where networks with random weights begin; Dice-CE leads
    out of it.

    An `InputError` of the loss (NaN or infinite logits, ...) is logged once. The NaN depends on the logits, so that
    every process goes through the same backward pass and finds NaN in the averaged gradient; a process that raised
    would leave the others waiting.

    Args:
        name: of the loss, see `build_loss`.
        options: of the loss.
        warm_start: share of the training, at least 0 and below 1, in which the loss is Dice-CE instead.

    Raises:
        InputError: see `build_loss`.
    """

    def __init__(self, name: str, options: dict[str, Any], warm_start: float = 0.0) -> None:
        super().__init__()
        self.chosen = build_loss(name, **options)
        self.first = build_loss("dice_ce") if warm_start else None
        self.warm_start = warm_start
        self._told = False

    def forward(self, logits: Tensor, target: Tensor, progress: float) -> Tensor:
        """Scalar loss of logits (B, C, *spatial) for a target (B, 1, *spatial) of class numbers.

        ``progress`` is the share of the training's steps that lies behind, at least 0 and below 1.
        """
        use = self.first if self.first is not None and progress < self.warm_start else self.chosen
        try:
            loss: Tensor = use(logits, target)
        except InputError as error:
            if not self._told:
                _log.warning("%s", error)
            self._told = True
            return logits.sum() * math.nan
        return loss
