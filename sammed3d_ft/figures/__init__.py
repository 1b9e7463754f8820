"""Figures: training curves, maximum-intensity projections, evaluation plots, and the HTML page that shows them."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sammed3d_ft.figures.curves import draw_training_curves
    from sammed3d_ft.figures.html_page import Page
    from sammed3d_ft.figures.mip import draw_mip

_PUBLIC = {"Page": "html_page", "draw_mip": "mip", "draw_training_curves": "curves"}

__all__ = ["Page", "draw_mip", "draw_training_curves"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
