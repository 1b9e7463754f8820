"""Training samples: one augmented crop of one lesion with its first click, determined by a key."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from prompts.first_clicks import first_click
from prompts.randomness import uniforms
from sammed3d_ft.images.crops import crop_grid, read_crop, read_target, spacings_shown, touched_region
from sammed3d_ft.images.intensity import z_score
from sammed3d_ft.prompted.ambiguity import draw_outline, draw_start, mask_logits
from sammed3d_ft.prompted.augment import NO_AUGMENTATION, AugmentationRanges, draw_augmentation
from sammed3d_ft.prompted.lesion_store import LesionStore


class Sample(TypedDict):
    """One sample. A batch has the same keys, stacked; ``index`` becomes a list."""

    image: Tensor  # (C, S, S, S) float32, z-scored
    target: Tensor  # (1, S, S, S) bool
    start: Tensor  # (1, L, L, L) float32, logits of the initial mask; zeros if there is none
    coords_vox: Tensor  # (3,) float32, the first click in crop voxels
    label: Tensor  # () int64
    index: int  # index of the sample in its epoch


@dataclass(frozen=True)
class SampleSettings:
    """Settings for drawing samples.

    Attributes:
        crop_size: S, voxels per axis of the model's crop.
        logits_size: L, voxels per axis of its low-resolution logits.
        spacing_mm: the model's own crop spacing.
        first_click: strategy of `prompts.first_click`.
        ranges: ranges of the augmentation; None switches it off.
        seed: seed of the run.
        zoom: show lesions at all crop spacings used in prediction, see `spacings_shown`.
        ambiguous: fraction of samples whose target has another outline than the lesion, see `draw_outline`.
        start_masks: fraction of samples that start from a mask, see `draw_start`.
    """

    crop_size: int
    logits_size: int
    spacing_mm: float
    first_click: str
    ranges: AugmentationRanges | None
    seed: int
    zoom: bool = True
    ambiguous: float = 0.0
    start_masks: float = 0.0


class LesionSamples(Dataset[Sample]):
    """The lesion samples of one epoch (or of one view in the embedding cache).

    Args:
        store: the lesions.
        settings: settings for drawing samples.
        epoch: the epoch; together with the seed and the sample index it determines click, crop and augmentation.
        repeats: samples per lesion in an epoch; sample i shows lesion ``i % len(store)``.
    """

    def __init__(self, store: LesionStore, settings: SampleSettings, epoch: int, repeats: int = 1) -> None:
        self.store, self.settings, self.epoch, self.repeats = store, settings, epoch, repeats

    def __len__(self) -> int:
        return len(self.store) * self.repeats

    def __getitem__(self, index: int) -> Sample:
        settings, lesion = self.settings, index % len(self.store)
        entry = self.store.entries[lesion]
        spacing = np.array(entry.spacing_mm)
        key = (settings.seed, self.epoch, index, 0)
        own = self.store.read(lesion, entry.region)
        click = first_click(
            own.target[None],
            strategy=settings.first_click,
            keys=[key],
            spacing_mm=spacing,
            pet=own.channels[:1],
        )
        click_vox = click.coords_vox[0].double().numpy() + np.array(entry.start)
        augmentation = NO_AUGMENTATION
        if settings.ranges is not None:
            augmentation = draw_augmentation(settings.ranges, generator(key, "augmentation"))
        # The crop is centred on the click, so that its position stays known under jitter, flips and rotation.
        grid = crop_grid(
            click_vox,
            spacing,
            settings.spacing_mm * self._closeness(entry.extent_mm, key),
            settings.crop_size,
            zoom=augmentation.zoom,
            flips=augmentation.flips,
        )
        shift = np.array(augmentation.jitter_vox)
        if shift.any():
            grid = grid.shifted(shift, augmentation.rotation)
        region = touched_region(grid, entry.shape, augmentation.rotation)
        scan = self.store.read(lesion, region)
        grid = replace(grid, centre_vox=tuple(np.subtract(grid.centre_vox, region.start).tolist()))
        image = augmentation.contrast(read_crop(scan.channels, grid, augmentation.rotation))
        place = settings.crop_size // 2 - shift
        target, start = draw_target(
            read_target(scan.target, grid, augmentation.rotation)[0].numpy(), place, settings, generator(key, "target")
        )
        return Sample(
            image=augmentation.add_noise(z_score(image)),
            target=target,
            start=start,
            coords_vox=torch.tensor(place, dtype=torch.float32),
            label=torch.tensor(1),
            index=index,
        )

    def _closeness(self, extent_mm: float, key: tuple[int, ...]) -> float:
        """Draw one of the spacings, as a multiple of the model's own, which is drawn half of the time."""
        edge_mm = self.settings.crop_size * self.settings.spacing_mm
        others = spacings_shown(extent_mm, edge_mm)[1:] if self.settings.zoom else []
        draw = 2 * uniforms((*key, "spacing"), 1)[0] - 1
        return others[int(draw * len(others))] if others and draw >= 0 else 1.0


def draw_target(
    lesion: np.ndarray, click_vox: np.ndarray, settings: SampleSettings, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A sample's target, (1, S, S, S) bool, and the logits of its initial mask, (1, L, L, L) float32.

    Args:
        lesion: (S, S, S) bool, the lesion in the crop.
        click_vox: (3,), the first click in crop voxels.
    """
    target = draw_outline(lesion, click_vox, rng) if rng.random() < settings.ambiguous else lesion
    start = torch.zeros(1, *(settings.logits_size,) * 3)
    if rng.random() < settings.start_masks:
        drawn = draw_start(target, click_vox, rng)
        start = mask_logits(torch.from_numpy(drawn.astype(np.float32))[None], settings.logits_size)
    return torch.from_numpy(target)[None], start


def generator(key: tuple[int, ...], name: str) -> np.random.Generator:
    """A generator whose draws depend only on the key of a sample and the name of what is drawn."""
    return np.random.default_rng(int(uniforms((*key, name), 1)[0] * 2**53))
