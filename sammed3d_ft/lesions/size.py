"""Lesion size classes by volume: small below 1.5 ml, medium from 1.5 ml, large from 4 ml."""

from __future__ import annotations

import math
from typing import Literal

SizeClass = Literal["small", "medium", "large"]

SIZE_CLASSES: tuple[SizeClass, ...] = ("small", "medium", "large")
"""From the smallest to the largest, for tables."""

MEDIUM_FROM_ML = 1.5
LARGE_FROM_ML = 4.0


def size_class(volume_ml: float) -> SizeClass:
    """Size class of one lesion of ``volume_ml`` millilitres.

    The limits are those of the L1DFL study of PSMA PET/CT (arXiv 2502.02756): below 1.5 ml small, below 4 ml
    medium. A lesion of exactly 1.5 ml is medium, one of exactly 4 ml is large.

    Raises:
        ValueError: the volume is not a positive, finite number.
    """
    if not (math.isfinite(volume_ml) and volume_ml > 0):
        raise ValueError(f"a lesion's volume must be positive and finite, got {volume_ml} ml")
    # With an oblique affine, a 1 mm^3 voxel may be 0.9999999999999998; rounding keeps a 1.5 ml lesion in its class.
    volume_ml = round(volume_ml, 9)
    if volume_ml < MEDIUM_FROM_ML:
        return "small"
    return "medium" if volume_ml < LARGE_FROM_ML else "large"
