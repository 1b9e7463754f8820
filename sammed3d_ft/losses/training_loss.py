"""The loss used in training: an optional Dice-CE warm start, and NaN instead of an exception for invalid input."""

from __future__ import annotations

import logging
import math
from typing import Any

from torch import Tensor, nn

from sammed3d_ft.errors import InputError
from sammed3d_ft.losses.choice import build_loss

_log = logging.getLogger(__name__)


class TrainingLoss(nn.Module):
    """A loss with an optional Dice-CE warm start that returns NaN for invalid input.

    Warm start: L1DFL has a plateau at probabilities between 0.2 and 0.4, where networks with random weights start.
    Dice-CE leads out of it.

    NaN: an `InputError` of the loss (such as NaN logits) is logged once, and the loss is NaN. The NaN depends on the
    logits, so every process runs the same backward pass and finds NaN in the averaged gradient. If one process raised
    an exception, the others would hang.

    Args:
        name: name of the loss, see `build_loss`.
        options: options of the loss.
        warm_start: initial fraction of the training, from 0 to below 1, in which Dice-CE is used instead.

    Raises:
        InputError: see `build_loss`.
    """

    def __init__(self, name: str, options: dict[str, Any], warm_start: float = 0.0) -> None:
        super().__init__()
        self.chosen = build_loss(name, **options)
        self.first = build_loss("dice_ce") if warm_start else None
        self.warm_start = warm_start
        self._logged = False

    def forward(self, logits: Tensor, target: Tensor, progress: float) -> Tensor:
        """Scalar loss of logits (B, C, *spatial) for a target (B, 1, *spatial) of class numbers.

        ``progress`` is the fraction of the training's steps already done, from 0 to below 1.
        """
        use = self.first if self.first is not None and progress < self.warm_start else self.chosen
        try:
            loss: Tensor = use(logits, target)
        except InputError as error:
            if not self._logged:
                _log.warning("%s", error)
            self._logged = True
            return logits.sum() * math.nan
        return loss
