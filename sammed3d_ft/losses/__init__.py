"""Loss functions by name: L1DFL and MONAI's, with a common interface. Public names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sammed3d_ft.losses.choice import LOSSES, build_loss
    from sammed3d_ft.losses.l1dfl import L1DFL
    from sammed3d_ft.losses.training_loss import TrainingLoss

_NAMES = {"L1DFL": "l1dfl", "LOSSES": "choice", "TrainingLoss": "training_loss", "build_loss": "choice"}
__all__ = ["L1DFL", "LOSSES", "TrainingLoss", "build_loss"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
