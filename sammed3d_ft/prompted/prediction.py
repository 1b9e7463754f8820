"""The prediction of a lesion, and maps of all lesions of a scan."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch

from prompts.boxes import bounding_box
from sammed3d_ft.images.crops import Region

# Logits are kept up to this number of voxels (16 MB), otherwise recomputed. Only masks that leak are larger.
_MOST_KEPT = 2**22


@dataclass(frozen=True, eq=False)
class LesionPrediction:
    """One lesion after its last click, or as given to `Predictor.add_mask`.

    The region may be most of a scan, so its logits are not kept but recomputed from the decoder's output when needed.
    The mask and, unless they are many, the logits in the lesion's bounding box are kept.

    Attributes:
        lesion: the lesion's number, from 1.
        region: the smallest box of the canonical volume that contains its crops; outside it nothing is predicted. For
            a mask without clicks, its bounding box.
        box: the bounding box of the lesion; without voxels if the lesion is empty.
        predicted_iou: the network's estimate of the IoU with the true lesion: the predicted IoU of each crop, weighted
            by the number of lesion voxels it decides. NaN for a mask without clicks.
        clicks: position in canonical voxels and label (1 foreground, 0 background) of every click used.
    """

    lesion: int
    region: Region
    box: Region
    predicted_iou: float
    clicks: tuple[tuple[tuple[float, float, float], int], ...]
    _whole_logits: Callable[[], np.ndarray]
    _mask_bits: np.ndarray
    _box_logits: np.ndarray | None

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
        """From ``region.shape`` float32 logits, which are not kept, and a function that recomputes them."""
        found = bounding_box(logits > 0) or (slice(0, 0),) * 3
        start, stop = ([getattr(side, end) for side in found] for end in ("start", "stop"))
        box = Region.of(np.add(region.start, start), np.add(region.start, stop))
        kept = logits[found].copy() if logits[found].size <= _MOST_KEPT else None
        bits = np.packbits(logits[found] > 0)
        return cls(lesion, region, box, predicted_iou, clicks, whole_logits, bits, kept)

    @property
    def logits(self) -> np.ndarray:
        """``region.shape`` float32, on the volume's own voxels, recomputed from the decoder's output at every access.

        The lesion is where they are > 0. They agree with the clicks, unless the predictor has ``obey=False``.
        """
        return self._whole_logits()

    @property
    def mask(self) -> np.ndarray:
        """``region.shape`` bool, a new array at every access."""
        mask = np.zeros(self.region.shape, bool)
        mask[self.box.within(self.region)] = self.box_mask
        return mask

    @property
    def box_mask(self) -> np.ndarray:
        """``box.shape`` bool, a new array at every access."""
        voxels = int(np.prod(self.box.shape))
        return np.unpackbits(self._mask_bits, count=voxels).view(bool).reshape(self.box.shape)

    @property
    def box_logits(self) -> np.ndarray:
        """``box.shape`` float32, part of `logits`."""
        return self.logits[self.box.within(self.region)] if self._box_logits is None else self._box_logits


def union_mask(lesions: Iterable[LesionPrediction], shape: tuple[int, ...]) -> np.ndarray:
    """``shape`` uint8: 1 in any lesion."""
    mask = np.zeros(shape, np.uint8)
    for found in lesions:
        mask[found.box.slices] |= found.box_mask.view(np.uint8)
    return mask


def instance_map(lesions: Iterable[LesionPrediction], part: Region) -> np.ndarray:
    """``part.shape`` int32, for a part of the scan: the number of the lesion with the highest logit (if equal, the
    lowest number), or 0.
    """
    instances = np.zeros(part.shape, np.int32)
    claims = np.zeros(part.shape, np.uint8)  # lesions that hold a voxel: one, or several (2)
    shown = [(found, both) for found in lesions if (both := found.box.overlap(part)) is not None]
    shown.sort(key=lambda pair: pair[0].lesion)
    for found, both in shown:
        here, mask = both.within(part), found.box_mask[both.within(found.box)]
        instances[here][mask] = found.lesion
        claims[here] = np.minimum(claims[here] + mask, 2)
    if (claims > 1).any():
        highest = np.zeros(part.shape, np.float32)
        for found, both in shown:
            here, within = both.within(part), both.within(found.box)
            contested = found.box_mask[within] & (claims[here] > 1)
            if contested.any():  # only then are logits needed
                logits = found.box_logits[within]
                won = contested & (logits > highest[here])
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
