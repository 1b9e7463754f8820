"""Clicks for all lesions of one scan, as placed before any prediction exists."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage

from prompts.autopet import autopet_clicks, hot_background
from prompts.batch import require_strategy
from prompts.clicks import ScanClicks
from prompts.errors import InputError
from prompts.first_clicks import FIRST_STRATEGIES, first_click
from prompts.lesions import lesions_from_mask
from prompts.randomness import Key, uniforms

SCAN_STRATEGIES = (*FIRST_STRATEGIES, "autopet")
NEGATIVE_STRATEGIES = ("near_miss", "hot_background")


def clicks_from_mask(
    mask: np.ndarray,
    *,
    strategy: str = "deepest",
    key: Key = (42,),
    spacing_mm: Sequence[float] | np.ndarray | None = None,
    pet: np.ndarray | None = None,
    connectivity: int | None = None,
    clicks_per_lesion: int = 1,
    negatives: int = 0,
    negative_strategy: str = "near_miss",
    jitter_mm: float = 6.0,
    shell_mm: tuple[float, float] = (2.0, 10.0),
) -> ScanClicks:
    """Simulate foreground clicks in every lesion of a mask, and optionally background clicks.

    Each lesion gets `clicks_per_lesion` clicks by one of the strategies of `first_click`. Further clicks repeat
    the strategy on the lesion minus the voxels already clicked (for depth, a clicked voxel counts as outside, so
    clicks spread). A lesion with fewer voxels than clicks gets one click per voxel. No lesion is skipped because
    of its size.

    Background clicks never lie in a lesion and never repeat:

    - `near_miss`: up to `negatives` per lesion, from the shell around it, with the lesion's number.
    - `hot_background`: up to `negatives` per scan, from PET above its 99.75th percentile outside the lesions.

    `strategy="autopet"` follows the autoPET IV protocol (`autopet_clicks`): 10 + 10 clicks. The key is then one
    whole number, the seed; the protocol fixes connectivity, click counts and click types.

    Args:
        mask: (X, Y, Z), boolean or whole numbers, as for `lesions_from_mask`.
        strategy: one of `FIRST_STRATEGIES`, or `autopet`.
        key: key of the random draws.
        spacing_mm: voxel size along the three axes; None for 1 mm.
        pet: (X, Y, Z), for `suvmax`, `hot_background` and `autopet`.
        connectivity: 6, 18 or 26; None for 18.
        clicks_per_lesion: foreground clicks per lesion.
        negatives: background clicks, see above.
        negative_strategy: one of `NEGATIVE_STRATEGIES`.
        jitter_mm: radius of `jittered`.
        shell_mm: smallest and largest distance of `near_miss`.

    Returns:
        Foreground clicks in lesion order, then background clicks. An empty mask has no foreground clicks.

    Raises:
        InputError: unknown names, missing PET, mismatched shapes, or settings that `autopet` fixes.
    """
    require_strategy(strategy, SCAN_STRATEGIES)
    require_strategy(negative_strategy, NEGATIVE_STRATEGIES)
    mask = np.asarray(mask)
    if pet is not None and pet.shape != mask.shape:
        raise InputError(f"the PET has shape {pet.shape} and the mask {mask.shape}; they must be on the same grid")
    if strategy == "autopet":
        if connectivity not in (None, 26) or clicks_per_lesion != 1 or negatives:
            raise InputError(
                "the autopet protocol fixes the connectivity (26) and the clicks (10 + 10): leave these options unset"
            )
        if len(key) != 1 or not isinstance(key[0], int):
            raise InputError(f"the autopet protocol needs one whole number as its seed, got the key {tuple(key)}")
        return autopet_clicks(mask, pet, seed=key[0])
    if clicks_per_lesion < 1 or negatives < 0:
        raise InputError(
            f"clicks per lesion must be at least 1 and negatives at least 0, got {clicks_per_lesion} and {negatives}"
        )
    if pet is None and strategy == "suvmax":
        raise InputError("click strategy 'suvmax' uses PET uptake: provide the PET")
    if pet is None and negatives and negative_strategy == "hot_background":
        raise InputError("click strategy 'hot_background' uses PET uptake: provide the PET")

    spacing = np.ones(3) if spacing_mm is None else np.asarray(spacing_mm, float)
    lesions, _ = lesions_from_mask(mask, 18 if connectivity is None else connectivity)
    boxes = ndimage.find_objects(lesions)
    found: list[tuple[np.ndarray, int, int | None]] = []
    for number, box in enumerate(boxes, start=1):
        remaining = torch.from_numpy(lesions[box] == number)[None]
        uptake = None if pet is None else torch.from_numpy(np.ascontiguousarray(pet[box], np.float32))[None]
        for nth in range(clicks_per_lesion):
            coords_vox, labels = first_click(
                remaining,
                strategy=strategy,
                keys=[(*key, "lesion", number, nth)],
                spacing_mm=spacing,
                pet=uptake,
                jitter_mm=jitter_mm,
            )
            if labels[0] < 0:
                break
            voxel = coords_vox[0].long()
            remaining[0, voxel[0], voxel[1], voxel[2]] = False
            found.append((voxel.numpy() + _start(box), 1, number))

    if negatives and negative_strategy == "near_miss":
        margin = np.ceil(shell_mm[1] / spacing).astype(int)
        for number, box in enumerate(boxes, start=1):
            around = tuple(slice(max(s.start - m, 0), s.stop + m) for s, m in zip(box, margin, strict=True))
            distance_mm = ndimage.distance_transform_edt(lesions[around] != number, sampling=spacing)
            shell = (lesions[around] == 0) & (distance_mm >= shell_mm[0]) & (distance_mm <= shell_mm[1])
            drawn = _draw(np.argwhere(shell) + _start(around), negatives, (*key, "near miss", number))
            found.extend((voxel, 0, number) for voxel in drawn)
    elif negatives:
        assert pet is not None
        hot = hot_background(lesions != 0, np.asarray(pet, np.float64))
        drawn = _draw(np.argwhere(hot), negatives, (*key, "hot background"))
        found.extend((voxel, 0, None) for voxel in drawn)

    return ScanClicks(
        coords_vox=np.array([voxel for voxel, _, _ in found], np.int64).reshape(-1, 3),
        labels=np.array([label for _, label, _ in found], np.int64),
        lesions=tuple(lesion for _, _, lesion in found),
    )


def _start(box: tuple[slice, ...]) -> np.ndarray:
    return np.array([side.start for side in box])


def _draw(voxels: np.ndarray, n: int, key: Key) -> np.ndarray:
    """Draw `n` different rows of (M, 3) voxels; if M < n, all M in random order."""
    order = np.arange(len(voxels))
    n = min(n, len(voxels))
    for i, uniform in enumerate(uniforms(key, n)):
        chosen = i + int(uniform * (len(order) - i))
        order[i], order[chosen] = order[chosen], order[i]
    return voxels[order[:n]]
