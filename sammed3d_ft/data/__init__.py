"""Data: manifests and their check, images with their geometry, crops, augmentation, and the phantom.

Public names are loaded on first use, so importing the package is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sammed3d_ft.data.check import CheckReport, check_manifest
    from sammed3d_ft.data.images import (
        SourceGrid,
        Volume,
        from_array,
        grid_difference,
        read_image,
        read_label,
        resample_like,
        same_grid,
        write_float,
        write_mask,
    )
    from sammed3d_ft.data.manifest import Case, Manifest, read_manifest, write_manifest

_HOME = {
    "Case": "manifest",
    "CheckReport": "check",
    "Manifest": "manifest",
    "SourceGrid": "images",
    "Volume": "images",
    "check_manifest": "check",
    "from_array": "images",
    "grid_difference": "images",
    "read_image": "images",
    "read_label": "images",
    "read_manifest": "manifest",
    "resample_like": "images",
    "same_grid": "images",
    "write_float": "images",
    "write_manifest": "manifest",
    "write_mask": "images",
}

__all__ = [
    "Case",
    "CheckReport",
    "Manifest",
    "SourceGrid",
    "Volume",
    "check_manifest",
    "from_array",
    "grid_difference",
    "read_image",
    "read_label",
    "read_manifest",
    "resample_like",
    "same_grid",
    "write_float",
    "write_manifest",
    "write_mask",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'sammed3d_ft.data' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sammed3d_ft.data.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
