"""Trilinear upsampling of logits by three small matrix products, one per axis."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from sammed3d_ft.images.crops import clamped_weights


@lru_cache(maxsize=32)
@torch.inference_mode(False)  # so that a matrix cached during inference can be used in training
def _interpolation_matrix(source: int, target: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(target, source) weights of linear interpolation, `align_corners=False`, edge values repeated."""
    position = (torch.arange(target, dtype=torch.float64) + 0.5) * source / target - 0.5
    return clamped_weights(position, source).to(dtype=dtype, device=device)


def upsample(volume: Tensor, size: int) -> Tensor:
    """Equals ``F.interpolate(volume, size, mode="trilinear", align_corners=False)`` for cubes (B, C, n, n, n).

    Linear interpolation is separable, so the result and its gradient are three matrix products each; torch's
    backward kernel scatters voxel by voxel and is several times slower. Computed in at least float32.
    """
    n = volume.shape[-1]
    dtype = torch.promote_types(volume.dtype, torch.float32)
    with torch.autocast(volume.device.type, enabled=False):
        matrix = _interpolation_matrix(n, size, dtype, volume.device)
        volume = volume.to(dtype)
        volume = volume @ matrix.T  # z
        volume = matrix @ volume  # y
        # x: the two trailing axes are flattened into columns
        return (matrix @ volume.flatten(-2)).unflatten(-1, (size, size))
