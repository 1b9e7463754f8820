"""Fine-tune SAM-Med3D for lesions in PET/CT. Public names load on first use, so the import is fast."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "build_model": "model.build",
    "load_weights": "model.weights",
    "push_to_hub": "model.push",
    "VARIANTS": "model.variants",
}
_PACKAGES = (
    *("automatic", "benchmark", "comparators", "dataset", "dicom", "evaluation", "figures", "images", "inference"),
    *("lesions", "losses", "model", "phantom", "prompted", "recipes", "training"),
)
__all__ = [*sorted(_NAMES), *_PACKAGES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"{__name__}.{_NAMES[name]}"), name)
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
