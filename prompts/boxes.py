"""The bounding box of an array."""

from __future__ import annotations

import numpy as np


def bounding_box(mask: np.ndarray) -> tuple[slice, slice, slice] | None:
    """Bounding box of the nonzero voxels of a (X, Y, Z) array, as slices; None if there are none."""
    box = [slice(None)] * 3
    for axis, others in enumerate(((1, 2), (0, 2), (0, 1))):
        # Each axis searches only the box found along the previous axes.
        occupied = np.flatnonzero(mask[box[0], box[1], box[2]].any(axis=others))
        if occupied.size == 0:
            return None
        box[axis] = slice(int(occupied[0]), int(occupied[-1]) + 1)
    return box[0], box[1], box[2]
