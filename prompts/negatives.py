"""Negative clicks: background points that a model is likely to mistake for a lesion."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

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
from prompts.randomness import Key, random_voxel

NEGATIVE_STRATEGIES = ("near_miss", "hot_background")

HOT_PERCENTILE = 99.75
"""Background voxels above this percentile of background PET are hot (threshold of the autoPET IV protocol)."""


def negative_click(
    target: torch.Tensor,
    *,
    strategy: str = "near_miss",
    keys: Sequence[Key],
    spacing_mm: Spacing = None,
    pet: torch.Tensor | None = None,
    shell_mm: tuple[float, float] = (2.0, 10.0),
) -> Clicks:
    """One background click per sample, never inside the mask; label -1 where no voxel qualifies.

    - `near_miss`: drawn from the shell of voxels whose distance to the nearest mask voxel lies in `shell_mm`
      (limits included). An empty mask gets no click. The distance transform runs on the CPU on the mask's
      bounding box plus the shell.
    - `hot_background`: drawn from the voxels outside the mask whose PET exceeds the 99.75th percentile of the
      PET outside the mask (linear interpolation, as in `numpy.percentile`). Also works on empty masks. Runs on
      the device.

    Args:
        target: (B, 1, X, Y, Z) or (B, X, Y, Z), all lesions; no click falls inside them.
        strategy: one of `NEGATIVE_STRATEGIES`.
        keys: one key per sample.
        spacing_mm: voxel size along x, y, z, (3,) or (B, 3); None for 1 mm.
        pet: the same shape as `target`; required by `hot_background` only.
        shell_mm: smallest and largest distance of `near_miss`.

    Raises:
        InputError: unknown strategy, or `hot_background` without PET.
        ValueError: mismatched shapes.
    """
    require_strategy(strategy, NEGATIVE_STRATEGIES)
    masks = as_masks(target)
    if strategy == "hot_background":
        return labelled(*random_voxel(hot_background(masks, as_pet(pet, masks, strategy)), keys), label=0)

    spacings_mm = spacing_per_sample(spacing_mm, len(masks))
    shells = torch.zeros_like(masks)
    for i in range(len(masks)):
        box = bounding_box_of(masks[i], margin_vox=np.ceil(shell_mm[1] / spacings_mm[i]).astype(int))
        if box is not None:
            shell = near_miss_shell(masks[i][box].cpu().numpy(), spacings_mm[i], shell_mm)
            shells[i][box] = torch.from_numpy(shell).to(masks.device)
    return labelled(*random_voxel(shells, keys), label=0)


def hot_background(masks: torch.Tensor, pet: torch.Tensor) -> torch.Tensor:
    """The voxels, in (B, X, Y, Z), outside boolean masks with PET above its 99.75th percentile there."""
    bars = torch.stack([_hot_bar(uptake[~mask]) for uptake, mask in zip(pet, masks, strict=True)])
    return ~masks & (pet > bars[:, None, None, None])


def near_miss_shell(mask: np.ndarray, spacing_mm: np.ndarray, shell_mm: tuple[float, float]) -> np.ndarray:
    """The voxels of a (X, Y, Z) array whose distance to the nearest mask voxel lies in `shell_mm`, inclusive."""
    distance_mm = ndimage.distance_transform_edt(~mask, sampling=spacing_mm)
    return ~mask & (distance_mm >= shell_mm[0]) & (distance_mm <= shell_mm[1])


def _hot_bar(background: torch.Tensor) -> torch.Tensor:
    """The 99.75th percentile of (N,) values, linearly interpolated; infinity if N is 0."""
    n = background.numel()
    if n == 0:
        return background.new_tensor(torch.inf)
    position = HOT_PERCENTILE / 100 * (n - 1)
    below = int(position)
    # Only the hottest 0.25 % need sorting.
    hottest = background.topk(n - below).values
    lower, upper = hottest[-1], hottest[max(n - below - 2, 0)]
    return lower + (upper - lower) * (position - below)
