"""Targets that the image alone does not decide: they teach a model to listen to clicks and to a previous mask."""

from __future__ import annotations

import math

import cc3d
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor
from torch.nn import functional as F

# Below this radius an object has too few voxels for another outline.
_LEAST_RADIUS_VOX = 1.5
# What the decoder is given of a mask that it did not make itself: logits of the size of its own, which it was trained
# to read (`mini` on real scans: medians 2 to 8 inside, -8 to -24 outside).
START_INSIDE, START_OUTSIDE = 4.0, -10.0


def draw_outline(target: np.ndarray, click_vox: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Another outline about the click: the target cut by a plane, made wider or tighter, or warped.

    Args:
        target: (X, Y, Z) bool, the click's voxel included.
        click_vox: (3,) whole numbers.

    Returns:
        (X, Y, Z) bool, one component (26-connected) that holds the click; the target itself where it is too small,
        or where the drawn outline would not hold the click.
    """
    radius = (float(target.sum()) * 3 / (4 * math.pi)) ** (1 / 3)
    if radius < _LEAST_RADIUS_VOX:
        return target
    margin = math.ceil(radius / 2) + 1
    where = [np.flatnonzero(target.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    box = tuple(
        slice(max(int(w[0]) - margin, 0), min(int(w[-1]) + margin + 1, n))
        for w, n in zip(where, target.shape, strict=True)
    )
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
    """The 26-connected component of a (X, Y, Z) bool mask that holds a voxel of it."""
    parts = cc3d.connected_components(mask, connectivity=26)
    return parts == parts[tuple(voxel)]


def draw_start(target: np.ndarray, click_vox: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A mask as somebody else may have drawn it: right, empty, or another outline with or without a stray ball.

    Args:
        target: (X, Y, Z) bool, the click's voxel included.
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
    """Low-resolution logits of a mask in a crop, for the decoder's mask input.

    They cross zero where a low-resolution voxel is covered half as much as the fullest one, which is full but for
    lesions smaller than such a voxel; those would be invisible otherwise.

    Args:
        mask: (1, S, S, S) float32, the share of each crop voxel that is covered.
        size: L, voxels per axis of the logits; divides S.

    Returns:
        (1, L, L, L) float32.
    """
    covered = F.avg_pool3d(mask[None], mask.shape[-1] // size)[0]
    most = float(covered.max())  # 0 where the crop holds nothing of the lesion
    sign = 2 * covered / (most or 1.0) - 1
    return torch.where(sign > 0, START_INSIDE * sign, -START_OUTSIDE * sign)


def smooth_noise(shape: tuple[int, ...], length_vox: float, rng: np.random.Generator) -> np.ndarray:
    """(X, Y, Z) float32 of zero mean and unit SD that varies over about this many voxels."""
    coarse = [max(round(n / length_vox), 2) for n in shape]
    grid = torch.from_numpy(rng.standard_normal((1, 1, *coarse), dtype=np.float32))
    noise = F.interpolate(grid, size=shape, mode="trilinear", align_corners=True)[0, 0].numpy()
    return (noise - noise.mean()) / max(float(noise.std()), 1e-6)


def _half_space(target: np.ndarray, click_vox: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The click's side of a plane that passes between it and another voxel of the target."""
    voxels = np.argwhere(target)
    other = voxels[rng.integers(len(voxels))]
    normal = rng.standard_normal(3)
    normal *= np.sign(normal @ (other - click_vox)) or 1.0
    offset = normal @ click_vox + rng.uniform(0.2, 0.9) * (normal @ (other - click_vox))
    axes = np.ogrid[tuple(slice(0, n) for n in target.shape)]
    return sum(n * axis for n, axis in zip(normal, axes, strict=True)) <= offset
