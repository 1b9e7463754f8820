"""Quantities of a lesion or a mask that need more than a sum: Dmax and SUVpeak."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

from sammed3d_ft.errors import InputError

_ROWS_AT_ONCE = 1024  # limits the distance block to a few tens of MB for any number of hull vertices


def dmax_cm(coords_mm: np.ndarray) -> float:
    """Largest distance in cm between any two of the voxel centres ``coords_mm``, (n, 3) in mm.

    The two points farthest apart are vertices of the convex hull, so only those are compared; the hull of points on a
    line or in a plane is computed in that line or plane. One voxel gives 0, none gives NaN (not defined). Dmax is
    defined as in PET studies of dissemination: centre to centre, over all lesions of a patient.
    """
    points = np.asarray(coords_mm, dtype=np.float64).reshape(-1, 3)
    if len(points) == 0:
        return float("nan")
    points = points[_hull_vertices(points)]
    largest = 0.0
    for start in range(0, len(points), _ROWS_AT_ONCE):
        largest = max(largest, float(cdist(points[start : start + _ROWS_AT_ONCE], points).max()))
    return largest / 10.0


def _hull_vertices(points: np.ndarray) -> np.ndarray:
    """Indices of the points that can be an end point of the longest distance."""
    if len(points) < 5:
        return np.arange(len(points))
    centred = points - points.mean(axis=0)
    # The 3x3 scatter matrix suffices to find the directions in which the points extend.
    variances, directions = np.linalg.eigh(centred.T @ centred)
    # Voxel centres lie on a lattice, so the variance along a flat direction is pure rounding error.
    extends = variances > 1e-12 * variances[-1]
    if not extends.any():
        return np.array([0])
    flat = centred @ directions[:, extends]
    if flat.shape[1] == 1:
        return np.array([flat[:, 0].argmin(), flat[:, 0].argmax()])
    return ConvexHull(flat).vertices


SPHERE_RADIUS_MM = 6.2
"""Radius of a 1 ml sphere: (3 * 1000 mm^3 / (4 pi))^(1/3) = 6.204 mm, rounded as is customary."""
_BLOCK_VOXELS = 2_000_000  # larger lesions are processed in parts, which limits memory to 24 MB


@lru_cache(maxsize=8)
def _margin_vox(linear: tuple[float, ...]) -> np.ndarray:
    inverse = np.linalg.inv(np.array(linear).reshape(3, 3))
    return np.floor(SPHERE_RADIUS_MM * np.linalg.norm(inverse, axis=1) + 1e-9).astype(np.int64)


def sphere_margin_vox(affine: np.ndarray) -> np.ndarray:
    """(3,) how far the sphere reaches from its centre along each axis of the grid, in voxels."""
    return _margin_vox(_linear(affine))


def suv_peak(pet: np.ndarray, coords_vox: np.ndarray, affine: np.ndarray) -> float:
    """SUVpeak of one lesion.

    Args:
        pet: (x, y, z) PET in SUV.
        coords_vox: (n, 3) integer indices of the lesion's voxels, n > 0: the possible sphere centres.
        affine: (4, 4) voxel to world in mm; only its linear part matters.

    Returns:
        The highest mean over a sphere. A voxel belongs to the sphere if its centre lies within 6.2 mm, whether or not
        it is in the lesion. At the image border, the mean is over the voxels inside the image.

    Raises:
        InputError: the PET is not finite in or near the lesion.
    """
    centres = np.asarray(coords_vox, dtype=np.int64).reshape(-1, 3)
    columns, sphere_voxels = _sphere_columns(_linear(affine))
    margin = sphere_margin_vox(affine)
    first, last = centres.min(axis=0) - margin, centres.max(axis=0) + margin
    if np.prod(last - first + 1) > _BLOCK_VOXELS and len(centres) > 1:
        halves = np.array_split(centres, 2)
        return max(suv_peak(pet, half, affine) for half in halves)
    held_first, held_last = np.maximum(first, 0), np.minimum(last, np.array(pet.shape) - 1)
    # A small block around the lesion, with a margin for the spheres, makes gathering by flat index fast.
    block = np.zeros(last - first + 1, np.float32)
    held = tuple(slice(a, b + 1) for a, b in zip(held_first - first, held_last - first, strict=True))
    block[held] = pet[tuple(slice(a, b + 1) for a, b in zip(held_first, held_last, strict=True))]
    sums = _sphere_sums(block, centres - first, columns)
    if (held_first == first).all() and (held_last == last).all():
        peak = float(sums.max()) / sphere_voxels
    else:
        block[:] = 0
        block[held] = 1
        peak = float((sums / _sphere_sums(block, centres - first, columns)).max())
    if not np.isfinite(peak):
        raise InputError("PET contains NaN or infinite values in or near a lesion: repair the image")
    return peak


def _linear(affine: np.ndarray) -> tuple[float, ...]:
    return tuple(np.asarray(affine, dtype=np.float64)[:3, :3].ravel().tolist())


@lru_cache(maxsize=8)
def _sphere_columns(linear: tuple[float, ...]) -> tuple[dict[int, list[tuple[int, int, int]]], int]:
    """The sphere's voxels as columns along z, (x, y, z) of the first relative to the centre, and their number.

    Columns are grouped by length.
    """
    matrix = np.array(linear).reshape(3, 3)
    axes = [np.arange(-reach, reach + 1) for reach in sphere_margin_vox(matrix)]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    inside = offsets[np.linalg.norm(offsets @ matrix.T, axis=1) <= SPHERE_RADIUS_MM + 1e-9]
    # A sphere is convex, so the voxels of each column are contiguous.
    _, start, lengths = np.unique(inside[:, :2], axis=0, return_index=True, return_counts=True)
    columns: dict[int, list[tuple[int, int, int]]] = {}
    for (x, y, z), length in zip(inside[start].tolist(), lengths.tolist(), strict=True):
        columns.setdefault(length, []).append((x, y, z))
    return columns, len(inside)


def _sphere_sums(block: np.ndarray, centres: np.ndarray, columns: dict[int, list[tuple[int, int, int]]]) -> np.ndarray:
    """(n,) sum over the sphere around each centre; each column is a difference of two cumulative sums along z."""
    x, y, z = block.shape
    running = np.zeros((x, y, z + 1))
    np.cumsum(block, axis=2, dtype=np.float64, out=running[:, :, 1:])
    flat = running.ravel()
    at = np.ravel_multi_index(tuple(centres.T), running.shape)
    sums = np.zeros(len(at))
    for length, starts in columns.items():
        column_sums = flat[length:] - flat[:-length]
        for dx, dy, dz in starts:
            sums += column_sums[at + ((dx * y + dy) * (z + 1) + dz)]
    return sums
