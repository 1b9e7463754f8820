"""Shared parts of the batched click functions: the result type, and checks of masks, PET and spacing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from prompts.errors import InputError

Spacing = Sequence[float] | np.ndarray | torch.Tensor | None
"""Voxel size in mm along x, y, z: (3,) for all samples or (B, 3); None for 1 mm."""


class Clicks(NamedTuple):
    """One click per sample, on the masks' device.

    Attributes:
        coords_vox: (B, 3) float32, voxel centres in tensor axis order (x, y, z); 0 where there is no click.
        labels: (B,) int64: 1 foreground, 0 background, -1 no click (the prompt encoder's "not a point").
    """

    coords_vox: torch.Tensor
    labels: torch.Tensor


def clicks_at(voxel: torch.Tensor, labels: torch.Tensor) -> Clicks:
    """Clicks at (B, 3) voxels with (B,) labels; coordinates of missing clicks (label -1) are set to 0."""
    return Clicks(voxel.masked_fill(labels[:, None] < 0, 0).float(), labels)


def labelled(voxel: torch.Tensor, found: torch.Tensor, *, label: int) -> Clicks:
    """Clicks at (B, 3) voxels, all with the same label; missing (-1) where (B,) `found` is false."""
    return clicks_at(voxel, torch.where(found, label, -1))


def require_strategy(strategy: str, known: tuple[str, ...]) -> None:
    """Raise InputError if the strategy is unknown."""
    if strategy not in known:
        raise InputError(f"unknown click strategy {strategy!r}; choose one of {', '.join(known)}")


def as_masks(masks: torch.Tensor) -> torch.Tensor:
    """Convert (B, 1, X, Y, Z) or (B, X, Y, Z) of any dtype to (B, X, Y, Z) boolean; floats are thresholded at 0.5."""
    if masks.ndim == 5 and masks.shape[1] == 1:
        masks = masks[:, 0]
    if masks.ndim != 4:
        raise ValueError(f"masks must have shape (B, 1, X, Y, Z) or (B, X, Y, Z), got {tuple(masks.shape)}")
    if masks.dtype == torch.bool:
        return masks
    return masks > 0.5 if masks.is_floating_point() else masks != 0


def as_pet(pet: torch.Tensor | None, masks: torch.Tensor, strategy: str) -> torch.Tensor:
    """The PET as (B, X, Y, Z) floating point on the masks' device; it must have the masks' shape."""
    if pet is None:
        raise InputError(f"click strategy {strategy!r} uses PET uptake: provide the PET")
    if pet.ndim == 5 and pet.shape[1] == 1:
        pet = pet[:, 0]
    if pet.shape != masks.shape:
        raise ValueError(f"the PET has shape {tuple(pet.shape)} and the masks {tuple(masks.shape)}; they must be equal")
    return pet.to(masks.device) if pet.is_floating_point() else pet.to(masks.device).float()


def spacing_per_sample(spacing_mm: Spacing, batch: int) -> np.ndarray:
    """(B, 3) float64 in mm from a `Spacing`."""
    if spacing_mm is None:
        return np.ones((batch, 3))
    if isinstance(spacing_mm, torch.Tensor):
        spacing_mm = spacing_mm.detach().cpu().numpy()
    spacing = np.asarray(spacing_mm, np.float64)
    if spacing.shape not in ((3,), (batch, 3)) or not (spacing > 0).all():
        raise ValueError(f"spacing_mm must be (3,) or ({batch}, 3) positive numbers, got {spacing.tolist()}")
    return np.broadcast_to(spacing, (batch, 3))


def bounding_box_of(
    mask: torch.Tensor, margin_vox: np.ndarray | tuple[int, int, int] = (0, 0, 0)
) -> tuple[slice, slice, slice] | None:
    """Bounding box of a (X, Y, Z) boolean mask plus a margin, clipped to the volume; None for an empty mask."""
    box = [slice(None)] * 3
    for axis in range(3):
        # Each axis searches only the box found along the previous axes. On a CPU, a reduction over bytes is
        # much faster than `any`.
        rest = mask[box[0], box[1], box[2]].movedim(axis, 0).flatten(1).view(torch.uint8)
        occupied = rest.amax(dim=1).nonzero()
        if len(occupied) == 0:
            return None
        box[axis] = slice(int(occupied[0]), int(occupied[-1]) + 1)
    x, y, z = (
        slice(max(side.start - int(margin), 0), min(side.stop + int(margin), length))
        for side, margin, length in zip(box, margin_vox, mask.shape, strict=True)
    )
    return x, y, z
