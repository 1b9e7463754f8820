"""Inference: from clicks and images to lesions on the scan's own grid. Public names load on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sammed3d_ft.inference.prediction import LesionPrediction
    from sammed3d_ft.inference.predictor import Predictor

_HOME = {"LesionPrediction": "prediction", "Predictor": "predictor"}

__all__ = ["LesionPrediction", "Predictor"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
