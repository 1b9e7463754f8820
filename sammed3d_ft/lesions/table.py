"""The lesion table: volume, position and PET quantities of every lesion of an instance map, in one pass."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sammed3d_ft.errors import InputError
from sammed3d_ft.lesions.quantities import suv_peak

SizeClass = Literal["small", "medium", "large"]
SIZE_CLASSES: tuple[SizeClass, ...] = ("small", "medium", "large")
"""From the smallest to the largest, for tables."""
MEDIUM_FROM_ML = 1.5
LARGE_FROM_ML = 4.0


def size_class(volume_ml: float) -> SizeClass:
    """Size class of one lesion of ``volume_ml`` millilitres.

    The limits are those of the L1DFL study of PSMA PET/CT (arXiv 2502.02756): below 1.5 ml small, below 4 ml
    medium. A lesion of exactly 1.5 ml is medium, one of exactly 4 ml is large.

    Raises:
        ValueError: the volume is not a positive, finite number.
    """
    if not (math.isfinite(volume_ml) and volume_ml > 0):
        raise ValueError(f"a lesion's volume must be positive and finite, got {volume_ml} ml")
    # With an oblique affine, a 1 mm^3 voxel may be 0.9999999999999998; rounding keeps a 1.5 ml lesion in its class.
    volume_ml = round(volume_ml, 9)
    if volume_ml < MEDIUM_FROM_ML:
        return "small"
    return "medium" if volume_ml < LARGE_FROM_ML else "large"


SUV_PEAK_RELIABLE_FROM_ML = 1.0
"""SUVpeak of a lesion smaller than the 1 ml sphere also averages over its surroundings, so it is flagged."""

TABLE_COLUMNS = (
    *("lesion_id", "voxels", "volume_ml", "size_class", "centroid_x_mm", "centroid_y_mm", "centroid_z_mm"),
    *("suv_max", "suv_mean", "suv_peak", "suv_peak_flagged", "tla"),
)
"""Columns of a lesion's row; units are in the names."""


@dataclass(frozen=True)
class Lesion:
    """One lesion. SUV quantities and TLA are NaN without PET."""

    lesion_id: int
    """The lesion's number in the instance map, from 1."""
    voxels: int
    volume_ml: float
    size_class: SizeClass
    centroid_mm: tuple[float, float, float]
    """Mean of the voxel centres in world mm (RAS+)."""
    suv_max: float
    suv_mean: float
    suv_peak: float
    suv_peak_flagged: bool
    """True if SUVpeak is given for a lesion below 1 ml."""
    tla: float
    """Total lesion activity: the sum of SUV over the voxels times the voxel volume (SUV ml)."""
    suv_max_vox: tuple[int, int, int] | None
    """Voxel of SUVmax (the first in index order if several are equal); None without PET."""

    def as_row(self) -> dict[str, Any]:
        """The columns of `TABLE_COLUMNS`."""
        x_mm, y_mm, z_mm = self.centroid_mm
        places = {"centroid_x_mm": x_mm, "centroid_y_mm": y_mm, "centroid_z_mm": z_mm}
        return {name: places[name] if name in places else getattr(self, name) for name in TABLE_COLUMNS}


def lesion_table(instances: np.ndarray, affine: np.ndarray, pet: np.ndarray | None = None) -> list[Lesion]:
    """Every lesion of an instance map, in the order of lesion numbers.

    Args:
        instances: (x, y, z) integers, 0 background, 1.. lesions; gaps are allowed.
        affine: (4, 4) voxel index to world mm (RAS+); ``numpy.diag([*spacing_mm, 1])`` if only the spacing is known.
        pet: (x, y, z) PET in SUV on the same grid; None omits PET quantities.

    Raises:
        InputError: a negative or non-integer instance map, shapes that differ, or PET that is not finite in or near a
            lesion.
    """
    instances = np.asarray(instances)
    if instances.ndim != 3 or instances.dtype.kind not in "iub":
        raise InputError(
            f"instances: got a {instances.ndim}D array of {instances.dtype}, expected 3D integers "
            "(0 background, 1.. lesions)"
        )
    if pet is not None and pet.shape != instances.shape:
        raise InputError(f"PET of shape {pet.shape} and instances of shape {instances.shape} differ: resample the PET")
    coords_vox = np.argwhere(instances)
    labels = instances[tuple(coords_vox.T)]
    if labels.min(initial=0) < 0:
        raise InputError(f"instances: got the negative number {labels.min()}, expected 0 background, 1.. lesions")
    return lesions_of_voxels(coords_vox, labels, affine, pet)


def lesions_of_voxels(
    coords_vox: np.ndarray, labels: np.ndarray, affine: np.ndarray, pet: np.ndarray | None = None
) -> list[Lesion]:
    """Every lesion of a list of voxels, in the order of lesion numbers; as `lesion_table`, without an instance map.

    Args:
        coords_vox: (n, 3) indices of the lesions' voxels, each once, in index order.
        labels: (n,) lesion number of each voxel, from 1; gaps are allowed.
        affine: (4, 4) voxel index to world mm (RAS+).
        pet: (x, y, z) PET in SUV; None omits PET quantities.

    Raises:
        InputError: PET that is not finite in or near a lesion.
    """
    if len(labels) == 0:
        return []
    affine = np.asarray(affine, dtype=np.float64)
    # The triple product is exact for a diagonal affine, unlike the determinant by elimination.
    voxel_mm3 = float(abs(affine[:3, 0] @ np.cross(affine[:3, 1], affine[:3, 2])))

    # Sorting by lesion makes each lesion contiguous: counts and sums by bincount, maxima by reduceat.
    order = np.argsort(labels, kind="stable")
    coords_vox = coords_vox[order]
    ids, starts, lesion_of_voxel = np.unique(labels[order], return_index=True, return_inverse=True)
    voxels = np.bincount(lesion_of_voxel)
    centroids_vox = np.stack(
        [np.bincount(lesion_of_voxel, weights=coords_vox[:, axis]) / voxels for axis in range(3)], axis=1
    )
    centroids_mm = centroids_vox @ affine[:3, :3].T + affine[:3, 3]

    nothing = np.full(len(ids), np.nan)
    suv_sums, suv_maxima, suv_peaks, hottest = nothing, nothing, nothing, None
    if pet is not None:
        suv = pet[tuple(coords_vox.T)].astype(np.float64)
        if not np.isfinite(suv).all():
            x, y, z = coords_vox[~np.isfinite(suv)][0]
            raise InputError(f"PET is not finite at voxel ({x}, {y}, {z}) inside a lesion: repair the image")
        suv_sums = np.bincount(lesion_of_voxel, weights=suv)
        suv_maxima = np.maximum.reduceat(suv, starts)
        suv_peaks = np.array([suv_peak(pet, centres, affine) for centres in np.split(coords_vox, starts[1:])])
        at_maximum = np.flatnonzero(suv == suv_maxima[lesion_of_voxel])
        _, first = np.unique(lesion_of_voxel[at_maximum], return_index=True)
        hottest = coords_vox[at_maximum[first]]

    table = []
    for row, lesion_id in enumerate(ids):
        volume_ml = int(voxels[row]) * voxel_mm3 / 1000.0
        x_mm, y_mm, z_mm = centroids_mm[row].tolist()
        table.append(
            Lesion(
                lesion_id=int(lesion_id),
                voxels=int(voxels[row]),
                volume_ml=volume_ml,
                size_class=size_class(volume_ml),
                centroid_mm=(x_mm, y_mm, z_mm),
                suv_max=float(suv_maxima[row]),
                suv_mean=float(suv_sums[row] / voxels[row]),
                suv_peak=float(suv_peaks[row]),
                suv_peak_flagged=pet is not None and volume_ml < SUV_PEAK_RELIABLE_FROM_ML,
                tla=float(suv_sums[row]) * voxel_mm3 / 1000.0,
                suv_max_vox=None if hottest is None else _voxel(hottest[row]),
            )
        )
    return table


def _voxel(index: np.ndarray) -> tuple[int, int, int]:
    x, y, z = index.tolist()
    return x, y, z
