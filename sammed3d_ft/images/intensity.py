"""Intensity preprocessing: SUV and HU to the encoder's input, shared by training, cache and prediction."""

from __future__ import annotations

import torch
from torch import Tensor

# Clipping range by modality: PT in SUV, CT in HU (the range of the published weights).
CLIP_RANGES: dict[str, tuple[float, float]] = {"PT": (0.0, 50.0), "CT": (-1000.0, 1000.0)}
# Below this standard deviation a crop is flat (air, padding) and set to zero, to avoid amplifying rounding errors.
FLAT_SD = 1e-6


def clip(volume: Tensor, limits: tuple[float, float] | None) -> Tensor:
    """Clip SUV or HU to the limits; None leaves the values as they are."""
    return volume if limits is None else volume.clamp(*limits)


def z_score(crop: Tensor) -> Tensor:
    """Normalise each channel by the mean and SD of its voxels > 0, as in SAM-Med3D's training.

    Args:
        crop: (C, S, S, S), clipped, 0 outside the image.

    Returns:
        The same shape, float32; all zeros for a channel with fewer than two positive voxels or an SD below 1e-6.
    """
    return torch.stack([_z_score_channel(channel) for channel in crop.float()])


def _z_score_channel(channel: Tensor) -> Tensor:
    positive = channel[channel > 0]
    if positive.numel() < 2:
        return torch.zeros_like(channel)
    # float64, because a float32 sum over two million voxels loses digits.
    deviation, mean = torch.std_mean(positive.double())
    if deviation < FLAT_SD:
        return torch.zeros_like(channel)
    return (channel - mean.float()) / deviation.float()
