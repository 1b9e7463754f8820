"""The image on which clicks were made, as recorded in a click file: its grid, stored and compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from prompts.errors import InputError

# Two grids are the same if all corner voxels agree within this fraction of a voxel.
_TOLERANCE_VOX = 0.01


@dataclass(frozen=True, eq=False)
class NamedImage:
    """Shape (X, Y, Z) and affine (4, 4), voxel index to RAS mm, of an image file as stored."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """`{"shape": [X, Y, Z], "affine": [[...], ...]}`, unrounded."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def of(cls, shape: Sequence[int], affine: np.ndarray) -> NamedImage:
        """Create from the shape and affine of an image."""
        x, y, z = (int(n) for n in shape)
        return cls((x, y, z), np.asarray(affine, np.float64))

    @classmethod
    def from_json(cls, path: Path, content: Any) -> NamedImage:
        """Read what `to_json` wrote; raises InputError naming the click file if the content is invalid."""
        try:
            shape, affine = content["shape"], np.array(content["affine"], np.float64)
            whole = len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
            valid = whole and affine.shape == (4, 4) and np.isfinite(affine).all()
            if valid and abs(np.linalg.det(affine[:3, :3])) > 0 and (affine[3] == (0, 0, 0, 1)).all():
                return cls.of(shape, affine)
        except (KeyError, TypeError, ValueError):
            pass
        raise InputError(
            f'{path}: "image" is {content!s:.60}; it must give the shape of the image (3 whole numbers) and its '
            "affine (4 rows of 4 numbers, voxel to RAS mm)"
        )

    def difference(self, other: NamedImage) -> str | None:
        """Describe in one phrase how another image's grid differs; None if it is the same, in any axis order."""
        step_vox = np.linalg.solve(other.affine[:3, :3], self.affine[:3, :3])
        axes = np.abs(step_vox).argmax(axis=0)  # for each axis of this image, the matching axis of the other
        if tuple(np.array(other.shape)[axes]) != self.shape or len(set(axes)) < 3:
            turned = "" if self.shape != other.shape else " with different axis directions"
            return f"{_by(self.shape)} voxels against {_by(other.shape)}{turned}"
        last = np.array(other.shape) - 1
        corners_vox = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij"), float).reshape(3, 8).T
        offset_vox = np.linalg.solve(other.affine[:3, :3], self.affine[:3, 3] - other.affine[:3, 3])
        found_vox = corners_vox @ step_vox.T + offset_vox
        away_vox = np.abs(found_vox - np.where(found_vox > last / 2, last, 0)).max()
        if away_vox <= _TOLERANCE_VOX:
            return None
        place = ", ".join(f"{c:.1f}" for c in self.affine[:3, 3])
        other_place = ", ".join(f"{c:.1f}" for c in other.affine[:3, 3])
        return f"first voxel at RAS ({place}) against ({other_place}) mm, corners up to {away_vox:.2f} voxels apart"


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
