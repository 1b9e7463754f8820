"""The next click, placed where the prediction is wrong."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from prompts.batch import (
    Clicks,
    Spacing,
    as_masks,
    bounding_box_of,
    clicks_at,
    require_strategy,
    spacing_per_sample,
)
from prompts.depth import deepest_point
from prompts.lesions import lesions_from_mask
from prompts.randomness import Key, random_voxel, uniforms

CORRECTION_STRATEGIES = ("error_random", "error_deepest", "error_largest", "error_mixed")

_MISSED, _FALSE = 1, 2


def next_click(
    pred: torch.Tensor,
    target: torch.Tensor,
    *,
    strategy: str = "error_random",
    keys: Sequence[Key],
    spacing_mm: Spacing = None,
) -> Clicks:
    """One click per sample where the prediction is wrong: label 1 in a false negative, 0 in a false positive.

    - `error_random`: a voxel drawn uniformly from the error region. Runs on the device; a sample's draw
      depends only on its masks and its key, not on the rest of the batch.
    - `error_deepest`: the deepest voxel of the false-negative or false-positive region, whichever is deeper
      (as the evaluation clicks of RITM, Sofiiuk et al., ICIP 2022); the false-negative region wins a tie.
    - `error_largest`: the deepest voxel of the error component with the most voxels (18-connected;
      false-negative and false-positive voxels form separate components). Ties go to a false-negative component,
      then to the first in (x, y, z) order.
    - `error_mixed`: `error_random` or `error_deepest` with equal probability, drawn per sample.

    All but `error_random` copy each sample's error region, cropped to its bounding box, to the CPU. Ties of
    depth are resolved as in `deepest_point`.

    A perfect prediction (including both masks empty) gets label -1. With an empty prediction every click is 1;
    with an empty target, or a prediction that fills the volume, every click is 0.

    Args:
        pred: (B, 1, X, Y, Z) or (B, X, Y, Z), boolean or integer. Logits are rejected: pass `logits > 0`.
        target: the same shape; floats are thresholded at 0.5.
        strategy: one of `CORRECTION_STRATEGIES`.
        keys: one key per sample, e.g. (seed, epoch, sample, round).
        spacing_mm: voxel size along x, y, z, (3,) or (B, 3); None for 1 mm. Only depths use it.

    Raises:
        InputError: unknown strategy.
        ValueError: floating-point `pred`, or mismatched shapes.
    """
    require_strategy(strategy, CORRECTION_STRATEGIES)
    if pred.is_floating_point():
        raise ValueError(f"pred must be a mask, got {pred.dtype}: pass logits > 0 or probabilities > 0.5")
    truth, predicted = as_masks(target), as_masks(pred)
    if truth.shape != predicted.shape:
        raise ValueError(f"pred has shape {tuple(pred.shape)} and target {tuple(target.shape)}; they must be equal")
    if strategy == "error_mixed":
        deepest = torch.tensor([uniforms((*key, "mixed"), 1)[0] < 0.5 for key in keys], device=truth.device)
        # Samples that get the random click are emptied, so that no distance transform is computed for them.
        wanted = deepest[:, None, None, None]
        chosen = next_click(
            predicted & wanted, truth & wanted, strategy="error_deepest", keys=keys, spacing_mm=spacing_mm
        )
        drawn = next_click(pred, target, strategy="error_random", keys=keys)
        return Clicks(
            torch.where(deepest[:, None], chosen.coords_vox, drawn.coords_vox),
            torch.where(deepest, chosen.labels, drawn.labels),
        )
    error = truth ^ predicted
    if strategy == "error_random":
        voxel, found = random_voxel(error, keys)
        sample = torch.arange(len(truth), device=truth.device)
        missed = truth[sample, voxel[:, 0], voxel[:, 1], voxel[:, 2]]
        return clicks_at(voxel, torch.where(found, missed.long(), -1))

    worst = _deepest_error if strategy == "error_deepest" else _largest_error
    spacings_mm = spacing_per_sample(spacing_mm, len(truth))
    voxels, labels = np.zeros((len(truth), 3), np.int64), np.full(len(truth), -1)
    for i in range(len(truth)):
        box = bounding_box_of(error[i])
        if box is None:
            continue
        # Both masks go to the CPU in one small array.
        kind = torch.where(truth[i][box], _MISSED, _FALSE).to(torch.uint8) * error[i][box]
        in_box, labels[i] = worst(kind.cpu().numpy(), spacings_mm[i])
        voxels[i] = in_box + [side.start for side in box]
    return clicks_at(torch.from_numpy(voxels).to(truth.device), torch.from_numpy(labels).to(truth.device))


def _deepest_error(kind: np.ndarray, spacing_mm: np.ndarray) -> tuple[np.ndarray, int]:
    missed = deepest_point(kind == _MISSED, spacing_mm)
    false = deepest_point(kind == _FALSE, spacing_mm)
    if missed is not None and (false is None or missed[1] >= false[1]):
        return missed[0], 1
    assert false is not None, "the error region is not empty"
    return false[0], 0


def _largest_error(kind: np.ndarray, spacing_mm: np.ndarray) -> tuple[np.ndarray, int]:
    # Components are numbered by value, so missed ones come first; argmax returns the first maximum.
    parts, n = lesions_from_mask(kind)
    largest = parts == 1 + int(np.argmax(np.bincount(parts.ravel(), minlength=n + 1)[1:]))
    deepest = deepest_point(largest, spacing_mm)
    assert deepest is not None, "the error region is not empty"
    return deepest[0], int(kind[tuple(deepest[0])] == _MISSED)
