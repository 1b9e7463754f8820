"""Methods to compare with: the U-Net family (whole scans, without clicks), uptake thresholds, and 2D SAM.

Public names are loaded on first use, so that importing the package is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sammed3d_ft.baselines.automatic import AutomaticSegmenter
    from sammed3d_ft.baselines.networks import NETWORKS, SIZES, build_network
    from sammed3d_ft.baselines.unetr_sammed3d import UNETRSAMMed3D

_HOME = {
    "NETWORKS": "networks",
    "SIZES": "networks",
    "AutomaticSegmenter": "automatic",
    "UNETRSAMMed3D": "unetr_sammed3d",
    "build_network": "networks",
}

__all__ = ["NETWORKS", "SIZES", "AutomaticSegmenter", "UNETRSAMMed3D", "build_network"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
