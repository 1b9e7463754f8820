"""Augmentation of lesion crops: flips, small rotations and zooms, crop jitter, contrast and noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sammed3d_ft.images.crops import rotation_matrix


@dataclass(frozen=True)
class AugmentationRanges:
    """Ranges of the augmentation; all zero switches it off.

    Args:
        flip: probability of mirroring, per axis.
        rotate_deg: maximum rotation about each axis.
        zoom: maximum change of scale, as a fraction: 0.15 draws from 1/1.15 to 1.15.
        gamma: maximum change of the contrast exponent, as a fraction: SUV ** g with g from 1/(1+gamma) to 1+gamma.
        noise: maximum SD of Gaussian noise, in SDs of the crop.
        jitter_vox: maximum shift of the crop relative to the click, in crop voxels per axis.
    """

    flip: float = 0.5
    rotate_deg: float = 15.0
    zoom: float = 0.15
    gamma: float = 0.25
    noise: float = 0.1
    jitter_vox: int = 4


@dataclass(frozen=True)
class Augmentation:
    """The parameters of one augmentation."""

    flips: tuple[bool, bool, bool]
    rotation: np.ndarray | None  # (3, 3), None without rotation
    zoom: float
    gamma: float
    noise: float
    noise_seed: int
    jitter_vox: tuple[int, int, int]

    def contrast(self, image: Tensor) -> Tensor:
        """Apply gamma to the positive intensities of (C, S, S, S), preserving each channel's maximum."""
        if self.gamma == 1.0:
            return image
        peak = image.amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-6)
        return torch.where(image > 0, (image.clamp(min=0) / peak) ** self.gamma * peak, image)

    def add_noise(self, image: Tensor) -> Tensor:
        """Add Gaussian noise to a z-scored (C, S, S, S)."""
        if self.noise == 0.0:
            return image
        generator = torch.Generator().manual_seed(self.noise_seed)
        return image + self.noise * torch.randn(image.shape, generator=generator).to(image.device)


NO_AUGMENTATION = Augmentation((False, False, False), None, 1.0, 1.0, 0.0, 0, (0, 0, 0))


def draw_augmentation(ranges: AugmentationRanges, generator: np.random.Generator) -> Augmentation:
    """Draw one augmentation; it depends only on the generator's state."""
    flips = generator.random(3) < ranges.flip
    angles = np.deg2rad(generator.uniform(-ranges.rotate_deg, ranges.rotate_deg, 3))
    zoom = (1 + ranges.zoom) ** generator.uniform(-1, 1)
    gamma = (1 + ranges.gamma) ** generator.uniform(-1, 1)
    noise = generator.uniform(0, ranges.noise)
    seed = int(generator.integers(2**31))
    jitter = generator.integers(-ranges.jitter_vox, ranges.jitter_vox + 1, 3)
    return Augmentation(
        (bool(flips[0]), bool(flips[1]), bool(flips[2])),
        rotation_matrix(angles) if ranges.rotate_deg else None,
        float(zoom),
        float(gamma),
        float(noise),
        seed,
        (int(jitter[0]), int(jitter[1]), int(jitter[2])),
    )
