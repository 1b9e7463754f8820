"""Crops: the cube of voxels around a click that is the model's input, and the mapping back to the scan's grid.

A crop is aligned with the axes of the canonical (RAS+) volume, so crop and scan are related by a scale and a shift per
axis. Linear interpolation is therefore separable: three small matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from sammed3d_ft.errors import InputError


@dataclass(frozen=True)
class CropGrid:
    """A cube of ``size`` voxels per axis, placed in a canonical volume.

    Crop voxel ``size // 2`` lies exactly on ``centre_vox``. A click on a voxel centre therefore stays on a voxel
    centre, and the clicked lesion voxel is never lost in resampling, however small the lesion.

    Args:
        centre_vox: the crop's centre in the volume's voxel coordinates, axes x, y, z.
        step_vox: volume voxels per crop voxel for each axis; negative if the axis is flipped.
        size: voxels per axis.
    """

    centre_vox: tuple[float, float, float]
    step_vox: tuple[float, float, float]
    size: int

    def to_source(self, coords_vox: np.ndarray) -> np.ndarray:
        """Crop voxels (..., 3) -> volume voxels (..., 3), float64."""
        offset = np.asarray(coords_vox, np.float64) - self.size // 2
        return np.asarray(self.centre_vox) + offset * np.asarray(self.step_vox)

    def to_crop(self, coords_vox: np.ndarray) -> np.ndarray:
        """Volume voxels (..., 3) -> crop voxels (..., 3), float64."""
        offset = np.asarray(coords_vox, np.float64) - np.asarray(self.centre_vox)
        return offset / np.asarray(self.step_vox) + self.size // 2

    def shifted(self, offset_vox: np.ndarray, rotation: np.ndarray | None = None) -> CropGrid:
        """The crop shifted by whole crop voxels (3,) along its own (rotated) axes."""
        offset = np.asarray(offset_vox, np.float64)
        if rotation is not None:
            offset = rotation @ offset
        x, y, z = (float(c) for c in np.asarray(self.centre_vox) + offset * np.asarray(self.step_vox))
        return CropGrid((x, y, z), self.step_vox, self.size)


def crop_grid(
    centre_vox: np.ndarray,
    volume_spacing_mm: np.ndarray,
    crop_spacing_mm: float,
    size: int,
    *,
    zoom: float = 1.0,
    flips: tuple[bool, bool, bool] = (False, False, False),
) -> CropGrid:
    """The crop at ``crop_spacing_mm`` centred on a click.

    Centre and step are rounded (to 0.001 voxel and 1e-6): affines are stored in float32, so one scan stored in two axis
    orders differs in the last bits, but its crops must not.

    Args:
        centre_vox: (3,) in the volume's voxel coordinates.
        volume_spacing_mm: (3,) spacing of the canonical volume.
        crop_spacing_mm: isotropic spacing of the crop.
        size: voxels per axis.
        zoom: > 1 magnifies the lesion in the crop (augmentation).
        flips: axes to mirror about the centre (augmentation).
    """
    step = np.round(crop_spacing_mm / np.asarray(volume_spacing_mm, np.float64), 6) / zoom
    step = np.where(flips, -step, step)
    x, y, z = (float(c) for c in np.round(np.asarray(centre_vox, np.float64), 3))
    return CropGrid((x, y, z), (float(step[0]), float(step[1]), float(step[2])), size)


def closer_spacing(extent_mm: float, edge_mm: float) -> float:
    """Crop spacing for a small lesion (auto-zoom): 1/4, 1/2 or 1 times the model's own.

    Returns the finest at which the lesion spans at most half of the crop's edge, so that its surroundings stay visible.

    Args:
        extent_mm: longest side of the lesion's bounding box.
        edge_mm: edge length of the model's own crop.
    """
    return next((share for share in (0.25, 0.5) if extent_mm <= share * edge_mm / 2), 1.0)


def spacings_shown(extent_mm: float, edge_mm: float) -> list[float]:
    """The crop spacings used in prediction for a lesion, as multiples of the model's own, which comes first.

    A lesion that spans more than 0.7 of a crop's edge is likely to reach its border, which makes prediction add coarser
    crops (auto-zoom).
    """
    closer = closer_spacing(extent_mm, edge_mm)
    coarser = [multiple for multiple in (2.0, 4.0) if extent_mm > 0.35 * multiple * edge_mm]
    return [1.0, *([closer] if closer < 1 else []), *coarser]


def read_crop(volume: Tensor, grid: CropGrid, rotation: np.ndarray | None = None) -> Tensor:
    """Read a crop from a volume by linear interpolation; 0 outside the volume.

    Args:
        volume: (C, X, Y, Z) float32, canonical axes, any device.
        grid: the crop.
        rotation: (3, 3) orthogonal matrix in mm space, about the crop's centre (augmentation); without it the crop
            is read faster.

    Returns:
        (C, S, S, S) float32.
    """
    if rotation is not None:
        return _read_rotated(volume, grid, rotation)
    index = torch.arange(grid.size, dtype=torch.float64) - grid.size // 2
    matrices, windows = [], []
    for axis in range(3):
        position = grid.centre_vox[axis] + index * grid.step_vox[axis]
        matrix, window = _linear_weights(position, volume.shape[1 + axis])
        matrices.append(matrix)
        windows.append(window)
    volume = volume[:, windows[0], windows[1], windows[2]]  # at once: along one axis, it would be a slab of the scan
    for axis, matrix in enumerate(matrices):
        volume = _along(volume, matrix, axis)
    return volume


def read_target(mask: Tensor, grid: CropGrid, rotation: np.ndarray | None = None) -> Tensor:
    """Read a binary mask on the crop's voxels: linear interpolation, thresholded at 0.5.

    Args:
        mask: (X, Y, Z), bool.

    Returns:
        (1, S, S, S) bool.
    """
    # 0.5 minus the rounding error of float32, so that a half-covered voxel counts, whatever the order of summation.
    return read_crop(mask[None].float(), grid, rotation) >= 0.5 - 1e-6


def _linear_weights(position: Tensor, extent: int) -> tuple[Tensor, slice]:
    """(n, window) float32 interpolation weights, and the window of voxels used; voxels outside have weight 0."""
    lower = position.floor()
    fraction = position - lower
    start = int(lower.min().clamp(0, extent - 1))
    stop = int((lower.max() + 2).clamp(start + 1, extent))
    matrix = torch.zeros(len(position), stop - start, dtype=torch.float64)
    rows = torch.arange(len(position))
    for corner, weight in ((lower, 1 - fraction), (lower + 1, fraction)):
        column = corner.long() - start
        inside = (column >= 0) & (column < stop - start)
        matrix[rows[inside], column[inside]] += weight[inside]
    return matrix.float(), slice(start, stop)


def _along(volume: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """Apply a matrix (n, m) along one spatial axis of (C, X, Y, Z)."""
    matrix = matrix.to(volume.device)
    return torch.movedim(torch.tensordot(volume, matrix, dims=([1 + axis], [1])), -1, 1 + axis)


def _read_rotated(volume: Tensor, grid: CropGrid, rotation: np.ndarray) -> Tensor:
    step = np.asarray(grid.step_vox)
    # A rotation in mm: index offset -> mm (by |step|, up to the common crop spacing) -> rotate -> voxels.
    linear = np.diag(step) @ rotation
    extent = np.asarray(volume.shape[1:], np.float64)
    # grid_sample expects positions in [-1, 1] between the first and last voxel centre, in z, y, x order.
    scale = 2.0 / np.maximum(extent - 1, 1)
    offset = np.asarray(grid.centre_vox) * scale - 1
    matrix = torch.tensor(scale[:, None] * linear, dtype=torch.float32, device=volume.device)
    index = torch.arange(grid.size, dtype=torch.float32, device=volume.device) - grid.size // 2
    i, j, k = (axis.unsqueeze(-1) for axis in torch.meshgrid(index, index, index, indexing="ij"))
    positions = i * matrix[:, 0] + j * matrix[:, 1] + k * matrix[:, 2]
    positions = positions + torch.tensor(offset, dtype=torch.float32, device=volume.device)
    if (extent < 2).any():
        raise InputError(f"volume of {tuple(volume.shape[1:])} voxels: rotation needs at least 2 per axis")
    return F.grid_sample(
        volume[None], positions.flip(-1)[None], mode="bilinear", padding_mode="zeros", align_corners=True
    )[0]


@dataclass(frozen=True)
class Region:
    """A box of a volume's voxels: ``start`` to ``stop`` (exclusive) per axis x, y, z."""

    start: tuple[int, int, int]
    stop: tuple[int, int, int]

    @classmethod
    def of(cls, start: Sequence[float] | np.ndarray, stop: Sequence[float] | np.ndarray) -> Region:
        """From corners (3,) that hold whole numbers of any type."""
        (x0, y0, z0), (x1, y1, z1) = map(int, start), map(int, stop)
        return cls((x0, y0, z0), (x1, y1, z1))

    @property
    def slices(self) -> tuple[slice, slice, slice]:
        x, y, z = (slice(a, b) for a, b in zip(self.start, self.stop, strict=True))
        return x, y, z

    @property
    def shape(self) -> tuple[int, int, int]:
        x, y, z = (b - a for a, b in zip(self.start, self.stop, strict=True))
        return x, y, z

    def encloses(self, inner: Region) -> bool:
        """Whether this region contains all of another region."""
        sides = zip(self.start, inner.start, inner.stop, self.stop, strict=True)
        return all(start <= a and b <= stop for start, a, b, stop in sides)

    def holds(self, voxel: np.ndarray) -> bool:
        """Whether a voxel (3,) of the volume lies in the region."""
        return all(start <= v < stop for start, v, stop in zip(self.start, voxel, self.stop, strict=True))

    def overlap(self, other: Region) -> Region | None:
        """The voxels that both regions contain; None if there are none."""
        start, stop = np.maximum(self.start, other.start), np.minimum(self.stop, other.stop)
        return Region.of(start, stop) if (start < stop).all() else None

    def within(self, outer: Region) -> tuple[slice, slice, slice]:
        """Slices of this region in an array of the enclosing region `outer`."""
        x, y, z = (slice(a - o, b - o) for a, b, o in zip(self.start, self.stop, outer.start, strict=True))
        return x, y, z


def touched_region(grid: CropGrid, volume_shape: tuple[int, int, int], rotation: np.ndarray | None = None) -> Region:
    """The voxels of the volume that a crop depends on; a single voxel if the crop lies outside the volume."""
    corners = np.stack(np.meshgrid(*[[0.0, grid.size - 1.0]] * 3, indexing="ij"), -1).reshape(-1, 3)
    if rotation is not None:
        corners = (corners - grid.size // 2) @ rotation.T + grid.size // 2
    places = grid.to_source(corners)
    # One voxel of margin, for the rounding of positions to float32.
    start = np.clip(np.floor(places.min(0)) - 1, 0, np.subtract(volume_shape, 1)).astype(int)
    stop = np.clip(np.ceil(places.max(0)) + 2, start + 1, volume_shape).astype(int)
    return Region.of(start, stop)


def bounding_region(regions: Sequence[Region]) -> Region:
    """The smallest region that contains all the given ones."""
    return Region.of(np.min([r.start for r in regions], 0), np.max([r.stop for r in regions], 0))


def covered_region(grid: CropGrid, volume_shape: tuple[int, int, int]) -> Region:
    """The voxels of the volume whose centres lie in the crop (up to the outer faces of its outermost voxels)."""
    faces = np.sort(np.stack([grid.to_source(np.full(3, -0.5)), grid.to_source(np.full(3, grid.size - 0.5))]), axis=0)
    start = np.clip(np.ceil(faces[0] - 1e-9), 0, volume_shape).astype(int)
    stop = np.clip(np.floor(faces[1] + 1e-9) + 1, start, volume_shape).astype(int)
    return Region.of(start, stop)


def logits_on_region(low: Tensor, grid: CropGrid, region: Region) -> Tensor:
    """Interpolate a crop's low-resolution logits at the voxel centres of a region.

    Combines two linear interpolations: from low resolution to crop (edge values repeated, as in training) and from crop
    to volume. Both are separable, so their matrices are multiplied, and no crop-sized volume is created.

    Args:
        low: (L, L, L) logits of the crop.

    Returns:
        ``region.shape`` float32.
    """
    volume = low[None].float()
    for axis in range(3):
        source = torch.arange(region.start[axis], region.stop[axis], dtype=torch.float64)
        position = (source - grid.centre_vox[axis]) / grid.step_vox[axis] + grid.size // 2
        to_volume = clamped_weights(position, grid.size)
        factor = grid.size / low.shape[axis]
        to_crop = clamped_weights((torch.arange(grid.size, dtype=torch.float64) + 0.5) / factor - 0.5, low.shape[axis])
        volume = _along(volume, (to_volume @ to_crop).float(), axis)
    return volume[0]


def clamped_weights(position: Tensor, extent: int) -> Tensor:
    """(n, extent) float64 weights of linear interpolation, with positions clamped to the edges."""
    position = position.clamp(0, extent - 1)
    lower = position.floor().clamp(max=max(extent - 2, 0))
    fraction = position - lower
    matrix = torch.zeros(len(position), extent, dtype=torch.float64)
    rows = torch.arange(len(position))
    matrix[rows, lower.long()] = 1 - fraction
    if extent > 1:
        matrix[rows, lower.long() + 1] += fraction
    return matrix


def rotation_matrix(angles_rad: np.ndarray) -> np.ndarray:
    """(3, 3) rotation matrix: rotation about x, then y, then z."""
    matrix = np.eye(3)
    for axis, angle in enumerate(angles_rad):
        turn = np.eye(3)
        i, j = [other for other in range(3) if other != axis]
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        matrix = turn @ matrix
    return matrix
