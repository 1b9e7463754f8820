"""Labels of lesions: their true extent, or an isocontour at a fraction of each lesion's maximum.

Departments use different conventions: an isocontour at 41 % or 50 % of the maximum, with or without background
correction (EANM guideline for FDG tumour imaging, version 2: Boellaard et al., Eur J Nucl Med Mol Imaging
2015;42:328), a fixed SUV, or manual contours. Here, the fraction refers to the maximum above the background; otherwise
the isocontours of many small lesions would include background. The isocontour of a lesion below the scanner's
resolution is larger than its true extent; at 50 %, that of a large lesion is smaller. A lesion with little contrast is
not outlined, because no reader would find it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import cc3d
import numpy as np
from scipy import ndimage

from sammed3d_ft.errors import InputError

EXTENT = "extent"
SEEN = 2.0  # minimum ratio of maximum to background for a lesion to be outlined
_PERCENT = (20.0, 80.0)


def share_of_maximum(outline: str) -> float | None:
    """Parse "41%" as 0.41 and "extent" as None.

    Raises:
        InputError: anything else, or a percentage outside 20 to 80.
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
    """Each lesion's isocontour: voxels connected to its maximum and above background + share * (maximum - background).

    It is limited to a region that excludes other lesions and organs: voxels up to `reach_mm` from the lesion's true
    extent, and nearer to it than to any other lesion. The background is the median just outside.

    Args:
        pet: (X, Y, Z) SUV of the final image.
        instances: (X, Y, Z) lesion IDs by true extent, 0 background.
        spacing_mm: (3,).
        share: 0 to 1; the maximum is that within the true extent.
        reach_mm: about the scanner's resolution, beyond which hardly any of a lesion's uptake is visible.

    Returns:
        (X, Y, Z) lesion IDs, of the dtype of `instances`. A lesion whose maximum is below `SEEN` times the background
        has no voxels; every other lesion includes its maximum.
    """
    outlined = np.zeros_like(instances)
    spacing = np.asarray(spacing_mm, dtype=float)
    rim_mm = reach_mm + spacing.max()
    around = np.ceil(2 * rim_mm / spacing).astype(
        int
    )  # twice, because another lesion equally near to a voxel can be that far from this one
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
