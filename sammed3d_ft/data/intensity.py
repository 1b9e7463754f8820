"""Intensities: from SUV and HU to what the encoder expects; one path for training, cache and prediction."""

from __future__ import annotations

import torch
from torch import Tensor

# Clipping by modality: PT in SUV, CT in HU (the published weights' own range).
CLIP_RANGES: dict[str, tuple[float, float]] = {"PT": (0.0, 50.0), "CT": (-1000.0, 1000.0)}
# Below this standard deviation a crop is flat (air, padding): all zeros instead of amplified rounding.
FLAT_SD = 1e-6


def clip(volume: Tensor, limits: tuple[float, float]) -> Tensor:
    """Clips SUV or HU to the limits."""
    return volume.clamp(*limits)


def z_score(crop: Tensor) -> Tensor:
    """Zero mean and unit SD per channel, both taken over the crop's voxels > 0 (as SAM-Med3D was trained).

    Args:
        crop: (C, S, S, S), clipped, 0 outside the image.

    Returns:
        The same shape, float32; all zeros for a channel without positive voxels or with SD below 1e-6.
    """
    return torch.stack([_z_score_channel(channel) for channel in crop.float()])


def _z_score_channel(channel: Tensor) -> Tensor:
    positive = channel[channel > 0]
    if positive.numel() < 2:
        return torch.zeros_like(channel)
    # float64: a sum over two million voxels in float32 loses digits.
    deviation, mean = torch.std_mean(positive.double())
    if deviation < FLAT_SD:
        return torch.zeros_like(channel)
    return (channel - mean.float()) / deviation.float()
