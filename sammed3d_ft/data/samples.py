"""Training samples: one augmented crop of one lesion with its first click, drawn from a key alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prompts import first_click, uniforms
from sammed3d_ft.data.augment import NO_AUGMENTATION, AugmentationRanges, draw_augmentation
from sammed3d_ft.data.crops import crop_grid, read_crop, read_target
from sammed3d_ft.data.intensity import z_score
from sammed3d_ft.data.lesion_store import LesionStore


class Sample(TypedDict):
    """One sample. A batch has the same keys, stacked; ``index`` becomes a list."""

    image: Tensor  # (C, S, S, S) float32, z-scored
    target: Tensor  # (1, S, S, S) bool
    coords_vox: Tensor  # (3,) float32, the first click in crop voxels
    label: Tensor  # () int64
    index: int  # of the lesion in its store


@dataclass(frozen=True)
class SampleSettings:
    """How samples are drawn."""

    crop_size: int
    spacing_mm: float
    first_click: str
    ranges: AugmentationRanges | None  # None: no augmentation
    seed: int


class LesionSamples(Dataset[Sample]):
    """The lesions of a store as seen in one epoch (or in one view of the embedding cache).

    Args:
        store: the lesions.
        settings: how to draw.
        epoch: with the settings' seed and the lesion's index it decides click, crop and augmentation.
    """

    def __init__(self, store: LesionStore, settings: SampleSettings, epoch: int) -> None:
        self.store, self.settings, self.epoch = store, settings, epoch

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, index: int) -> Sample:
        settings = self.settings
        box = self.store.read(index)
        spacing = np.array(box.entry.spacing_mm)
        key = (settings.seed, self.epoch, index, 0)
        click = first_click(
            box.target[None],
            strategy=settings.first_click,
            keys=[key],
            spacing_mm=spacing,
            pet=box.channels[:1],
        )
        click_vox = click.coords_vox[0].double().numpy()
        augmentation = NO_AUGMENTATION
        if settings.ranges is not None:
            seed = int(uniforms((*key, "augmentation"), 1)[0] * 2**53)
            augmentation = draw_augmentation(settings.ranges, np.random.default_rng(seed))
        # The crop's centre is the click, so that jitter, flips and rotation keep it where it is known.
        grid = crop_grid(
            click_vox,
            spacing,
            settings.spacing_mm,
            settings.crop_size,
            zoom=augmentation.zoom,
            flips=augmentation.flips,
        )
        shift = np.array(augmentation.jitter_vox)
        if shift.any():
            grid = grid.shifted(shift, augmentation.rotation)
        image = augmentation.contrast(read_crop(box.channels, grid, augmentation.rotation))
        centre = settings.crop_size // 2
        return Sample(
            image=augmentation.add_noise(z_score(image)),
            target=read_target(box.target, grid, augmentation.rotation),
            coords_vox=torch.tensor(centre - shift, dtype=torch.float32),
            label=torch.tensor(1),
            index=index,
        )


def collate(samples: Sequence[Sample]) -> dict[str, object]:
    """Stacks samples; indices stay a list."""
    batch: dict[str, object] = {
        name: torch.stack([sample[name] for sample in samples])  # type: ignore[literal-required]
        for name in samples[0]
        if name != "index"
    }
    batch["index"] = [sample["index"] for sample in samples]
    return batch


def loader_workers(asked: int | None, device: torch.device) -> int:
    """Processes that load samples: as asked, or (None) as many as help.

    Beside a GPU they keep it from waiting; on a CPU they would only take its cores from the network.
    """
    if asked is not None or device.type == "cpu":
        return asked or 0
    training_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, max(1, (os.cpu_count() or 1) // training_here - 1))


def epoch_batches(
    count: int, batch_size: int, seed: int, epoch: int, process: int = 0, processes: int = 1
) -> list[list[int]]:
    """One process's batches of an epoch: lists of sample indices, the same number on every process.

    The order is a permutation drawn from (seed, epoch). The joint batch of all processes is a run of
    ``batch_size * processes`` samples; each process takes its own part of it. The last joint batch is filled
    up from the permutation's start, so that no sample is dropped and no process waits for another.
    """
    order = np.argsort(uniforms((seed, epoch, "order"), count), kind="stable").tolist()
    smallest = processes  # every process needs at least one sample of the last joint batch
    while len(order) % smallest:
        order.append(order[len(order) % count])
    joint = batch_size * processes
    batches = []
    for start in range(0, len(order), joint):
        part = order[start : start + joint]
        each = len(part) // processes
        batches.append(part[process * each : (process + 1) * each])
    return batches
