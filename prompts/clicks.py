"""Clicks of one scan in memory, and their conversion between voxels and world mm."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

import numpy as np

from prompts.errors import InputError

# A voxel centre converted to mm and back returns only to within rounding error.
_ROUNDING_VOX = 1e-6


@dataclass(frozen=True)
class Click:
    """A labelled point.

    Attributes:
        position_mm: world position in mm, RAS: x grows towards the patient's right, y towards anterior, z
            towards superior.
        label: 1 foreground (lesion), 0 background.
        lesion: the lesion that the click belongs to; None if it applies to the whole scan.

    Raises:
        InputError: the position is not three finite numbers, or the label is not 0 or 1.
    """

    position_mm: tuple[float, float, float]
    label: int
    lesion: int | str | None = None

    def __post_init__(self) -> None:
        if len(self.position_mm) != 3 or not all(math.isfinite(c) for c in self.position_mm):
            raise InputError(f"a click's position must be three finite numbers in mm, got {self.position_mm}")
        if self.label not in (0, 1):
            raise InputError(f"a click's label must be 1 (foreground) or 0 (background), got {self.label!r}")


@dataclass(frozen=True)
class ScanClicks:
    """Clicks simulated on one scan, in the voxels of that array and in order of use.

    Attributes:
        coords_vox: (N, 3) int64, array axis order (x, y, z).
        labels: (N,) int64, 1 foreground or 0 background.
        lesions: for each click, the lesion number from `lesions_from_mask`, or None.
    """

    coords_vox: np.ndarray
    labels: np.ndarray
    lesions: tuple[int | None, ...]

    def to_world(self, affine: np.ndarray) -> list[Click]:
        """The same clicks in unrounded world mm; `affine` (4, 4) maps the array's voxel index to RAS mm."""
        positions = to_world_mm(self.coords_vox, affine)
        return [
            Click(tuple(position), int(label), lesion)
            for position, label, lesion in zip(positions.tolist(), self.labels, self.lesions, strict=True)
        ]


def to_world_mm(coords_vox: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Convert (N, 3) voxel coordinates to (N, 3) float64 RAS mm with a (4, 4) affine."""
    affine = np.asarray(affine, np.float64)
    return np.asarray(coords_vox, np.float64).reshape(-1, 3) @ affine[:3, :3].T + affine[:3, 3]


def clicks_to_vox(clicks: Sequence[Click], affine: np.ndarray) -> np.ndarray:
    """Convert clicks to the voxel coordinates of a grid.

    Args:
        clicks: N clicks.
        affine: (4, 4), the grid's voxel index to RAS mm.

    Returns:
        (N, 3) float64 voxel coordinates; one within 1e-6 of a whole number is set to that number. Round them
        to obtain voxel indices.
    """
    affine = np.asarray(affine, np.float64)
    positions = np.array([click.position_mm for click in clicks], np.float64).reshape(-1, 3)
    coords_vox = np.linalg.solve(affine[:3, :3], (positions - affine[:3, 3]).T).T
    whole = np.round(coords_vox)
    return np.where(np.abs(coords_vox - whole) < _ROUNDING_VOX, whole, coords_vox)


def check_inside(
    clicks: Sequence[Click],
    affine: np.ndarray,
    shape: Sequence[int],
    source: str | PathLike[str] = "clicks",
) -> None:
    """Raise InputError for the first click outside the volume; the message names point, file and allowed range.

    A click is inside if its nearest voxel is.

    Args:
        clicks: clicks to check.
        affine: (4, 4), the volume's voxel index to RAS mm.
        shape: the volume's (X, Y, Z).
        source: where the clicks came from, for the message.
    """
    for number, (click, vox) in enumerate(zip(clicks, clicks_to_vox(clicks, affine), strict=True), start=1):
        if (vox < -0.5).any() or (vox >= np.asarray(shape) - 0.5).any():
            at = ", ".join(f"{c:.6g}" for c in vox)
            world = ", ".join(f"{c:.6g}" for c in click.position_mm)
            allowed = ", ".join(f"0..{n - 1}" for n in shape)
            raise InputError(
                f"{source}: point {number} lies outside the image: voxel ({at}), RAS ({world}) mm; "
                f"voxel indices range over ({allowed}); check that the clicks belong to this image and are in the "
                "units stated in their file"
            )
