"""Enforces clicks in a lesion's logits, whatever the network predicted.

1. If the network's mask contradicts a click, the click's voxel and the connected voxels within 6 mm are relabelled,
   but only those nearer to the click than the mask's border is (users click the middle of an error, which ends near
   that border) and nearer to it than to any click with the opposite label.
2. A foreground click adds only voxels whose value is closer to its own than to that of any background click or of its
   surroundings.
3. Components without a foreground click are then removed from the lesion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cc3d
import numpy as np

from prompts.depth import bounding_box
from sammed3d_ft.images.crops import Region
from sammed3d_ft.prompted.lesion_crops import PlacedClick

# Maximum reach of a click. Where the network found nothing, this is the only limit.
_REACH_MM = 6.0
# Logits of relabelled voxels: a probability of 0.88 or 0.12, whatever the network predicted.
_TURNED = 2.0
# The surroundings of a foreground click: this percentile of the values around it outside the mask.
_SURROUNDINGS = 10

Voxel = tuple[int, int, int]


def obeyed(
    logits: np.ndarray, region: Region, clicks: Sequence[PlacedClick], image: np.ndarray, spacing_mm: np.ndarray
) -> np.ndarray:
    """Return a lesion's logits with its clicks enforced.

    The mask (> 0) then contains the voxel of every foreground click and of no background click, and no 18-connected
    component without a foreground click. Logits that already satisfy this are returned unchanged.

    Args:
        logits: ``region.shape`` float32; not modified.
        region: the region of the logits; it contains all clicks.
        clicks: the lesion's clicks, the newest last; of several on one voxel, the newest counts.
        image: (X, Y, Z) of the scan; similarity is judged by its values.
        spacing_mm: (3,) of the scan.
    """
    labels: dict[Voxel, int] = {}
    for click in clicks:
        x, y, z = (int(v) for v in click.voxel - np.array(region.start))
        labels[x, y, z] = click.label
    mask = logits > 0
    turned = mask.copy()
    for voxel, label in labels.items():
        if mask[voxel] != (label == 1):
            box, also = _neighbourhood(voxel, labels, mask, image[region.slices], spacing_mm)
            turned[box][also] = label == 1
    for voxel, label in labels.items():
        turned[voxel] = label == 1
    left = with_a_click(turned, [voxel for voxel, label in labels.items() if label == 1])
    changed = left != mask
    if not changed.any():
        return logits
    result = logits.copy()
    result[changed] = np.where(left[changed], _TURNED, -_TURNED)
    return result


def _neighbourhood(
    voxel: Voxel, labels: Mapping[Voxel, int], mask: np.ndarray, image: np.ndarray, spacing_mm: np.ndarray
) -> tuple[tuple[slice, slice, slice], np.ndarray]:
    """The voxels to relabel around a click that the mask contradicts: a box of the region, and a bool mask in it.

    Args:
        voxel: the clicked voxel.
        labels: labels of all clicked voxels.
        mask: (X, Y, Z) bool, the network's mask.
        image: (X, Y, Z).
    """
    reach_vox = np.ceil(_REACH_MM / spacing_mm).astype(int)
    x, y, z = (slice(max(v - n, 0), v + n + 1) for v, n in zip(voxel, reach_vox, strict=True))
    box, here = (x, y, z), (voxel[0] - x.start, voxel[1] - y.start, voxel[2] - z.start)
    foreground = labels[voxel] == 1
    near, values, distance = mask[box], image[box], _distance_mm(voxel, box, mask.shape, spacing_mm)
    right = distance[near == foreground]  # of voxels that already agree with the click
    radius = min(_REACH_MM, float(right.min(initial=np.inf)))
    opposite = [other for other, label in labels.items() if label != labels[voxel]]
    taken = distance < radius
    for other in opposite:
        taken &= distance < _distance_mm(other, box, mask.shape, spacing_mm)
    if foreground:  # a background click is limited by the mask; a foreground click must be limited by the image
        unlike = [float(image[other]) for other in opposite]
        unlike.append(float(np.percentile(values[~near & (distance <= 2 * radius)], _SURROUNDINGS)))
        for value in unlike:
            taken &= np.abs(values - values[here]) <= np.abs(values - value)
    taken[here] = True
    parts = cc3d.connected_components(taken, connectivity=18)
    return box, parts == parts[here]


def _distance_mm(
    voxel: Voxel, box: tuple[slice, slice, slice], shape: tuple[int, ...], spacing_mm: np.ndarray
) -> np.ndarray:
    """Distances from a voxel's centre to the voxel centres of a box of an array of this shape."""
    x, y, z = (
        ((np.arange(*side.indices(size)) - v) * step) ** 2
        for side, size, v, step in zip(box, shape, voxel, spacing_mm, strict=True)
    )
    return np.sqrt(x[:, None, None] + y[:, None] + z)


def with_a_click(mask: np.ndarray, foreground: Sequence[Voxel]) -> np.ndarray:
    """The 18-connected components of a mask that contain one of the ``foreground`` voxels."""
    left = np.zeros_like(mask)
    box = bounding_box(mask)
    if box is not None:
        # Contiguous, because cc3d before 4.1 misreads views.
        parts = cc3d.connected_components(np.ascontiguousarray(mask[box]), connectivity=18)
        clicked = np.zeros(int(parts.max()) + 1, bool)
        for voxel in foreground:
            clicked[parts[tuple(v - side.start for v, side in zip(voxel, box, strict=True))]] = True
        clicked[0] = False
        left[box] = clicked[parts]
    return left
