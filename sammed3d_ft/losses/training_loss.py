"""The loss as a training calls it: an input that it refuses gives NaN, which the training finds once a step."""

from __future__ import annotations

import logging
import math

from torch import Tensor, nn

from prompts.errors import InputError

_log = logging.getLogger(__name__)


class TrainingLoss(nn.Module):
    """A loss whose `InputError` (NaN or infinite logits, ...) is logged once, and becomes a NaN loss.

    The NaN depends on the logits. Every process therefore goes through the same backward pass, where a process that
    raised would leave the others waiting for its gradients, and all find the NaN in the averaged gradient.
    """

    def __init__(self, chosen: nn.Module) -> None:
        super().__init__()
        self.chosen = chosen
        self._told = False

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits (B, C, *spatial) for a target (B, 1, *spatial) of class numbers."""
        try:
            loss: Tensor = self.chosen(logits, target)
        except InputError as error:
            if not self._told:
                _log.warning("%s", error)
            self._told = True
            return logits.sum() * math.nan
        return loss
