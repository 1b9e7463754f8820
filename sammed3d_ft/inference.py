"""Public API of prompted inference: `Predictor` and what it returns. The code is in `sammed3d_ft.prompted`."""

from __future__ import annotations

from sammed3d_ft.prompted.prediction import LesionPrediction
from sammed3d_ft.prompted.predictor import Predictor

__all__ = ["LesionPrediction", "Predictor"]
