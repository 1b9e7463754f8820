"""Linear resampling of one volume onto the grid of another."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import map_coordinates

from sammed3d_ft.images.grids import Volume, corners_vox, same_grid

# Headers hold float32, so the origins of one scan stored in two axis orders differ by about 1e-5 voxel. Offsets are
# rounded to this step, far below any registration error, so that both give bitwise equal results.
OFFSET_STEP_VOX = 1 / 1024


def resample_like(image: Volume, reference: Volume, outside: float = 0.0) -> Volume:
    """Interpolate `image` linearly onto the grid of `reference`, for example a CT onto its PET.

    The image extends half a voxel beyond its outermost voxel centres, with the edge values; further out the value is
    `outside`. Downsampling is done without smoothing, as for the resampled CTs published by autoPET.

    Returns:
        Volume of float32, with the reference's shape, affine and source grid.
    """
    values = image.array.astype(np.float32, copy=False)
    if same_grid(image, reference):
        return Volume(values, reference.affine, reference.source)
    shape = reference.array.shape
    # image index = linear @ reference index + offset
    linear = np.linalg.solve(image.affine[:3, :3], reference.affine[:3, :3])
    offset = np.linalg.solve(image.affine[:3, :3], reference.affine[:3, 3] - image.affine[:3, 3])
    offset = np.round(offset / OFFSET_STEP_VOX) * OFFSET_STEP_VOX
    crossed = linear - np.diag(np.diag(linear))
    if np.abs(corners_vox(shape) @ crossed.T).max() <= OFFSET_STEP_VOX:
        coords = [linear[axis, axis] * np.arange(shape[axis]) + offset[axis] for axis in range(3)]
        resampled = _along_axes(values, coords, outside)
    else:
        resampled = _by_planes(values, linear, offset, shape, outside)
    return Volume(resampled, reference.affine, reference.source)


def _inside(coords: np.ndarray, size: int) -> np.ndarray:
    """Whether voxel coordinates lie within the outer faces of an axis with `size` voxels."""
    return (coords >= -0.5 - 1e-6) & (coords <= size - 0.5 + 1e-6)


def _along_axes(values: np.ndarray, coords: list[np.ndarray], outside: float) -> np.ndarray:
    """Interpolate onto a grid parallel to the array's axes: axis by axis, starting with the one that shrinks most."""
    for axis in sorted(range(3), key=lambda axis: len(coords[axis]) / values.shape[axis]):
        size = values.shape[axis]
        clamped = np.clip(coords[axis], 0, size - 1)
        lower = np.minimum(clamped.astype(np.intp), max(size - 2, 0))
        weight = (clamped - lower).astype(np.float32)
        weight = weight.reshape([-1 if other == axis else 1 for other in range(3)])
        below = values.take(lower, axis)
        step = values.take(np.minimum(lower + 1, size - 1), axis)
        step -= below
        step *= weight
        below += step
        below[(slice(None),) * axis + (~_inside(coords[axis], size),)] = outside
        values = below
    return values


def _by_planes(
    values: np.ndarray, linear: np.ndarray, offset: np.ndarray, shape: tuple[int, ...], outside: float
) -> np.ndarray:
    """Interpolate onto any affine grid, plane by plane, to avoid storing coordinates of the whole scan."""
    resampled = np.empty(shape, np.float32)
    plane = np.indices(shape[1:], dtype=np.float64)
    within_plane = np.tensordot(linear[:, 1:], plane, axes=1) + offset[:, None, None]
    for x in range(shape[0]):
        coords = within_plane + (linear[:, 0] * x)[:, None, None]
        inside = np.logical_and.reduce([_inside(coords[axis], values.shape[axis]) for axis in range(3)])
        if inside.any():
            map_coordinates(values, coords, output=resampled[x], order=1, mode="nearest")
        resampled[x][~inside] = outside
    return resampled
