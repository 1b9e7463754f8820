"""Clicks: simulated from lesion masks, from PET proposals, and read from click files.

A click is a point with a label: 1 foreground, 0 background; in batches, -1 marks a missing click (padding).
This package imports numpy, scipy, torch and cc3d, and nothing from `sammed3d_ft`. Public names are loaded on
first use, so `import prompts` is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompts.autopet import autopet_clicks
    from prompts.batch import Clicks
    from prompts.click_files import FORMS, read_clicks, write_clicks
    from prompts.clicks import Click, check_inside, clicks_to_vox
    from prompts.corrections import CORRECTION_STRATEGIES, next_click
    from prompts.depth import deepest_point
    from prompts.errors import InputError
    from prompts.first_clicks import FIRST_STRATEGIES, first_click
    from prompts.lesions import CONNECTIVITIES, lesions_from_mask
    from prompts.negatives import NEGATIVE_STRATEGIES, negative_click
    from prompts.randomness import Key, uniforms
    from prompts.scan import ScanClicks, clicks_from_mask

_HOME = {
    "CONNECTIVITIES": "lesions",
    "CORRECTION_STRATEGIES": "corrections",
    "Click": "clicks",
    "Clicks": "batch",
    "FIRST_STRATEGIES": "first_clicks",
    "FORMS": "click_files",
    "InputError": "errors",
    "Key": "randomness",
    "NEGATIVE_STRATEGIES": "negatives",
    "ScanClicks": "scan",
    "autopet_clicks": "autopet",
    "check_inside": "clicks",
    "clicks_from_mask": "scan",
    "clicks_to_vox": "clicks",
    "deepest_point": "depth",
    "first_click": "first_clicks",
    "lesions_from_mask": "lesions",
    "negative_click": "negatives",
    "next_click": "corrections",
    "read_clicks": "click_files",
    "uniforms": "randomness",
    "write_clicks": "click_files",
}

__all__ = [
    "CONNECTIVITIES",
    "CORRECTION_STRATEGIES",
    "FIRST_STRATEGIES",
    "FORMS",
    "NEGATIVE_STRATEGIES",
    "Click",
    "Clicks",
    "InputError",
    "Key",
    "ScanClicks",
    "autopet_clicks",
    "check_inside",
    "clicks_from_mask",
    "clicks_to_vox",
    "deepest_point",
    "first_click",
    "lesions_from_mask",
    "negative_click",
    "next_click",
    "read_clicks",
    "uniforms",
    "write_clicks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'prompts' has no attribute {name!r}")
    return getattr(importlib.import_module(f"prompts.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
