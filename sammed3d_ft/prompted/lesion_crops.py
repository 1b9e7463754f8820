"""A lesion in one crop: encoded once, decoded click by click, with logits on the scan's own voxels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from prompts.boxes import bounding_box
from sammed3d_ft.images.crops import CropGrid, Region, covered_region, logits_on_region, read_crop
from sammed3d_ft.model.variants import Variant
from sammed3d_ft.prompted.ambiguity import mask_logits
from sammed3d_ft.prompted.preprocessing import prepare_crop


class PromptableModel(Protocol):
    """The network interface that prediction needs, implemented by `SAMMed3D` and by stand-ins in tests."""

    @property
    def image_size(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def variant(self) -> Variant: ...
    @property
    def image_encoder(self) -> Callable[[Tensor], Tensor]: ...
    def decode(
        self, embedding: Tensor, coords_vox: Tensor, labels: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, eq=False)
class PlacedClick:
    """A click on a scan.

    Attributes:
        position_vox: (3,) float64, canonical voxels.
        voxel: (3,) int64, the voxel that contains it; on a face between two voxels, the upper one.
        label: 1 foreground, 0 background.
        reach_mm: for a correction, the distance to the border of the mask that was corrected; None for other clicks.
    """

    position_vox: np.ndarray
    voxel: np.ndarray
    label: int
    reach_mm: float | None = None

    @classmethod
    def at(cls, position_vox: np.ndarray, label: int, shape: tuple[int, ...]) -> PlacedClick:
        """A click inside, or on an outer face of, a scan of this shape."""
        voxel = np.clip(np.floor(position_vox + 0.5).astype(np.int64), 0, np.array(shape) - 1)
        return cls(position_vox, voxel, label)


@dataclass(frozen=True, eq=False)
class StartMask:
    """An existing mask of a lesion: ``region.shape`` bool in its bounding box, at least one voxel."""

    region: Region
    mask: np.ndarray

    @classmethod
    def of(cls, mask: np.ndarray, box: tuple[slice, slice, slice], corner_vox: Sequence[int] = (0, 0, 0)) -> StartMask:
        """From a mask in its bounding box ``box`` of an array whose first voxel is ``corner_vox`` of the scan."""
        sides = list(zip(box, corner_vox, strict=True))
        region = Region.of([side.start + at for side, at in sides], [side.stop + at for side, at in sides])
        return cls(region, np.ascontiguousarray(mask))

    def holds(self, click: PlacedClick) -> bool:
        """Whether the click's voxel belongs to the lesion."""
        return self.region.holds(click.voxel) and bool(self.mask[tuple(click.voxel - self.region.start)])

    def low_resolution(self, grid: CropGrid, size: int) -> Tensor:
        """(1, 1, size, size, size) logits of the mask in a crop, for the decoder's mask input; see `mask_logits`."""
        within = replace(grid, centre_vox=tuple(np.subtract(grid.centre_vox, self.region.start)))
        return mask_logits(read_crop(torch.from_numpy(self.mask.astype(np.float32))[None], within), size)[None]


@dataclass(frozen=True, eq=False)
class Decoded:
    """Decoder output of a crop, for each mirrored version. Immutable, so that states can share it."""

    low: tuple[Tensor | None, ...]
    """(1, 1, L, L, L) logits, fed back in the next pass; None before the first pass."""
    predicted_iou: float = math.nan


def crops_at_once(device: torch.device) -> int:
    """Batch size of the encoder: one crop is enough to keep a CPU busy, but not a GPU."""
    return 4 if device.type == "cuda" else 1


def encode_crops(model: PromptableModel, channels: Tensor, grids: Sequence[CropGrid]) -> list[Tensor]:
    """(1, D, g, g, g) embedding of each crop."""
    count, embeddings = crops_at_once(model.device), []
    for first in range(0, len(grids), count):
        # Read on the CPU, so that a crop does not depend on the device.
        crops = torch.stack([prepare_crop(channels, grid) for grid in grids[first : first + count]])
        embeddings += model.image_encoder(crops.to(model.device)).split(1)
    return embeddings


class LesionCrop:
    """A lesion in one crop, or in several mirrored versions of it.

    Args:
        model: the network; encodes each grid, unless ``embeddings`` are given.
        channels: (C, X, Y, Z) of the scan, see `preprocessing.channels`.
        grids: the crop, or its mirrored versions about the centre voxel, whose logits are averaged.
        start: mask passed to the decoder as the previous mask of the first click.
        embeddings: embeddings of the grids, if already computed.
    """

    def __init__(
        self,
        model: PromptableModel,
        channels: Tensor,
        grids: Sequence[CropGrid],
        start: StartMask | None,
        embeddings: Sequence[Tensor] | None = None,
    ) -> None:
        self.model = model
        self.grids = tuple(grids)
        shape = (channels.shape[1], channels.shape[2], channels.shape[3])
        # A crop has one voxel more on one side of its centre; the part that all mirrored versions cover is symmetric.
        regions = [covered_region(grid, shape) for grid in grids]
        first, last = np.max([r.start for r in regions], 0), np.min([r.stop for r in regions], 0)
        # A crop may be smaller than a voxel of the scan.
        voxel = np.clip(np.floor(np.array(grids[0].centre_vox) + 0.5), 0, np.array(shape) - 1)
        self.region = Region.of(np.minimum(first, voxel), np.maximum(last, voxel + 1))
        self._embeddings = tuple(embeddings or encode_crops(model, channels, grids))
        low: list[Tensor | None] = [None] * len(grids)
        if start is not None:
            low = [start.low_resolution(grid, model.variant.logits_size).to(model.device) for grid in grids]
        self.unclicked = Decoded(tuple(low))

    def holds(self, click: PlacedClick) -> bool:
        """Whether the click's voxel is one of the region's."""
        return self.region.holds(click.voxel)

    def decode(self, before: Decoded, clicks: Sequence[PlacedClick], accumulate: bool) -> Decoded:
        """One decoder pass with the clicks inside this crop; returns ``before`` if the newest click is outside.

        Args:
            before: output of the last pass; `unclicked` for the first.
            clicks: all clicks so far, the newest last.
            accumulate: use all of them; False uses only the newest.
        """
        if not self.holds(clicks[-1]):
            return before
        held = [click for click in clicks if self.holds(click)] if accumulate else [clicks[-1]]
        positions_vox, labels = np.stack([click.position_vox for click in held]), [click.label for click in held]
        device = self.model.device
        passes = []
        for grid, embedding, previous in zip(self.grids, self._embeddings, before.low, strict=True):
            low, predicted_iou = self.model.decode(
                embedding,
                torch.tensor(grid.to_crop(positions_vox), dtype=torch.float32, device=device)[None],
                torch.tensor(labels, device=device)[None],
                previous,
            )
            passes.append((low, float(predicted_iou[0, 0])))
        return Decoded(tuple(low for low, _ in passes), float(np.mean([iou for _, iou in passes])))

    def logits(self, decoded: Decoded) -> np.ndarray:
        """``region.shape`` float32, the mean over the mirrored versions."""
        total: Tensor | None = None
        for grid, low in zip(self.grids, decoded.low, strict=True):
            assert low is not None
            logits = logits_on_region(low[0, 0].cpu(), grid, self.region)
            total = logits if total is None else total + logits
        assert total is not None
        return (total / len(self.grids)).contiguous().numpy()

    def inner_weight(self) -> np.ndarray:
        """``region.shape`` float32: 1 inside the crop, falling to 0 over its outermost eighth towards each face."""
        weight = np.ones(self.region.shape, np.float32)
        for axis, count in enumerate(self.region.shape):
            to_face = np.full(count, np.inf)
            for grid in self.grids:
                corner = grid.to_crop(np.array(self.region.start))[axis]
                place = corner + np.arange(count) / grid.step_vox[axis]
                to_face = np.minimum(to_face, np.minimum(place + 0.5, grid.size - 0.5 - place))
            ramp = np.clip(to_face / (self.grids[0].size / 8), 0, 1).astype(np.float32)
            weight *= ramp.reshape([-1 if other == axis else 1 for other in range(3)])
        return weight


def shares(crops: Sequence[LesionCrop], mask: np.ndarray) -> np.ndarray:
    """(number of crops,) float64: how many of a mask's voxels each crop decides, by the weights of `merged_logits`.

    Args:
        crops: the crops, finest first.
        mask: ``crops[-1].region.shape`` bool.
    """
    outer, box = crops[-1].region, bounding_box(mask)
    if box is None or len(crops) == 1:
        return np.array([0.0] * (len(crops) - 1) + [float(mask.sum())])
    left, found = mask[box].astype(np.float32), []
    for crop in crops[:-1]:
        weight = np.zeros(outer.shape, np.float32)
        weight[crop.region.within(outer)] = crop.inner_weight()
        taken = left * weight[box]
        found.append(float(taken.sum(dtype=np.float64)))
        left -= taken
    return np.array([*found, float(left.sum(dtype=np.float64))])


def merged_logits(crops: Sequence[LesionCrop], logits: Sequence[np.ndarray]) -> np.ndarray:
    """Merge crops (finest first) into ``crops[-1].region.shape``; each is blended into the next, coarser one."""
    outer, merged = crops[-1].region, logits[-1]
    if len(crops) > 1:
        merged = merged.copy()
    for crop, finer in zip(crops[-2::-1], logits[-2::-1], strict=True):
        inner = crop.region.within(outer)
        merged[inner] += crop.inner_weight() * (finer - merged[inner])
    return merged


def reaches_beyond(region: Region, mask: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether a mask (``region.shape`` bool) touches a face of its region that is not a face of the scan."""
    for axis, size in enumerate(shape):
        within = region.slices[axis]
        for inside_scan, face in ((within.start > 0, 0), (within.stop < size, -1)):
            if inside_scan and np.take(mask, face, axis).any():
                return True
    return False


@contextmanager
def evaluating(model: PromptableModel) -> Iterator[None]:
    """Temporarily switch to evaluation mode, because a predictor may share its model with a training loop."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
