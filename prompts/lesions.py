"""Lesions of a mask: its connected components, numbered reproducibly."""

from __future__ import annotations

from typing import Literal, cast

import cc3d
import numpy as np

from prompts.boxes import bounding_box
from prompts.errors import InputError

CONNECTIVITIES = (6, 18, 26)


def lesions_from_mask(mask: np.ndarray, connectivity: int = 18) -> tuple[np.ndarray, int]:
    """Label the connected components of a mask.

    Args:
        mask: (X, Y, Z), boolean or non-negative whole numbers; 0 is background. Touching voxels with different
            values belong to different lesions, so an instance map keeps its instances.
        connectivity: 6 (faces), 18 (faces and edges; the convention of autoPET's metrics) or 26 (also corners).

    Returns:
        (X, Y, Z) int32 map with 0 for background and 1..N for lesions, and N. Lesions are numbered by mask
        value, then by their first voxel in (x, y, z) order, independent of the array's memory layout.

    Raises:
        InputError: invalid connectivity, dimensions or values.
    """
    if connectivity not in CONNECTIVITIES:
        raise InputError(f"connectivity is {connectivity}; it must be 6, 18 or 26")
    mask = np.asarray(mask)
    if mask.ndim != 3:
        raise InputError(f"a lesion mask must have three axes, got an array of shape {mask.shape}")
    if not np.issubdtype(mask.dtype, np.integer) and mask.dtype != bool:
        whole = mask.astype(np.int64)
        if not np.array_equal(whole, mask):
            raise InputError(f"a lesion mask must hold whole numbers, got fractions ({mask.dtype}); threshold it first")
        mask = whole
    lesions = np.zeros(mask.shape, np.int32)
    box = bounding_box(mask)
    if box is None:
        return lesions, 0
    cropped = np.ascontiguousarray(mask[box])
    if cropped.dtype == bool:
        cropped = cropped.view(np.uint8)  # cc3d 4.1 fails on bool arrays one voxel thick
    if cropped.min() < 0:
        raise InputError(f"a lesion mask must not hold negative values, got {cropped.min()}")
    components = cc3d.connected_components(cropped, connectivity=cast(Literal[6, 18, 26], connectivity))
    voxels = np.flatnonzero(cropped)
    ids, first = np.unique(components.ravel()[voxels], return_index=True)
    order = np.lexsort((first, cropped.ravel()[voxels[first]]))
    number = np.zeros(int(ids[-1]) + 1, np.int32)
    number[ids[order]] = np.arange(1, ids.size + 1)
    lesions[box] = number[components]
    return lesions, int(ids.size)
