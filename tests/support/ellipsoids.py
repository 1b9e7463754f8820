"""Masks from the lists of ellipsoids that the golden files hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def painted(shape: Sequence[int], parts: Sequence[Sequence[float]]) -> np.ndarray:
    """(x, y, z) float32: the highest confidence among the ellipsoids that hold a voxel, borders included, else 0.

    A part is its centre and radii in voxels and its confidence.
    """
    x, y, z = np.indices(shape).astype(float)
    out = np.zeros(shape, np.float32)
    for cx, cy, cz, rx, ry, rz, confidence in parts:
        inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 <= 1
        out[inside] = np.maximum(out[inside], np.float32(confidence))
    return out
