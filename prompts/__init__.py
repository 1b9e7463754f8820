"""Clicks: simulated from lesion masks, from PET proposals, and read from click files.

A click is a point with a label: 1 foreground, 0 background; in batches, -1 marks a missing click (padding).
This package imports numpy, scipy, torch and cc3d, and nothing from `sammed3d_ft`. Public names are loaded on
first use, so `import prompts` is fast.
"""

from __future__ import annotations

import importlib
from typing import Any

_HOME = {
    "CONNECTIVITIES": "lesions",
    "CORRECTION_STRATEGIES": "corrections",
    "Click": "clicks",
    "Clicks": "batch",
    "FIRST_STRATEGIES": "first_clicks",
    "FORMS": "click_files",
    "InputError": "errors",
    "Key": "randomness",
    "NEGATIVE_STRATEGIES": "scan",
    "ScanClicks": "clicks",
    "autopet_clicks": "autopet",
    "check_inside": "clicks",
    "clicks_from_mask": "scan",
    "clicks_to_vox": "clicks",
    "deepest_point": "depth",
    "first_click": "first_clicks",
    "lesions_from_mask": "lesions",
    "next_click": "corrections",
    "read_clicks": "click_files",
    "uniforms": "randomness",
    "write_clicks": "click_files",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prompts' has no attribute {name!r}")
    return getattr(importlib.import_module(f"prompts.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
