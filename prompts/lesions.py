"""Lesions of a mask: its connected components, numbered the same way every time."""

from __future__ import annotations

from typing import Literal, cast

import cc3d
import numpy as np

from prompts.errors import InputError

CONNECTIVITIES = (6, 18, 26)


def lesions_from_mask(mask: np.ndarray, connectivity: int = 18) -> tuple[np.ndarray, int]:
    """Connected components of a mask.

    Args:
        mask: (X, Y, Z), boolean or non-negative whole numbers; 0 is background. Voxels that touch but hold
            different values belong to different lesions, so an instance map keeps its instances.
        connectivity: 6 (faces), 18 (faces and edges; the convention of autoPET's metrics) or 26 (corners
            too).

    Returns:
        (X, Y, Z) int32 map with 0 for background and 1..N for lesions, and N. Numbering: by mask value, then
        by each lesion's first voxel in (x, y, z) order. It does not depend on the array's memory layout.

    Raises:
        InputError: connectivity, dimensions or values not as above.
    """
    if connectivity not in CONNECTIVITIES:
        raise InputError(f"connectivity is {connectivity}; it must be one of 6, 18 or 26")
    mask = np.asarray(mask)
    if mask.ndim != 3:
        raise InputError(f"a lesion mask has three axes, got an array of shape {mask.shape}")
    if not np.issubdtype(mask.dtype, np.integer) and mask.dtype != bool:
        whole = mask.astype(np.int64)
        if not np.array_equal(whole, mask):
            raise InputError(
                f"a lesion mask holds whole numbers, got fractions ({mask.dtype}); threshold it first"
            )
        mask = whole
    lesions = np.zeros(mask.shape, np.int32)
    occupied = [np.flatnonzero(mask.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if occupied[0].size == 0:
        return lesions, 0
    box = tuple(slice(o[0], o[-1] + 1) for o in occupied)
    cropped = np.ascontiguousarray(mask[box])
    if cropped.min() < 0:
        raise InputError(f"a lesion mask holds no negative values, got {cropped.min()}")
    components = cc3d.connected_components(cropped, connectivity=cast(Literal[6, 18, 26], connectivity))
    voxels = np.flatnonzero(cropped)
    ids, first = np.unique(components.ravel()[voxels], return_index=True)
    order = np.lexsort((first, cropped.ravel()[voxels[first]]))
    number = np.zeros(int(ids[-1]) + 1, np.int32)
    number[ids[order]] = np.arange(1, ids.size + 1)
    lesions[box] = number[components]
    return lesions, int(ids.size)
