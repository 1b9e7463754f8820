"""Training crops of whole scans, centred on a lesion or background voxel, with random shift, rotation and scaling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prompts.randomness import uniforms
from sammed3d_ft.automatic.scan_store import ScanPart, ScanStore
from sammed3d_ft.images.crops import CropGrid, Region, read_crop, read_target, rotation_matrix


@dataclass(frozen=True)
class CropSettings:
    """Settings for drawing crops.

    Attributes:
        size: voxels per axis.
        positive, negative: relative shares of crops centred on a lesion voxel and on a background voxel.
        per_case: crops per scan and epoch.
        affine_probability: probability of a random shift, rotation and scaling.
        translate_vox: maximum shift per axis.
        rotate_z_deg: maximum rotation about the z axis.
        scale: maximum change of scale per axis, as a fraction.
        seed: seed of the run.
    """

    size: int
    positive: float
    negative: float
    per_case: int
    affine_probability: float
    translate_vox: float
    rotate_z_deg: float
    scale: float
    seed: int


class CropSample(TypedDict):
    """One crop. A batch has the same keys, stacked; ``index`` becomes a list."""

    image: Tensor  # (C, S, S, S) float32, 0 outside the scan
    target: Tensor  # (1, S, S, S) bool
    index: int


@dataclass(frozen=True)
class DrawnCrop:
    """Position and orientation of a crop in its scan.

    Attributes:
        positive: whether the crop is centred on a lesion voxel.
        voxel: the voxel it was drawn for; at the scan's border the crop is shifted to lie inside the scan.
        start: first voxel of the crop before shift, rotation and scaling; negative if the scan is smaller.
        grid: the crop's grid with shift and scaling; None without shift, rotation and scaling.
        rotation: (3, 3), or None like `grid`.
    """

    positive: bool
    voxel: tuple[int, int, int]
    start: tuple[int, int, int]
    grid: CropGrid | None
    rotation: np.ndarray | None


def draw_crop(
    shape: tuple[int, int, int], lesion_voxels: np.ndarray, settings: CropSettings, draws: np.ndarray
) -> DrawnCrop:
    """Draw one crop. Scans without lesions always give background crops.

    Args:
        shape: shape of the scan.
        lesion_voxels: (n,) indices into the flattened scan, ascending.
        settings: shares and ranges.
        draws: (10,) random numbers, uniform on [0, 1).
    """
    count, lesions = int(np.prod(shape)), len(lesion_voxels)
    positive = draws[0] * (settings.positive + settings.negative) < settings.positive
    positive = lesions > 0 and (positive or lesions == count)
    if positive:
        place = int(lesion_voxels[int(draws[1] * lesions)])
    else:
        # The index of the r-th background voxel is r plus the number of lesion voxels before it.
        rank = int(draws[1] * (count - lesions))
        place = rank + int(np.searchsorted(lesion_voxels - np.arange(lesions), rank, side="right"))
    x, y, z = (int(axis) for axis in np.unravel_index(place, shape))
    # A scan smaller than the crop is padded as in sliding-window inference: evenly, with the odd voxel at the end.
    start = tuple(
        min(max(at - settings.size // 2, 0), extent - settings.size)
        if extent >= settings.size
        else -((settings.size - extent) // 2)
        for at, extent in zip((x, y, z), shape, strict=True)
    )
    grid, rotation = None, None
    if draws[2] < settings.affine_probability:
        signed = 2 * draws[3:] - 1
        centre = np.array(start) + settings.size // 2 + settings.translate_vox * signed[:3]
        step = 1 / (1 + settings.scale * signed[3:6])
        rotation = rotation_matrix(np.array([0.0, 0.0, np.deg2rad(settings.rotate_z_deg) * signed[6]]))
        grid = CropGrid(_triple(centre), _triple(step), settings.size)
    return DrawnCrop(positive, (x, y, z), (start[0], start[1], start[2]), grid, rotation)


class ScanCrops(Dataset[CropSample]):
    """The training crops of one epoch.

    Args:
        store: the scans.
        settings: settings for drawing crops.
        epoch: the epoch; together with the seed and the sample index it determines each crop.
    """

    def __init__(self, store: ScanStore, settings: CropSettings, epoch: int) -> None:
        self.store, self.settings, self.epoch = store, settings, epoch

    def __len__(self) -> int:
        return len(self.store) * self.settings.per_case

    def __getitem__(self, index: int) -> CropSample:
        case = index // self.settings.per_case
        draws = uniforms((self.settings.seed, self.epoch, index, "crop"), 10)
        shape = self.store.shape(case)
        crop = draw_crop(shape, self.store.lesion_voxels(case), self.settings, draws)
        if crop.grid is None:
            part = self._cut(case, shape, crop.start)
        else:
            assert crop.rotation is not None
            part = self._turned(case, shape, crop.grid, crop.rotation)
        return CropSample(image=part.channels, target=part.target[None], index=index)

    def _cut(self, case: int, shape: tuple[int, int, int], start: tuple[int, int, int]) -> ScanPart:
        """The crop's voxels without interpolation, zeros outside the scan."""
        size = self.settings.size
        region = _clipped(np.array(start), np.array(start) + size, shape)
        part = self.store.read(case, region)
        if part.target.shape == (size,) * 3:
            return part
        within = region.within(Region.of(start, np.array(start) + size))
        channels = torch.zeros(len(part.channels), size, size, size)
        target = torch.zeros(size, size, size, dtype=torch.bool)
        channels[(slice(None), *within)], target[within] = part.channels, part.target
        return ScanPart(channels, target)

    def _turned(self, case: int, shape: tuple[int, int, int], grid: CropGrid, rotation: np.ndarray) -> ScanPart:
        """The crop by linear interpolation; the target is thresholded at one half."""
        reach = np.abs(np.diag(grid.step_vox) @ rotation).sum(1) * (grid.size / 2) + 1
        centre = np.array(grid.centre_vox)
        region = _clipped(np.floor(centre - reach), np.ceil(centre + reach) + 1, shape)
        part = self.store.read(case, region)
        moved = CropGrid(_triple(centre - np.array(region.start)), grid.step_vox, grid.size)
        return ScanPart(read_crop(part.channels, moved, rotation), read_target(part.target, moved, rotation)[0])


def _clipped(start: np.ndarray, stop: np.ndarray, shape: tuple[int, int, int]) -> Region:
    """The part of a box inside the scan; at least two voxels per axis if possible, as needed for interpolation."""
    low = np.clip(start, 0, np.maximum(np.array(shape) - 2, 0))
    return Region.of(low, np.clip(stop, np.minimum(low + 2, shape), shape))


def _triple(values: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(value) for value in values)
    return x, y, z
