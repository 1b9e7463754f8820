"""PET/CT phantoms of whole patients with known truth, drawn from a seed.

The parts, in reading order: `tissues` (HU and SUV with their sources), `skeleton` and `organs` (the anatomy,
in mm), `lesions` (what is to be found), `scanners` and `physics` (how it is seen), `outlines` (how it is labelled),
`simulate` (one case), `cohort` (a folder of cases).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sammed3d_ft.phantom.cohort import write_cohort as write_cohort
    from sammed3d_ft.phantom.simulate import FIELDS as FIELDS
    from sammed3d_ft.phantom.simulate import Phantom as Phantom
    from sammed3d_ft.phantom.simulate import make_phantom as make_phantom

_HOME = {"make_phantom": "simulate", "Phantom": "simulate", "FIELDS": "simulate", "write_cohort": "cohort"}
__all__ = ["FIELDS", "Phantom", "make_phantom", "write_cohort"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
