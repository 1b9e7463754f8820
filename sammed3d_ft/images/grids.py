"""Volumes in closest-canonical (RAS+) axis order, with the information needed to return to the file's own grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil

from sammed3d_ft.errors import InputError

_AXES = np.arange(3)
_LONGEST_NIFTI1_AXIS = 32767
_FARTHEST_MM = 1e8
_TOLERANCE_VOX = 0.01


@dataclass(frozen=True, eq=False)
class SourceGrid:
    """The voxel grid of a file as stored, so that results can be written back onto exactly this grid.

    Attributes:
        shape: the file's own shape (three axes; a fourth axis of length 1 is dropped).
        affine: (4, 4) float64, the file's own voxel index -> world mm (RAS+).
        header: the file's own header, with its sform and qform codes and units.
        ornt: (3, 2) float, nibabel's convention: row i holds the canonical axis of source axis i, and 1 or -1 (flip).
        path: the file, or None for an image in memory.
        warning: why programs may place the file differently, in one phrase; None if the geometry is unambiguous.
    """

    shape: tuple[int, int, int]
    affine: np.ndarray
    header: nib.Nifti1Header
    ornt: np.ndarray
    path: Path | None
    warning: str | None = None

    @property
    def canonical_affine(self) -> np.ndarray:
        """(4, 4) float64, canonical voxel index -> world mm (RAS+)."""
        return self.affine @ nib.orientations.inv_ornt_aff(self.ornt, self.shape) + 0.0  # no negative zero

    def from_canonical(self, array: np.ndarray) -> np.ndarray:
        """A view of a canonical (x, y, z) array in the source's own axis order."""
        axes = self.ornt[:, 0].astype(int)
        stored = array.transpose(axes)
        return np.flip(stored, tuple(np.flatnonzero(self.ornt[:, 1] < 0)))


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3D image.

    Attributes:
        array: (x, y, z), C-contiguous, axes pointing closest to Right, Anterior and Superior;
            float32 for images, integer for labels.
        affine: (4, 4) float64, canonical voxel index -> world mm (RAS+).
        source: the grid of the file from which the image was read.
    """

    array: np.ndarray
    affine: np.ndarray
    source: SourceGrid

    @property
    def spacing_mm(self) -> np.ndarray:
        """(3,) float64: distance between neighbouring voxels along each canonical axis."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def to_mm(self, coords_vox: Any) -> np.ndarray:
        """Convert canonical voxel coordinates (..., 3) to world mm (RAS+), float64; integers are voxel centres."""
        return np.asarray(coords_vox, np.float64) @ self.affine[:3, :3].T + self.affine[:3, 3]

    def to_vox(self, coords_mm: Any) -> np.ndarray:
        """Convert world mm (RAS+) points (..., 3) to canonical voxel coordinates, float64."""
        inverse = np.linalg.inv(self.affine[:3, :3])
        return (np.asarray(coords_mm, np.float64) - self.affine[:3, 3]) @ inverse.T

    def from_source_vox(self, coords_vox: Any) -> np.ndarray:
        """Convert voxel coordinates (..., 3) in the file's own axis order to canonical ones. Exact."""
        coords = np.asarray(coords_vox, np.float64)
        last = np.array(self.source.shape) - 1
        turned = np.where(self.source.ornt[:, 1] < 0, last - coords, coords)
        canonical = np.empty_like(turned)
        canonical[..., self.source.ornt[:, 0].astype(int)] = turned
        return canonical


def canonical_orientation(affine: np.ndarray) -> np.ndarray:
    """The canonical axis and flip of each source axis: (3, 2), in nibabel's convention.

    Chooses the assignment with the largest sum of direction cosines. The result does not depend on the storage order of
    the axes, whereas nibabel's greedy `io_orientation` can differ between two storage orders of one strongly oblique
    scan. For the same reason, ties (45 degrees) go to the assignment with the lexicographically largest canonical
    direction matrix.
    """
    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    candidates = []
    for order in permutations(range(3)):  # order[world axis] = source axis
        diagonal = directions[_AXES, list(order)]
        signs = np.where(diagonal < 0, -1.0, 1.0)
        canonical = directions[:, list(order)] * signs
        candidates.append((np.abs(diagonal).sum(), tuple(np.round(canonical.ravel(), 4)), order, signs))
    best = max(score for score, *_ in candidates)
    _, _, order, signs = max((c for c in candidates if c[0] > best - 1e-5), key=lambda c: c[1])
    ornt = np.empty((3, 2))
    ornt[list(order), 0] = _AXES
    ornt[list(order), 1] = signs
    return ornt


def to_canonical(array: np.ndarray, source: SourceGrid) -> Volume:
    """Convert an array in the source's own axis order to a canonical Volume; copied only if the order differs."""
    axes = np.argsort(source.ornt[:, 0])
    turned = np.flip(array, tuple(np.flatnonzero(source.ornt[:, 1] < 0))).transpose(axes)
    # The same memory layout for all orientations: numpy sums in memory order, which affects the last bits.
    return Volume(np.ascontiguousarray(turned), source.canonical_affine, source)


def without_voxels(source: SourceGrid) -> Volume:
    """A Volume of zeros that uses no memory, for comparing grids."""
    axes = np.argsort(source.ornt[:, 0])
    return Volume(np.broadcast_to(np.uint8(0), np.array(source.shape)[axes]), source.canonical_affine, source)


def source_grid(
    shape: tuple[int, int, int], affine: np.ndarray, path: Path | None = None, warning: str | None = None
) -> SourceGrid:
    """The grid of an image that is not a NIfTI file, with the header used when it is written as NIfTI.

    Args:
        affine: (4, 4), validated by `check_affine`.
    """
    header = nib.Nifti1Header() if max(shape) <= _LONGEST_NIFTI1_AXIS else nib.Nifti2Header()
    header.set_data_shape(shape)
    header.set_xyzt_units("mm")
    header.set_sform(affine, code=1)
    header.set_qform(affine, code=1, strip_shears=True)
    if corner_shift_vox(affine, header.get_qform(), shape) > _TOLERANCE_VOX:  # sheared: a qform cannot represent it
        header.set_qform(None, code=0)
    return SourceGrid(shape, affine, header, canonical_orientation(affine), path, warning)


def check_shape(shape: Sequence[int], where: str) -> None:
    """Raise InputError for a grid without voxels, and for one that does not fit in memory as float32."""
    if min(shape) < 1:
        raise InputError(f"{where}: contains no voxels (shape {tuple(shape)})")
    needed, free = 4 * math.prod(shape), psutil.virtual_memory().available
    if needed > free:
        raise InputError(
            f"{where}: its header states {_by(shape)} voxels, which need {needed / 2**30:.3g} GiB of memory; "
            f"{free / 2**30:.3g} GiB are free: is the header damaged?"
        )


def check_affine(affine: Any, where: str) -> np.ndarray:
    """Return the affine as (4, 4) float64; raise InputError unless it is finite and invertible."""
    matrix = np.array(affine, np.float64)
    if matrix.shape != (4, 4) or not np.isfinite(matrix).all():
        raise InputError(f"{where}: the affine must be a finite 4x4 matrix, got {matrix.tolist()}")
    if np.abs(matrix).max() > _FARTHEST_MM:
        raise InputError(
            f"{where}: the affine places voxels {np.abs(matrix).max():.3g} mm away; correct the file's header"
        )
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if (lengths < 1e-6).any() or abs(np.linalg.det(matrix[:3, :3] / lengths)) < 1e-3:
        raise InputError(
            f"{where}: the affine maps the volume onto a plane, line or point "
            f"(column lengths {lengths.round(6).tolist()} mm); correct the file's header"
        )
    return matrix


def from_array(array: Any, affine: Any) -> Volume:
    """Create a Volume from an array in memory, in any axis order.

    Args:
        array: (i, j, k) numbers; floating point becomes float32, bool becomes uint8, integers are kept.
        affine: (4, 4) voxel index -> world mm (RAS+), in the array's own axis order.

    Raises:
        InputError: not three axes, NaN or infinite values, or a singular affine.
    """
    values = np.asarray(array)
    if values.ndim != 3 or values.size == 0:
        raise InputError(f"image in memory: expected a 3D array, got shape {values.shape}")
    matrix = check_affine(affine, "image in memory")
    if values.dtype == bool:
        values = values.astype(np.uint8)
    elif values.dtype.kind == "f":
        values = values.astype(np.float32, copy=False)
        check_finite(values, "image in memory")
    elif values.dtype.kind not in "iu":
        raise InputError(f"image in memory: expected real numbers, got {values.dtype}")
    return to_canonical(values, source_grid(values.shape, matrix))


def check_finite(values: np.ndarray, where: str) -> None:
    """Raise InputError if floating-point values contain NaN or infinities, with their counts."""
    # One pass without a temporary array; values are counted only if the sum is not finite.
    if np.isfinite(values.sum(dtype=np.float64)):
        return
    nan, inf = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    if nan or inf:
        raise InputError(
            f"{where}: {nan} NaN and {inf} infinite values among {values.size} voxels; "
            "replace them (in PET usually by 0) and save the file again"
        )


def corners_vox(shape: tuple[int, ...]) -> np.ndarray:
    """(8, 3) float64: voxel indices of a grid's corner voxels."""
    return np.array(np.meshgrid(*[(0, n - 1) for n in shape[:3]], indexing="ij"), np.float64).reshape(3, 8).T


def corner_shift_vox(affine: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Largest displacement of a corner voxel between `affine` and `other`, per axis, in voxels of `affine`."""
    corners = np.c_[corners_vox(shape), np.ones(8)]
    moved = corners @ (np.linalg.inv(affine) @ other).T
    return float(np.abs(moved - corners)[:, :3].max())


def grid_difference(a: Volume, b: Volume) -> str | None:
    """Describe in one phrase how the grid of `a` differs from that of `b`; None if they are the same.

    Two grids are the same if their canonical shapes are equal and every corner agrees within 0.01 voxels.
    Files with different axis orders can have the same grid.
    """
    if a.array.shape != b.array.shape:
        return f"shape {_by(a.array.shape)} against {_by(b.array.shape)} (axes in RAS+ order)"
    shift = corner_shift_vox(b.affine, a.affine, b.array.shape)
    if shift <= _TOLERANCE_VOX:
        return None
    if not np.allclose(a.spacing_mm, b.spacing_mm, rtol=1e-3):
        return f"voxel size {_by(a.spacing_mm.round(4))} against {_by(b.spacing_mm.round(4))} mm"
    offset_mm = a.affine[:3, 3] - b.affine[:3, 3]
    moved = b.affine.copy()
    moved[:3, 3] += offset_mm
    if corner_shift_vox(moved, a.affine, b.array.shape) > _TOLERANCE_VOX:
        return f"axes point in other directions, corners up to {shift:.2f} voxels apart"
    return f"shifted by ({', '.join(f'{v:.2f}' for v in offset_mm)}) mm, {shift:.2f} voxels"


def same_grid(a: Volume, b: Volume) -> bool:
    """Whether two volumes have the same grid; see `grid_difference`."""
    return grid_difference(a, b) is None


def _by(numbers: Any) -> str:
    return "x".join(f"{n:g}" for n in numbers)


def require_modalities(images: Mapping[str, Volume], modalities: Sequence[str], case: str = "") -> None:
    """Raise InputError, naming the case and the missing images, unless all modalities are present."""
    missing = [modality for modality in modalities if modality not in images]
    if missing:
        where = f"{case}: " if case else ""
        raise InputError(
            f"{where}no {' and no '.join(missing)} image, but the model needs {' and '.join(modalities)}; "
            "add it, or use a model that does not need it"
        )
