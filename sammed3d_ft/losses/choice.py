"""Loss functions by name, all called as `loss(logits, target)`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn

from sammed3d_ft.errors import InputError
from sammed3d_ft.losses.l1dfl import L1DFL, check_shapes

LOSSES = ("l1dfl", "dice", "dice_ce", "dice_focal")

# Arguments of MONAI's constructors for one logit and for several classes; not available as options.
_ONE_LOGIT = {"sigmoid": True}
_MULTI_CLASS = {"softmax": True, "to_onehot_y": True}


class MonaiLoss(nn.Module):
    """A MONAI loss for one logit or several classes, like L1DFL, computed in float32 under autocast.

    One logit (B, 1, *spatial): MONAI's `sigmoid=True`, target unchanged. Several classes (B, C, *spatial):
    `softmax=True, to_onehot_y=True`, background included. Everything else is MONAI's default: Dice per sample and
    class with smoothing 1e-5 in numerator and denominator, unsquared denominator, mean over samples and classes;
    binary cross-entropy for one logit; focal term with gamma 2, which in MONAI uses the sigmoid per class even next to
    a softmax Dice. In combined losses, both terms have weight 1.

    Raises InputError for mismatched shapes, see `check_shapes`.
    """

    def __init__(self, loss: Callable[..., nn.Module], **options: Any) -> None:
        super().__init__()
        self.one_logit = loss(**_ONE_LOGIT, **options)
        self.multi_class = loss(**_MULTI_CLASS, **options)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits (B, C, *spatial) for a target (B, 1, *spatial) of class numbers."""
        check_shapes(logits, target)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        with torch.autocast(logits.device.type, enabled=False):
            chosen = self.one_logit if logits.shape[1] == 1 else self.multi_class
            return chosen(logits.to(dtype), target.to(dtype))


def build_loss(name: str, **options: Any) -> nn.Module:
    """Build the loss with this name, called as `loss(logits (B, C, *spatial), target (B, 1, *spatial))`.

    Args:
        name: `l1dfl` (see `L1DFL`), `dice`, `dice_ce` or `dice_focal` (MONAI's, see `MonaiLoss`).
        options: arguments of L1DFL, or of MONAI's class except those set by `MonaiLoss`.

    Raises:
        InputError: unknown name, unknown option, or a value that the loss does not accept.
    """
    if name not in LOSSES:
        raise InputError(f"unknown loss {name!r}{_meant(name, LOSSES)}; expected one of {', '.join(LOSSES)}")
    if name == "l1dfl":
        _check_options(name, L1DFL, options)
        return L1DFL(**options)

    from monai.losses import DiceCELoss, DiceFocalLoss, DiceLoss

    loss = {"dice": DiceLoss, "dice_ce": DiceCELoss, "dice_focal": DiceFocalLoss}[name]
    _check_options(name, loss, options)
    try:
        return MonaiLoss(loss, **options)
    except (ValueError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"loss {name} does not accept the options {options}: {reason}") from error


def _check_options(name: str, loss: type[nn.Module], options: dict[str, Any]) -> None:
    allowed = sorted({*inspect.signature(loss).parameters} - {*_ONE_LOGIT, *_MULTI_CLASS})
    for option in options:
        if option not in allowed:
            meant = _meant(option, allowed)
            raise InputError(f"loss {name} has no option {option!r}{meant}; its options are {', '.join(allowed)}")


def _meant(word: str, known: tuple[str, ...] | list[str]) -> str:
    close = get_close_matches(word, known, n=1)
    return f", did you mean {close[0]!r}" if close else ""
