"""The parts of Meta's `segment-anything` that SAM-Med3D shares, imported without torchvision.

`import segment_anything` runs its package `__init__`, which imports the 2D predictor and with it torchvision;
beside a CPU-only torch that may not load. The `modeling` sub-package needs none of it, so it is reached
by registering the parent package without running its `__init__`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from types import ModuleType


def _modeling_module(name: str) -> ModuleType:
    """``segment_anything.modeling.<name>`` without running ``segment_anything/__init__``."""
    full_name = f"segment_anything.modeling.{name}"
    if "segment_anything" in sys.modules:  # somebody imported it whole: use theirs
        return importlib.import_module(full_name)
    spec = importlib.util.find_spec("segment_anything")  # finds, does not execute
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("segment_anything is not installed: pip install segment-anything")
    parent = ModuleType("segment_anything")
    parent.__path__ = list(spec.submodule_search_locations)
    sys.modules["segment_anything"] = parent
    try:
        return importlib.import_module(full_name)
    finally:
        # A later `import segment_anything` by the user must run the real `__init__`.
        del sys.modules["segment_anything"]


MLPBlock = _modeling_module("common").MLPBlock
MLP = _modeling_module("mask_decoder").MLP
TwoWayTransformer = _modeling_module("transformer").TwoWayTransformer
