"""Obedience: what clicks say holds in the logits of their lesion, whatever the network made of them.

1. A click that the network's mask contradicts turns its voxel and the connected ones within 6 mm that are nearer to it
   than the border of the mask (a user clicks the middle of an error, which ends about there) and than opposite clicks.
2. What a foreground click takes in must be more like it than like any background click or its surroundings.
3. What then hangs together with no foreground click is not part of the lesion.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cc3d
import numpy as np

from prompts.depth import bounding_box
from sammed3d_ft.images.crops import Region
from sammed3d_ft.prompted.lesion_crops import PlacedClick

# How far a click reaches at most. Where the network found nothing, nothing else bounds it.
_REACH_MM = 6.0
# Logits of voxels that clicks have turned: a probability of 0.88 or 0.12, whatever the network's was.
_TURNED = 2.0
# What a foreground click's value is compared with besides: this percentile of the values about it outside the mask.
_SURROUNDINGS = 10

Voxel = tuple[int, int, int]


def obeyed(
    logits: np.ndarray, region: Region, clicks: Sequence[PlacedClick], image: np.ndarray, spacing_mm: np.ndarray
) -> np.ndarray:
    """A lesion's logits that obey its clicks: the mask (> 0) holds every foreground click's voxel, no background
    click's, and no component (18-connected) without a foreground click. Logits that do so already come back as given.

    Args:
        logits: ``region.shape`` float32; not changed.
        region: the part of the scan they are known in; it holds all clicks.
        clicks: of the lesion, the newest last; of several on one voxel the newest counts.
        image: (X, Y, Z) of the scan, the values that resemblance is judged by.
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
    """What a click that the mask contradicts takes along: a box of the region, and which of its voxels.

    Args:
        voxel: of the click.
        labels: of all clicked voxels.
        mask: (X, Y, Z) bool, the network's.
        image: (X, Y, Z).
    """
    reach_vox = np.ceil(_REACH_MM / spacing_mm).astype(int)
    x, y, z = (slice(max(v - n, 0), v + n + 1) for v, n in zip(voxel, reach_vox, strict=True))
    box, here = (x, y, z), (voxel[0] - x.start, voxel[1] - y.start, voxel[2] - z.start)
    foreground = labels[voxel] == 1
    near, values, distance = mask[box], image[box], _distance_mm(voxel, box, mask.shape, spacing_mm)
    right = distance[near == foreground]  # of the voxels that are already as the click says
    radius = min(_REACH_MM, float(right.min(initial=np.inf)))
    opposite = [other for other, label in labels.items() if label != labels[voxel]]
    taken = distance < radius
    for other in opposite:
        taken &= distance < _distance_mm(other, box, mask.shape, spacing_mm)
    if foreground:  # what a background click takes away ends with the mask; here the image must say where to end
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
    """From a voxel's centre to those of a box of an array of this shape."""
    x, y, z = (
        ((np.arange(*side.indices(size)) - v) * step) ** 2
        for side, size, v, step in zip(box, shape, voxel, spacing_mm, strict=True)
    )
    return np.sqrt(x[:, None, None] + y[:, None] + z)


def with_a_click(mask: np.ndarray, foreground: Sequence[Voxel]) -> np.ndarray:
    """The components of a mask (18-connected, as lesions are) that hold one of its voxels."""
    left = np.zeros_like(mask)
    box = bounding_box(mask)
    if box is not None:
        parts = cc3d.connected_components(mask[box], connectivity=18)
        clicked = np.zeros(int(parts.max()) + 1, bool)
        for voxel in foreground:
            clicked[parts[tuple(v - side.start for v, side in zip(voxel, box, strict=True))]] = True
        clicked[0] = False
        left[box] = clicked[parts]
    return left
