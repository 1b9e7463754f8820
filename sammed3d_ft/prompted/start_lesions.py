"""The lesions of an existing mask, a CNN's for example, that prediction starts from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from scipy import ndimage

from prompts.depth import deepest_point
from prompts.lesions import lesions_from_mask
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.images import Volume, grid_difference, read_label


@dataclass(frozen=True, eq=False)
class StartLesions:
    """Lesions of a mask on a scan's grid, counted from 1."""

    labels: np.ndarray
    """(X, Y, Z) int32, canonical: 0 or the count."""
    numbers: tuple[int, ...] | None
    """What the file calls each lesion; None for a binary mask, whose components have no names."""

    @classmethod
    def read(cls, path: Path, image: Path, volume: Volume) -> StartLesions:
        """Each number of an instance map is a lesion, or each component (18-connected) of a binary mask.

        A mask of a single number is binary, unless all its voxels hang together.

        Raises:
            InputError: no mask, on another grid than the image, or empty.
        """
        label = read_label(path)
        if difference := grid_difference(label, volume):
            raise InputError(f"{path}: does not lie on the grid of {image}: {difference}; resample it to that grid")
        voxels = np.flatnonzero(label.array)
        numbers, counted = np.unique(label.array.ravel()[voxels], return_inverse=True)
        if not len(numbers):
            raise InputError(f"{path}: holds no lesion to start from; leave out --start")
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
        """The lesion at a canonical position inside the scan; None outside all."""
        x, y, z = np.floor(np.asarray(position_vox) + 0.5).astype(int)
        return int(self.labels[x, y, z]) or None

    def named(self, name: int | str | None) -> int | None:
        """The lesion that the file calls so; None if there is none."""
        if self.numbers is None or name not in self.numbers:
            return None
        return self.numbers.index(int(name)) + 1

    def mask(self, lesion: int) -> tuple[np.ndarray, tuple[int, int, int]]:
        """A lesion in its bounding box, bool, and the box's first voxel."""
        box = self._boxes[lesion - 1]
        x, y, z = (side.start for side in box)
        return self.labels[box] == lesion, (x, y, z)

    def deepest_vox(self, lesion: int, spacing_mm: np.ndarray) -> np.ndarray:
        """(3,) float64, the canonical voxel that lies deepest in a lesion."""
        mask, corner_vox = self.mask(lesion)
        deepest = deepest_point(mask, spacing_mm)
        assert deepest is not None  # a lesion has voxels
        return deepest[0] + np.array(corner_vox, np.float64)
