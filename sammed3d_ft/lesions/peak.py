"""SUVpeak: the highest mean in a 1 ml sphere that is centred on a voxel of the lesion."""

from __future__ import annotations

import numpy as np

SPHERE_RADIUS_MM = 6.2
"""Radius of a 1 ml sphere: (3 * 1000 mm^3 / (4 pi))^(1/3) = 6.204 mm, in the field's rounded form."""


def sphere_margin_vox(affine: np.ndarray) -> np.ndarray:
    """How far the sphere reaches from its centre along each axis of the grid, (3,) in voxels."""
    inverse = np.linalg.inv(np.asarray(affine, dtype=np.float64)[:3, :3])
    return np.floor(SPHERE_RADIUS_MM * np.linalg.norm(inverse, axis=1) + 1e-9).astype(np.int64)


def suv_peak(pet: np.ndarray, coords_vox: np.ndarray, affine: np.ndarray) -> float:
    """SUVpeak of one lesion.

    Args:
        pet: (x, y, z) PET in SUV.
        coords_vox: (n, 3) integer indices of the lesion's voxels, n > 0: the possible centres.
        affine: (4, 4) voxel to world in mm; only its linear part matters.

    Returns:
        The highest mean over a sphere. A voxel belongs to the sphere when its centre lies within 6.2 mm, in
        the lesion or not. At the border of the image the mean is over the part that the image holds.
    """
    centres = np.asarray(coords_vox, dtype=np.int64).reshape(-1, 3)
    margin = sphere_margin_vox(affine)
    first, last = centres.min(axis=0) - margin, centres.max(axis=0) + margin
    held_first, held_last = np.maximum(first, 0), np.minimum(last, np.array(pet.shape) - 1)
    # A small block round the lesion, with room for the spheres: gathering by flat index from it is fast.
    block = np.zeros(last - first + 1, np.float32)
    held = tuple(slice(a, b + 1) for a, b in zip(held_first - first, held_last - first, strict=True))
    block[held] = pet[tuple(slice(a, b + 1) for a, b in zip(held_first, held_last, strict=True))]
    at = np.ravel_multi_index(tuple((centres - first).T), block.shape)
    steps = _sphere_vox(affine, margin) @ (np.array(block.strides) // block.itemsize)
    sums = _gathered_sums(block, at, steps)
    if (held_first == first).all() and (held_last == last).all():
        return float(sums.max()) / len(steps)
    inside = np.zeros(block.shape, np.float32)
    inside[held] = 1
    return float((sums / _gathered_sums(inside, at, steps)).max())


def _sphere_vox(affine: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """(k, 3) index offsets of the sphere's voxels from its centre."""
    axes = [np.arange(-reach, reach + 1) for reach in margin]
    offsets = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
    lengths_mm = np.linalg.norm(offsets @ np.asarray(affine, dtype=np.float64)[:3, :3].T, axis=1)
    return offsets[lengths_mm <= SPHERE_RADIUS_MM + 1e-9]


def _gathered_sums(block: np.ndarray, at: np.ndarray, steps: np.ndarray) -> np.ndarray:
    """(n,) sum over the sphere round each flat index, one step at a time to keep memory at n."""
    flat = block.ravel()
    sums = np.zeros(len(at))
    for step in steps:
        sums += flat[at + step]
    return sums
