"""The first click: one foreground point inside each mask."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from prompts.batch import (
    Clicks,
    Spacing,
    as_masks,
    as_pet,
    bounding_box_of,
    labelled,
    require_strategy,
    spacing_per_sample,
)
from prompts.depth import deepest_point
from prompts.randomness import Key, first_voxel, random_voxel

FIRST_STRATEGIES = ("deepest", "uniform", "suvmax", "boundary", "jittered")


def first_click(
    target: torch.Tensor,
    *,
    strategy: str = "deepest",
    keys: Sequence[Key],
    spacing_mm: Spacing = None,
    pet: torch.Tensor | None = None,
    jitter_mm: float = 6.0,
) -> Clicks:
    """One foreground click inside each mask; label -1 where a mask is empty.

    - `deepest`: the voxel farthest inside the mask (`deepest_point`).
    - `uniform`: drawn uniformly from the mask.
    - `suvmax`: the voxel with the highest PET value; ties go to the first in (x, y, z) order.
    - `boundary`: drawn from the mask voxels that share a face with the outside; space beyond the volume counts
      as outside.
    - `jittered`: drawn from the mask voxels within `jitter_mm` of the deepest one.

    Everything runs on the device except the distance transform of `deepest` and `jittered`, which runs on the
    CPU on the mask's bounding box. A sample's click depends only on its own mask, PET and key.

    Args:
        target: (B, 1, X, Y, Z) or (B, X, Y, Z), one lesion (one target) per sample; floats are thresholded at
            0.5.
        strategy: one of `FIRST_STRATEGIES`.
        keys: one key per sample, e.g. (seed, epoch, sample, round).
        spacing_mm: voxel size along x, y, z, (3,) or (B, 3); None for 1 mm.
        pet: the same shape as `target`; required by `suvmax` only.
        jitter_mm: radius of `jittered`.

    Raises:
        InputError: unknown strategy, or `suvmax` without PET.
        ValueError: mismatched shapes.
    """
    require_strategy(strategy, FIRST_STRATEGIES)
    masks = as_masks(target)
    if strategy == "uniform":
        return labelled(*random_voxel(masks, keys), label=1)
    if strategy == "boundary":
        return labelled(*random_voxel(masks & ~_interior(masks), keys), label=1)
    if strategy == "suvmax":
        uptake = as_pet(pet, masks, strategy).masked_fill(~masks, -torch.inf)
        hottest = masks & (uptake == uptake.amax(dim=(1, 2, 3), keepdim=True))
        return labelled(*first_voxel(hottest), label=1)

    spacings_mm = spacing_per_sample(spacing_mm, len(masks))
    voxels, found = np.zeros((len(masks), 3), np.int64), np.zeros(len(masks), bool)
    for i in range(len(masks)):
        box = bounding_box_of(masks[i])
        if box is None:
            continue
        deepest = deepest_point(masks[i][box].cpu().numpy(), spacings_mm[i])
        assert deepest is not None, "the box holds the mask"
        voxels[i], found[i] = deepest[0] + [side.start for side in box], True
    voxel = torch.from_numpy(voxels).to(masks.device)
    if strategy == "jittered":
        voxel, _ = random_voxel(masks & _within(masks.shape, voxel, spacings_mm, jitter_mm), keys)
    return labelled(voxel, torch.from_numpy(found).to(masks.device), label=1)


def _interior(masks: torch.Tensor) -> torch.Tensor:
    """The mask voxels, in (B, X, Y, Z), whose six face neighbours all belong to the mask."""
    interior = masks.clone()
    for axis in (1, 2, 3):
        length = masks.shape[axis]
        interior.narrow(axis, 1, length - 1).logical_and_(masks.narrow(axis, 0, length - 1))
        interior.narrow(axis, 0, length - 1).logical_and_(masks.narrow(axis, 1, length - 1))
        interior.narrow(axis, 0, 1).fill_(False)
        interior.narrow(axis, length - 1, 1).fill_(False)
    return interior


def _within(shape: torch.Size, centre: torch.Tensor, spacings_mm: np.ndarray, radius_mm: float) -> torch.Tensor:
    """The voxels, in (B, X, Y, Z), within a radius of each sample's (B, 3) centre voxel."""
    spacing = torch.from_numpy(spacings_mm.astype(np.float32)).to(centre.device)
    x, y, z = (
        ((torch.arange(shape[axis + 1], device=centre.device) - centre[:, axis, None]) * spacing[:, axis, None]) ** 2
        for axis in range(3)
    )
    return x[:, :, None, None] + y[:, None, :, None] + z[:, None, None, :] <= radius_mm**2
