"""Proposed clicks, from PET maxima or a coarse grid. They find uptake, not disease.

Proposals use no anatomy. Kidneys, bladder, glands, brain and heart take up tracer as lesions do, and only regions that
are too small or too large are excluded. A person must review the proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
from scipy import ndimage

from prompts.clicks import Click
from prompts.errors import InputError

_BODY_SUV = 0.3  # a cube of lower uptake is air


@dataclass(frozen=True)
class Proposal:
    """A candidate lesion position."""

    coords_vox: tuple[int, int, int]
    score: float
    """SUV at that voxel; proposals are sorted by it, highest first."""
    region_ml: float
    """Volume of the connected region above the threshold that contains the voxel."""


def proposals_from_pet(
    pet: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    *,
    suv: float = 4.0,
    min_ml: float = 0.1,
    max_ml: float = 150.0,
    separation_mm: float = 20.0,
) -> list[Proposal]:
    """Local maxima of PET at or above a threshold.

    Of two maxima closer than `separation_mm`, the higher is kept (ties: the first in (x, y, z) order). 18-connected
    regions above the threshold are excluded if smaller than `min_ml` (noise) or larger than `max_ml` (at common
    thresholds: liver, bladder, brain).

    Args:
        pet: (X, Y, Z) in SUV.
        spacing_mm: (3,) voxel size.
        suv: threshold; 3 and 4 are common for PSMA and FDG.
        min_ml, max_ml: smallest and largest volume of a region.
        separation_mm: minimum distance between two proposals.

    Raises:
        InputError: an array that is not three-dimensional, or settings out of range.
    """
    if pet.ndim != 3:
        raise InputError(f"a PET must have three axes, got an array of shape {pet.shape}")
    if not (0 < suv < np.inf and 0 < separation_mm < np.inf and 0 <= min_ml < max_ml):
        raise InputError(
            f"invalid proposal settings: SUV {suv:g}, volume {min_ml:g} to {max_ml:g} ml, separation "
            f"{separation_mm:g} mm; SUV and separation must be positive, and 0 <= smallest volume < largest volume"
        )
    spacing = np.asarray(spacing_mm, np.float64)
    above = pet >= suv
    regions = cc3d.connected_components(np.ascontiguousarray(above), connectivity=18)
    region_ml = np.bincount(regions.ravel()) * float(spacing.prod()) / 1000
    fits = (region_ml >= min_ml) & (region_ml <= max_ml)
    fits[0] = False
    # A voxel equal to the maximum of the box around it is a candidate; the distance test below decides.
    box = np.maximum(2 * np.floor(separation_mm / np.sqrt(3) / spacing).astype(int) + 1, 1)
    peak = (pet == ndimage.maximum_filter(pet, size=tuple(box), mode="nearest")) & fits[regions]
    candidates = np.argwhere(peak)
    order = np.argsort(-pet[tuple(candidates.T)], kind="stable")
    kept: list[np.ndarray] = []
    found = []
    for place in candidates[order]:
        if kept and np.linalg.norm((np.array(kept) - place) * spacing, axis=1).min() < separation_mm:
            continue
        kept.append(place)
        x, y, z = (int(c) for c in place)
        found.append(Proposal((x, y, z), float(pet[x, y, z]), float(region_ml[regions[x, y, z]])))
    return found


def proposals_on_grid(
    pet: np.ndarray, spacing_mm: Sequence[float] | np.ndarray, *, every_mm: float = 40.0
) -> list[Proposal]:
    """The hottest voxel of each cube of a coarse grid over the body, for exhaustive search.

    Args:
        pet: (X, Y, Z) in SUV.
        spacing_mm: (3,) voxel size.
        every_mm: edge length of a cube; cubes of air are skipped.

    Raises:
        InputError: an array that is not three-dimensional, or a cube smaller than a voxel.
    """
    if pet.ndim != 3:
        raise InputError(f"a PET must have three axes, got an array of shape {pet.shape}")
    if not 0 < every_mm < np.inf:
        raise InputError(f"a grid spacing of {every_mm:g} mm: expected a length above 0")
    steps = np.round(every_mm / np.asarray(spacing_mm, np.float64)).astype(int)
    if steps.min() < 1:
        raise InputError(f"a grid spacing of {every_mm:g} mm is finer than the voxels ({np.asarray(spacing_mm)} mm)")
    voxel_ml = float(np.prod(np.asarray(spacing_mm, np.float64))) / 1000
    found = []
    for corner in np.ndindex(*(-(-n // int(s)) for n, s in zip(pet.shape, steps, strict=True))):
        start = np.array(corner) * steps
        cube = pet[tuple(slice(a, a + s) for a, s in zip(start, steps, strict=True))]
        x, y, z = (int(a + b) for a, b in zip(start, np.unravel_index(int(cube.argmax()), cube.shape), strict=True))
        if pet[x, y, z] >= _BODY_SUV:
            found.append(Proposal((x, y, z), float(pet[x, y, z]), float((cube >= _BODY_SUV).sum() * voxel_ml)))
    return sorted(found, key=lambda proposal: -proposal.score)


def clicks_of(proposals: Sequence[Proposal], affine: np.ndarray) -> list[Click]:
    """One foreground click per proposal, with lesion numbers from 1 in the given order.

    Args:
        affine: (4, 4), voxel index of the searched array to RAS mm.
    """
    clicks = []
    for number, proposal in enumerate(proposals, start=1):
        x, y, z = (float(c) for c in affine[:3, :3] @ np.array(proposal.coords_vox) + affine[:3, 3])
        clicks.append(Click((x, y, z), 1, number))
    return clicks
