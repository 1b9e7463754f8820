"""The prediction of a lesion, and maps of all lesions of a scan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from sammed3d_ft.images.crops import Region


@dataclass(frozen=True, eq=False)
class LesionPrediction:
    """One lesion after its last click, or as given to `Predictor.add_mask`.

    Attributes:
        lesion: the lesion's number, from 1.
        region: the smallest box of the canonical volume that contains its crops; outside it nothing is predicted. For
            a mask without clicks, its bounding box.
        logits: ``region.shape`` float32, on the volume's own voxels; lesion where > 0. They agree with the clicks,
            unless the predictor has ``obey=False``.
        predicted_iou: the network's estimate of the IoU with the true lesion: the predicted IoU of each crop, weighted
            by the number of lesion voxels it decides. NaN for a mask without clicks.
        clicks: position in canonical voxels and label (1 foreground, 0 background) of every click used.
    """

    lesion: int
    region: Region
    logits: np.ndarray
    predicted_iou: float
    clicks: tuple[tuple[tuple[float, float, float], int], ...]

    @property
    def mask(self) -> np.ndarray:
        """``region.shape`` bool."""
        return self.logits > 0


def union_mask(lesions: Iterable[LesionPrediction], shape: tuple[int, ...]) -> np.ndarray:
    """``shape`` uint8: 1 in any lesion."""
    mask = np.zeros(shape, np.uint8)
    for found in lesions:
        mask[found.region.slices] |= found.mask.view(np.uint8)
    return mask


def instance_map(lesions: Iterable[LesionPrediction], shape: tuple[int, ...]) -> np.ndarray:
    """``shape`` int32: the number of the lesion with the highest logit (if equal, the lowest number), or 0."""
    instances = np.zeros(shape, np.int32)
    highest = np.zeros(shape, np.float32)
    for found in sorted(lesions, key=lambda found: found.lesion):
        won = found.logits > highest[found.region.slices]
        instances[found.region.slices][won] = found.lesion
        highest[found.region.slices][won] = found.logits[won]
    return instances


def highest_probability(lesions: Iterable[LesionPrediction], shape: tuple[int, ...]) -> np.ndarray:
    """``shape`` float32: the highest probability of any lesion, 0 outside all crops."""
    probability = np.zeros(shape, np.float32)
    for found in lesions:
        view = probability[found.region.slices]
        np.maximum(view, torch.sigmoid(torch.from_numpy(found.logits)).numpy(), out=view)
    return probability
