"""What a predictor knows of a lesion, and the maps that several lesions make of a scan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from prompts.depth import bounding_box
from sammed3d_ft.images.crops import Region


@dataclass(frozen=True, eq=False)
class LesionPrediction:
    """One lesion as its last click left it, or as `Predictor.add_mask` was given it.

    The region may be most of a scan, so its logits are not kept, except in the box of the lesion itself.

    Attributes:
        lesion: its number, from 1.
        region: the smallest box of the canonical volume that its crops lie in; the lesion is known only there. Of a
            mask without clicks, its bounding box.
        box: the smallest part of the region that holds the lesion; without voxels if it is empty.
        box_logits: ``box.shape`` float32, part of `logits`.
        predicted_iou: the network's own estimate of its overlap with the true lesion, the mean over its voxels of what
            the crops that decide them predict; NaN of a mask without clicks.
        clicks: position in canonical voxels and label (1 foreground, 0 background) of every click used.
        whole_logits: makes `logits`.
    """

    lesion: int
    region: Region
    box: Region
    box_logits: np.ndarray
    predicted_iou: float
    clicks: tuple[tuple[tuple[float, float, float], int], ...]
    whole_logits: Callable[[], np.ndarray]

    @classmethod
    def of(
        cls,
        lesion: int,
        region: Region,
        logits: np.ndarray,
        predicted_iou: float,
        clicks: tuple[tuple[tuple[float, float, float], int], ...],
        whole_logits: Callable[[], np.ndarray],
    ) -> LesionPrediction:
        """From logits of the region, of which only those in the lesion's box are kept."""
        found = bounding_box(logits > 0) or (slice(0, 0),) * 3
        start, stop = ([getattr(side, end) for side in found] for end in ("start", "stop"))
        box = Region.of(np.add(region.start, start), np.add(region.start, stop))
        return cls(lesion, region, box, logits[found].copy(), predicted_iou, clicks, whole_logits)

    @property
    def logits(self) -> np.ndarray:
        """``region.shape`` float32, on the volume's own voxels, made from the decoder's output at every access.

        The lesion is where they are > 0. They obey the clicks, unless the predictor is told otherwise.
        """
        return self.whole_logits()

    @property
    def mask(self) -> np.ndarray:
        """``region.shape`` bool, a new array at every access."""
        mask = np.zeros(self.region.shape, bool)
        mask[self.box.within(self.region)] = self.box_logits > 0
        return mask


def union_mask(lesions: Iterable[LesionPrediction], shape: tuple[int, ...]) -> np.ndarray:
    """``shape`` uint8: 1 in any lesion."""
    mask = np.zeros(shape, np.uint8)
    for found in lesions:
        mask[found.box.slices] |= (found.box_logits > 0).view(np.uint8)
    return mask


def instance_map(lesions: Iterable[LesionPrediction], part: Region) -> np.ndarray:
    """``part.shape`` int32, of a part of the scan: the number of the lesion with the highest logits (the lowest number,
    when equal), or 0.
    """
    instances = np.zeros(part.shape, np.int32)
    highest = np.zeros(part.shape, np.float32)
    for found in sorted(lesions, key=lambda found: found.lesion):
        if (both := found.box.overlap(part)) is None:
            continue
        here, logits = both.within(part), found.box_logits[both.within(found.box)]
        won = logits > highest[here]
        instances[here][won] = found.lesion
        highest[here][won] = logits[won]
    return instances


def highest_probability(lesions: Iterable[LesionPrediction], shape: tuple[int, ...]) -> np.ndarray:
    """``shape`` float32: the highest probability of any lesion, 0 outside all crops."""
    probability = np.zeros(shape, np.float32)
    for found in lesions:
        view = probability[found.region.slices]
        np.maximum(view, torch.sigmoid(torch.from_numpy(found.logits)).numpy(), out=view)
    return probability
