"""Imaging by a PET scanner: point spread, then Poisson noise at clinical counts, then the reconstruction filter.

The noise level is specified as measured in clinics: the coefficient of variation in the liver of the final image. The
counts per ml that produce it follow exactly from the filter's kernel.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.ndimage import convolve1d
from scipy.special import ive

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
_TRUNCATE = 3.5  # in sigma


def gaussian_kernel(fwhm_mm: float, spacing_mm: float) -> np.ndarray:
    """Weights (float64, sum 1) of a Gaussian with this FWHM: sampled, or discrete if voxels are coarse.

    A sampled Gaussian narrower than a voxel would hardly blur at all. The discrete one, exp(-t) I_n(t), has the
    variance t exactly (Lindeberg, "Scale-space for discrete signals", IEEE PAMI 1990;12:234).
    """
    sigma_vox = fwhm_mm / FWHM_PER_SIGMA / spacing_mm
    place = np.arange(-int(np.ceil(_TRUNCATE * sigma_vox)) - 1, int(np.ceil(_TRUNCATE * sigma_vox)) + 2)
    weights = np.exp(-((place / sigma_vox) ** 2) / 2) if sigma_vox > 0.8 else ive(place, sigma_vox**2)
    return weights / weights.sum()


def margin_vox(fwhm_mm: float, spacing_mm: Sequence[float]) -> tuple[int, int, int]:
    """Reach of a blur in voxels per axis: the margin to simulate around a field for correct edges."""
    x, y, z = (len(gaussian_kernel(fwhm_mm, s)) // 2 for s in spacing_mm)
    return x, y, z


def blur(image: np.ndarray, spacing_mm: Sequence[float], fwhm_mm: float) -> np.ndarray:
    """Gaussian of this FWHM (mm), axis by axis; edges repeat."""
    for axis, spacing in enumerate(spacing_mm):
        image = convolve1d(image, gaussian_kernel(fwhm_mm, spacing), axis=axis, output=np.float32, mode="nearest")
    return image


def counts_per_suv(variation: float, suv: float, spacing_mm: Sequence[float], filter_mm: float) -> float:
    """Counts per voxel and SUV for which tissue of this SUV has this coefficient of variation after filtering.

    Filtering n counts per voxel with weights w leaves a variance of n sum(w^2), so the variation is
    sqrt(sum(w^2) / n).
    """
    kept = float(np.prod([np.sum(gaussian_kernel(filter_mm, s) ** 2) for s in spacing_mm]))
    return kept / (variation**2 * suv)


def add_noise(image: np.ndarray, counts: float, rng: np.random.Generator) -> np.ndarray:
    """Add Poisson noise with `counts` per voxel at SUV 1, preserving the mean. In slabs, because numpy draws int64."""
    noisy = np.empty_like(image)
    for k in range(0, image.shape[0], 16):
        noisy[k : k + 16] = rng.poisson(np.maximum(image[k : k + 16], 0) * np.float32(counts)) * np.float32(1 / counts)
    return noisy


def smooth_field(
    shape: Sequence[int], spacing_mm: Sequence[float], length_mm: float, rng: np.random.Generator
) -> np.ndarray:
    """A random field for patchy uptake, with unit variance at its nodes, varying over `length_mm`; float32, `shape`."""
    nodes = [int(np.ceil(n * s / length_mm)) + 2 for n, s in zip(shape, spacing_mm, strict=True)]
    values = rng.standard_normal(nodes, dtype=np.float32)
    for axis, (n, s, m) in enumerate(zip(shape, spacing_mm, nodes, strict=True)):
        position = np.arange(n) * s / length_mm
        low = position.astype(int)
        t = position - low
        t = t * t * (3 - 2 * t)
        rise = np.zeros((n, m), np.float32)
        rise[np.arange(n), low] = 1 - t
        rise[np.arange(n), low + 1] = t
        values = np.moveaxis(np.tensordot(rise, values, axes=(1, axis)), 0, axis)
    return np.ascontiguousarray(values)
