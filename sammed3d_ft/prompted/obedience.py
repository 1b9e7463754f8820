"""Enforces clicks in a lesion's logits, whatever the network predicted.

1. Users click the middle of an error, and an error ends at the border of the mask that they see. So a correction
   relabels the connected voxels that are nearer to it than that border was, and nearer to it than to any click with the
   opposite label. This holds for later predictions as well.
2. Any other click that the network's mask contradicts relabels in the same way, measured on that mask, but only within
   6 mm.
3. A foreground click adds only voxels whose value is closer to its own than to that of any background click or of its
   surroundings; corrections within 6 mm of the mask are exempt.
4. Components without a foreground click are then removed from the lesion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import cc3d
import numpy as np

from prompts.boxes import bounding_box
from sammed3d_ft.images.crops import Region
from sammed3d_ft.prompted.lesion_crops import PlacedClick

# Maximum reach of a click that corrected nothing, and of a foreground click whatever the image shows.
_REACH_MM = 6.0
# Logits of relabelled voxels: a probability of 0.88 or 0.12, whatever the network predicted.
_TURNED = 2.0
# The surroundings of a foreground click: this percentile of the values within twice its reach.
_SURROUNDINGS = 10

Voxel = tuple[int, int, int]
Box = tuple[slice, slice, slice]


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
    newest: dict[Voxel, PlacedClick] = {}
    for click in clicks:
        x, y, z = (int(v) for v in click.voxel - np.array(region.start))
        newest[x, y, z] = click
    mask = logits > 0
    turned = mask.copy()
    for voxel, click in newest.items():
        reach_mm = click.reach_mm
        if reach_mm is None and mask[voxel] != (click.label == 1):
            reach_mm = min(_REACH_MM, _to_border_mm(mask, voxel, spacing_mm, _REACH_MM))
        if reach_mm is not None:
            box, also = _neighbourhood(voxel, newest, reach_mm, image[region.slices], spacing_mm)
            turned[box][also] = click.label == 1
    for voxel, click in newest.items():
        turned[voxel] = click.label == 1
    left = with_a_click(turned, [voxel for voxel, click in newest.items() if click.label == 1])
    changed = left != mask
    if not changed.any():
        return logits
    result = logits.copy()
    result[changed] = np.where(left[changed], _TURNED, -_TURNED)
    return result


def with_reach(click: PlacedClick, region: Region, mask: np.ndarray, spacing_mm: np.ndarray) -> PlacedClick:
    """A click with its reach, if it corrects a mask (``region.shape`` bool); otherwise, the click as it is."""
    if not region.holds(click.voxel):
        return click
    x, y, z = (int(v) for v in click.voxel - np.array(region.start))
    if mask[x, y, z] == (click.label == 1) or not mask.any():
        return click
    reach_mm = _to_border_mm(mask, (x, y, z), spacing_mm)
    return replace(click, reach_mm=reach_mm) if math.isfinite(reach_mm) else click


def _to_border_mm(mask: np.ndarray, voxel: Voxel, spacing_mm: np.ndarray, most_mm: float = math.inf) -> float:
    """Distance from a voxel to the nearest one across a (X, Y, Z) mask's border; infinite if there is none.

    Beyond ``most_mm``, it may be too large.
    """
    reach_mm = _REACH_MM
    while True:  # in a box that grows until it contains the nearest voxel
        box = _box(voxel, reach_mm, spacing_mm)
        distance = _distance_mm(voxel, box, mask.shape, spacing_mm)
        nearest = float(distance[mask[box] != mask[voxel]].min(initial=np.inf))
        if nearest <= reach_mm or reach_mm >= most_mm or distance.shape == mask.shape:
            return nearest
        reach_mm *= 2


def _neighbourhood(
    voxel: Voxel, clicks: Mapping[Voxel, PlacedClick], reach_mm: float, image: np.ndarray, spacing_mm: np.ndarray
) -> tuple[Box, np.ndarray]:
    """The voxels that a click relabels: a box of the region, and a bool mask in it.

    Args:
        voxel: the clicked voxel.
        clicks: the newest click on each clicked voxel.
        image: (X, Y, Z).
    """
    click, box = clicks[voxel], _box(voxel, 2 * reach_mm, spacing_mm)
    values, distance = image[box], _distance_mm(voxel, box, image.shape, spacing_mm)
    taken = distance < reach_mm
    opposite = [other for other, given in clicks.items() if given.label != click.label]
    for other in opposite:
        taken &= distance < _distance_mm(other, box, image.shape, spacing_mm)
    # A background click is limited by the mask; a foreground click must be limited by the image, unless it corrects
    # what is next to the mask.
    if click.label == 1 and (click.reach_mm is None or reach_mm > _REACH_MM):
        unlike = [float(image[other]) for other in opposite]
        unlike.append(float(np.percentile(values[distance <= 2 * reach_mm], _SURROUNDINGS)))
        for value in unlike:
            taken &= np.abs(values - image[voxel]) <= np.abs(values - value)
    here = tuple(v - side.start for v, side in zip(voxel, box, strict=True))
    taken[here] = True
    parts = cc3d.connected_components(taken, connectivity=18)
    return box, parts == parts[here]


def _box(voxel: Voxel, reach_mm: float, spacing_mm: np.ndarray) -> Box:
    """The voxels within some distance of a voxel along each axis; it may extend beyond the array's upper faces."""
    x, y, z = (
        slice(max(v - n, 0), v + n + 1)
        for v, n in zip(voxel, np.ceil(reach_mm / spacing_mm).astype(int).tolist(), strict=True)
    )
    return x, y, z


def _distance_mm(voxel: Voxel, box: Box, shape: tuple[int, ...], spacing_mm: np.ndarray) -> np.ndarray:
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
