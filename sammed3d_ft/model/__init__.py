"""SAM-Med3D: architecture, variants, weights, adapters. Public names load on first use."""

from __future__ import annotations

import importlib
from typing import Any

_NAMES = {
    "SAMMed3D": "sam_med3d",
    "LoopOutput": "sam_med3d",
    "build_model": "build",
    "seeded_model": "build",
    "VARIANTS": "variants",
    "Variant": "variants",
    "load_weights": "weights",
    "upsample": "upsampling",
}
__all__ = sorted(_NAMES)


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)


def __dir__() -> list[str]:
    return __all__
