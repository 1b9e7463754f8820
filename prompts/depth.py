"""Depth of voxels inside a mask, and the deepest voxel."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from prompts.boxes import bounding_box

# Mathematically equal depths differ in their last bits; a relative difference below this counts as a tie.
_TIE = 1e-9


def depth_mm(mask: np.ndarray, spacing_mm: Sequence[float] | np.ndarray | None = None) -> np.ndarray:
    """Distance from each mask voxel to the nearest voxel centre outside the mask.

    Args:
        mask: (X, Y, Z) boolean. Space beyond the array counts as outside.
        spacing_mm: voxel size along the three axes; None for 1 mm.

    Returns:
        (X, Y, Z) float64 in mm, 0 outside the mask.
    """
    padded = np.pad(np.asarray(mask, bool), 1)
    return ndimage.distance_transform_edt(padded, sampling=spacing_mm)[1:-1, 1:-1, 1:-1]


def deepest_point(
    mask: np.ndarray, spacing_mm: Sequence[float] | np.ndarray | None = None
) -> tuple[np.ndarray, float] | None:
    """The voxel farthest inside a mask, and its depth.

    Ties go to the voxel nearest to the mask's centre of mass, then to the first in (x, y, z) order, so that the
    point of an elongated lesion lies at its middle rather than at one end.

    Args:
        mask: (X, Y, Z) boolean. Space beyond the array counts as outside.
        spacing_mm: voxel size along the three axes; None for 1 mm.

    Returns:
        ((3,) int64 voxel, depth in mm), or None for an empty mask.
    """
    mask = np.asarray(mask, bool)
    box = bounding_box(mask)
    if box is None:
        return None
    spacing = np.ones(3) if spacing_mm is None else np.asarray(spacing_mm, float)
    cropped = mask[box]
    depth = depth_mm(cropped, spacing)
    deepest = float(depth.max())
    tied_vox = np.argwhere(depth >= deepest * (1 - _TIE))
    # Integer sums keep the centre exact, independent of voxel order.
    voxels = np.argwhere(cropped)
    centre_vox = voxels.sum(axis=0) / len(voxels)
    distance2 = (((tied_vox - centre_vox) * spacing) ** 2).sum(axis=1)
    nearest = int(np.argmax(distance2 <= distance2.min() + _TIE * deepest**2))
    return tied_vox[nearest] + [side.start for side in box], deepest
