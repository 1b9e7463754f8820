"""How a reader outlines lesions: by their true extent, or by an isocontour at a share of each lesion's maximum.

Departments outline by conventions of their own: an isocontour at 41 % or 50 % of the maximum, adapted to the background
or not (EANM guideline for FDG tumour imaging, version 2: Boellaard et al., Eur J Nucl Med Mol Imaging 2015;42:328), a
fixed SUV, or by hand. Here the share is taken of the maximum above the background; without that, the isocontours of
many small lesions would run into the background. The isocontour of a lesion smaller than the scanner resolves lies
outside of its true extent, and at 50 % that of a large lesion inside. A lesion that does not stand out is not outlined:
no reader would find it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import cc3d
import numpy as np
from scipy import ndimage

from sammed3d_ft.errors import InputError

EXTENT = "extent"
SEEN = 2.0  # maximum over background from which a lesion is outlined
_PERCENT = (20.0, 80.0)


def share_of_maximum(outline: str) -> float | None:
    """Reads "41%" as 0.41 and "extent" as None.

    Raises:
        InputError: anything else, or a share outside of 20 to 80 %.
    """
    if outline == EXTENT:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*%", outline.strip())
    if found is None or not _PERCENT[0] <= float(found[1]) <= _PERCENT[1]:
        raise InputError(f"outline {outline!r}: expected {EXTENT!r}, or a share of the maximum from 20% to 80%, as 41%")
    return float(found[1]) / 100


def isocontours(
    pet: np.ndarray, instances: np.ndarray, spacing_mm: Sequence[float], share: float, reach_mm: float
) -> np.ndarray:
    """Each lesion's isocontour: voxels connected to its maximum that exceed the background by `share` of what it does.

    The reader draws it inside a region about the lesion, to leave out other lesions and organs: voxels up to `reach_mm`
    from its true extent, and nearer to it than to any other lesion's. The background is the median just outside.

    Args:
        pet: (X, Y, Z) SUV of the finished image.
        instances: (X, Y, Z) lesion ids by true extent, 0 background.
        spacing_mm: (3,).
        share: 0 to 1; the maximum is that in the true extent.
        reach_mm: the scanner's resolution, say: hardly any of a lesion's uptake is seen farther away.

    Returns:
        (X, Y, Z) lesion ids, of the dtype of `instances`. A lesion whose maximum is below `SEEN` times the background
        has no voxels; every other one holds its maximum.
    """
    outlined = np.zeros_like(instances)
    spacing = np.asarray(spacing_mm, dtype=float)
    rim_mm = reach_mm + spacing.max()
    around = np.ceil(2 * rim_mm / spacing).astype(int)  # twice: another lesion as near to a voxel may lie that far away
    for number, box in enumerate(ndimage.find_objects(instances), start=1):
        if box is None:
            continue
        wide = tuple(slice(max(b.start - n, 0), b.stop + n) for b, n in zip(box, around, strict=True))
        nearby, uptake = instances[wide], pet[wide]
        own = nearby == number
        distance = ndimage.distance_transform_edt(~own, sampling=spacing)
        others = (nearby > 0) & ~own
        nearest = np.ones_like(own)
        if others.any():
            nearest = own | (distance < ndimage.distance_transform_edt(~others, sampling=spacing))
        rim = nearest & (distance > reach_mm) & (distance <= rim_mm)
        background = float(np.median(uptake[rim])) if rim.any() else 0.0
        peak = np.unravel_index(np.where(own, uptake, -np.inf).argmax(), uptake.shape)
        if uptake[peak] < SEEN * background:
            continue
        level = background + share * (uptake[peak] - background)
        bright = nearest & (distance <= reach_mm) & (uptake >= level)
        parts = cc3d.connected_components(bright.astype(np.uint8), connectivity=18)
        outlined[wide][parts == parts[peak]] = number
    return outlined
