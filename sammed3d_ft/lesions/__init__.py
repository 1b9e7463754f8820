"""Lesions and their quantities: size classes, SUV, TLA, Dmax, and the lesion table."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sammed3d_ft.lesions.quantities import dmax_cm, suv_peak
    from sammed3d_ft.lesions.table import SIZE_CLASSES, Lesion, lesion_table, size_class

_PUBLIC = {
    "Lesion": "table",
    "SIZE_CLASSES": "table",
    "dmax_cm": "quantities",
    "lesion_table": "table",
    "size_class": "table",
    "suv_peak": "quantities",
}

__all__ = ["SIZE_CLASSES", "Lesion", "dmax_cm", "lesion_table", "size_class", "suv_peak"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
