"""Targets not determined by the image alone, which train a model to use clicks and a previous mask."""

from __future__ import annotations

import math

import cc3d
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

from prompts.boxes import bounding_box

# Objects with a smaller radius have too few voxels for an alternative outline.
_LEAST_RADIUS_VOX = 1.5
# Logits that represent an external mask as decoder input, similar in magnitude to the decoder's own logits (`mini` on
# real scans: medians 2 to 8 inside, -8 to -24 outside).
START_INSIDE, START_OUTSIDE = 4.0, -10.0


def draw_outline(target: np.ndarray, click_vox: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw an alternative outline around the click: the target cut by a plane, dilated or eroded, or warped.

    Args:
        target: (X, Y, Z) bool, true at the click.
        click_vox: (3,) whole numbers.

    Returns:
        (X, Y, Z) bool, one 26-connected component that contains the click; the target itself if it is too small, or
        if the drawn outline would not contain the click.
    """
    radius = (float(target.sum()) * 3 / (4 * math.pi)) ** (1 / 3)
    if radius < _LEAST_RADIUS_VOX:
        return target
    margin = math.ceil(radius / 2) + 1
    tight = bounding_box(target)
    assert tight is not None, "the target is true at the click"
    box = tuple(slice(max(side.start - margin, 0), side.stop + margin) for side in tight)
    part, click = target[box], click_vox - [side.start for side in box]
    kind = rng.integers(3)
    if kind == 0:
        drawn = part & _half_space(part, click, rng)
    elif kind == 1:
        level = rng.uniform(0.12, 0.35) if rng.random() < 0.5 else rng.uniform(0.65, 0.88)
        drawn = gaussian_filter(part.astype(np.float32), 0.4 * radius, mode="constant") > level
    else:
        noise = smooth_noise(part.shape, max(0.8 * radius, 1.5), rng)
        drawn = gaussian_filter(part.astype(np.float32), 0.3 * radius, mode="constant") + 0.25 * noise > 0.5
    if not drawn[tuple(click)]:
        return target
    outline = np.zeros_like(target)
    outline[box] = component_at(drawn, click)
    return outline


def component_at(mask: np.ndarray, voxel: np.ndarray) -> np.ndarray:
    """The 26-connected component of a (X, Y, Z) bool mask that contains the given mask voxel."""
    parts = cc3d.connected_components(mask.astype(np.uint8), connectivity=26)  # cc3d 4.1 fails on thin bool arrays
    return parts == parts[tuple(voxel)]


def draw_start(target: np.ndarray, click_vox: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw an initial mask: the target, an empty mask, or an alternative outline with or without an extra ball.

    Args:
        target: (X, Y, Z) bool, true at the click.
        click_vox: (3,) whole numbers.

    Returns:
        (X, Y, Z) bool.
    """
    kind = rng.random()
    if kind < 0.2:
        return target
    if kind < 0.4:
        return np.zeros_like(target)
    start = draw_outline(target, click_vox, rng)
    if kind < 0.6:
        reach = rng.uniform(0.3, 1.0) * max((float(target.sum()) * 3 / (4 * math.pi)) ** (1 / 3), 1.0)
        middle = click_vox + rng.normal(0, 2 * reach, 3)
        square = sum(
            ((np.arange(n) - m) ** 2).reshape([-1 if a == axis else 1 for a in range(3)])
            for axis, (n, m) in enumerate(zip(target.shape, middle, strict=True))
        )
        start = start | (square < reach**2)
    return start


def mask_logits(mask: Tensor, size: int) -> Tensor:
    """Convert a mask in a crop to low-resolution logits for the decoder's mask input.

    A logit is 0 where a low-resolution voxel is covered half as much as the most covered one. This relative threshold
    preserves lesions smaller than a low-resolution voxel; for larger lesions, it equals half coverage.

    Args:
        mask: (1, S, S, S) float32, the covered fraction of each crop voxel.
        size: L, voxels per axis of the logits; divides S.

    Returns:
        (1, L, L, L) float32.
    """
    covered = F.avg_pool3d(mask[None], mask.shape[-1] // size)[0]
    most = float(covered.max())  # 0 if the crop contains no part of the lesion
    sign = 2 * covered / (most or 1.0) - 1
    return torch.where(sign > 0, START_INSIDE * sign, -START_OUTSIDE * sign)


def smooth_noise(shape: tuple[int, ...], length_vox: float, rng: np.random.Generator) -> np.ndarray:
    """(X, Y, Z) float32 noise with zero mean, unit SD and a correlation length of about `length_vox`."""
    coarse = [max(round(n / length_vox), 2) for n in shape]
    grid = torch.from_numpy(rng.standard_normal((1, 1, *coarse), dtype=np.float32))
    noise = F.interpolate(grid, size=shape, mode="trilinear", align_corners=True)[0, 0].numpy()
    return (noise - noise.mean()) / max(float(noise.std()), 1e-6)


def _half_space(target: np.ndarray, click_vox: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The half-space on the click's side of a plane between the click and another voxel of the target."""
    voxels = np.argwhere(target)
    other = voxels[rng.integers(len(voxels))]
    normal = rng.standard_normal(3)
    normal *= np.sign(normal @ (other - click_vox)) or 1.0
    offset = normal @ click_vox + rng.uniform(0.2, 0.9) * (normal @ (other - click_vox))
    axes = np.ogrid[tuple(slice(0, n) for n in target.shape)]
    return sum(n * axis for n, axis in zip(normal, axes, strict=True)) <= offset
