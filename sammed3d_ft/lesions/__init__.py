"""Lesions and their quantities: size classes, SUV, TLA, Dmax, and the lesion table."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sammed3d_ft.lesions.diameter import dmax_cm
    from sammed3d_ft.lesions.peak import suv_peak
    from sammed3d_ft.lesions.size import SIZE_CLASSES, size_class
    from sammed3d_ft.lesions.table import Lesion, lesion_table

_PUBLIC = {
    "Lesion": "table",
    "SIZE_CLASSES": "size",
    "dmax_cm": "diameter",
    "lesion_table": "table",
    "size_class": "size",
    "suv_peak": "peak",
}

__all__ = ["SIZE_CLASSES", "Lesion", "dmax_cm", "lesion_table", "size_class", "suv_peak"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
