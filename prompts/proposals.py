"""Clicks where nobody has clicked: proposals by PET uptake or by a coarse grid. They find uptake, not disease.

Nothing here knows anatomy. Kidneys, bladder, glands, brain and heart take tracer up as lesions do; what can be left out
honestly are regions that are too large. Someone has to look at what is proposed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cc3d
import numpy as np
from scipy import ndimage

from prompts.clicks import Click
from prompts.errors import InputError


@dataclass(frozen=True)
class Proposal:
    """A place that may be a lesion."""

    coords_vox: tuple[int, int, int]
    score: float
    """SUV there: proposals are ordered by it, the highest first."""
    region_ml: float
    """Volume of the connected region above the threshold that holds it."""


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

    Of two maxima within the separation the higher one stays (of equal ones the first in (x, y, z) order). Regions
    above the threshold (18-connected) that are smaller or larger than the limits are left out: noise; liver, bladder,
    brain at common thresholds.

    Args:
        pet: (X, Y, Z) in SUV.
        spacing_mm: (3,) voxel size.
        suv: threshold; 3 and 4 are in use for PSMA and FDG.
        min_ml, max_ml: limits of a region's volume.
        separation_mm: least distance of two proposals.

    Raises:
        InputError: an array that is not three-dimensional, or settings below 0.
    """
    if pet.ndim != 3:
        raise InputError(f"a PET has three axes, got an array of shape {pet.shape}")
    if min(suv, separation_mm) <= 0 or not 0 <= min_ml < max_ml:
        raise InputError(
            f"proposals with SUV {suv:g}, {min_ml:g} to {max_ml:g} ml, {separation_mm:g} mm apart: expected positive "
            "numbers and a rising range"
        )
    spacing = np.asarray(spacing_mm, np.float64)
    above = pet >= suv
    regions = cc3d.connected_components(np.ascontiguousarray(above), connectivity=18)
    region_ml = np.bincount(regions.ravel()) * float(spacing.prod()) / 1000
    fits = (region_ml >= min_ml) & (region_ml <= max_ml)
    fits[0] = False
    # A voxel that equals the highest in the box around it is a candidate; the distance decides among these.
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
    pet: np.ndarray, spacing_mm: Sequence[float] | np.ndarray, *, every_mm: float = 40.0, least_suv: float = 0.3
) -> list[Proposal]:
    """The highest voxel of each cube of a coarse grid, where it reaches a low SUV (the body): for exhaustive search.

    Args:
        pet: (X, Y, Z) in SUV.
        spacing_mm: (3,) voxel size.
        every_mm: edge of a cube.
        least_suv: cubes below it lie in air.

    Raises:
        InputError: an array that is not three-dimensional, or an edge below a voxel.
    """
    if pet.ndim != 3:
        raise InputError(f"a PET has three axes, got an array of shape {pet.shape}")
    steps = np.round(every_mm / np.asarray(spacing_mm, np.float64)).astype(int)
    if steps.min() < 1:
        raise InputError(f"a grid every {every_mm:g} mm is finer than the voxels of {np.asarray(spacing_mm)} mm")
    voxel_ml = float(np.prod(np.asarray(spacing_mm, np.float64))) / 1000
    found = []
    for corner in np.ndindex(*(-(-n // int(s)) for n, s in zip(pet.shape, steps, strict=True))):
        start = np.array(corner) * steps
        cube = pet[tuple(slice(a, a + s) for a, s in zip(start, steps, strict=True))]
        x, y, z = (int(a + b) for a, b in zip(start, np.unravel_index(int(cube.argmax()), cube.shape), strict=True))
        if pet[x, y, z] >= least_suv:
            found.append(Proposal((x, y, z), float(pet[x, y, z]), float((cube >= least_suv).sum() * voxel_ml)))
    return sorted(found, key=lambda proposal: -proposal.score)


def clicks_of(proposals: Sequence[Proposal], affine: np.ndarray) -> list[Click]:
    """A foreground click for each proposal, numbered as lesions from 1 in their order.

    Args:
        affine: (4, 4), voxels of the array that was searched to world mm, RAS.
    """
    clicks = []
    for number, proposal in enumerate(proposals, start=1):
        x, y, z = (float(c) for c in affine[:3, :3] @ np.array(proposal.coords_vox) + affine[:3, 3])
        clicks.append(Click((x, y, z), 1, number))
    return clicks
