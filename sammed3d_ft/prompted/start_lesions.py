"""The lesions of an existing mask, such as a CNN's, to be corrected by clicks."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import ndimage

from prompts.depth import deepest_point
from prompts.lesions import lesions_from_mask
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume, grid_difference
from sammed3d_ft.images.images import read_label


@dataclass(frozen=True, eq=False)
class StartLesions:
    """Lesions of a mask on a scan's grid, counted from 1."""

    labels: np.ndarray
    """(X, Y, Z) int32, canonical: 0 for background, else 1..count."""
    numbers: tuple[int, ...] | None
    """The number of each lesion in the file; None for a binary mask, whose components have no numbers."""

    @classmethod
    def read(cls, path: Path, image: Path, volume: Volume) -> StartLesions:
        """Read a mask: each number of an instance map, or each 18-connected component of a binary mask, is a lesion.

        A file with a single number is a binary mask if it has several components.

        Raises:
            InputError: not a mask, on another grid than the image, or empty.
        """
        label = read_label(path)
        if difference := grid_difference(label, volume):
            raise InputError(f"{path}: is not on the grid of {image} ({difference}); resample it to that grid")
        voxels = np.flatnonzero(label.array)
        numbers, counted = np.unique(label.array.ravel()[voxels], return_inverse=True)
        if not len(numbers):
            raise InputError(f"{path}: the start mask is empty; omit --start")
        if len(numbers) == 1:
            components, count = lesions_from_mask(label.array)
            if count > 1:
                return cls(components, None)
        labels = np.zeros(label.array.shape, np.int32)
        labels.ravel()[voxels] = counted + 1
        return cls(labels, tuple(int(number) for number in numbers))

    @cached_property
    def _boxes(self) -> list[tuple[slice, slice, slice]]:
        return ndimage.find_objects(self.labels)

    @property
    def count(self) -> int:
        return len(self._boxes)

    def at(self, position_vox: np.ndarray) -> int | None:
        """The lesion at a canonical position inside the scan; None if there is none."""
        x, y, z = np.floor(np.asarray(position_vox) + 0.5).astype(int)
        return int(self.labels[x, y, z]) or None

    def named(self, name: int | str | None) -> int | None:
        """The lesion with this number in the file; None if there is none."""
        if self.numbers is None or name not in self.numbers:
            return None
        return self.numbers.index(int(name)) + 1

    def mask(self, lesion: int) -> tuple[np.ndarray, tuple[int, int, int]]:
        """A lesion's bool mask in its bounding box, and the box's first voxel."""
        box = self._boxes[lesion - 1]
        x, y, z = (side.start for side in box)
        return self.labels[box] == lesion, (x, y, z)

    def deepest_vox(self, lesion: int, spacing_mm: np.ndarray) -> np.ndarray:
        """The deepest voxel of a lesion, (3,) float64, canonical."""
        mask, corner_vox = self.mask(lesion)
        deepest = deepest_point(mask, spacing_mm)
        assert deepest is not None  # a lesion has voxels
        return deepest[0] + np.array(corner_vox, np.float64)
