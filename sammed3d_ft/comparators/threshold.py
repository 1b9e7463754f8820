"""Classical PET segmentation by threshold: of the whole image, or grown from clicks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from prompts.lesions import lesions_from_mask
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.crops import Region
from sammed3d_ft.images.grids import Volume

REACH_MM = 20.0
"""Radius around a foreground click within which a rule searches for uptake."""

_CONNECTIVITY = 18


class ThresholdRule(Protocol):
    """A rule that finds the region of one foreground click."""

    def region_of(self, pet: np.ndarray, click_vox: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class FractionOfMaximum:
    """A fraction of the lesion's maximum; 0.41 as in the EANM guidelines for FDG PET (Boellaard et al. 2015).

    The maximum is searched within `REACH_MM` of the click.
    """

    fraction: float = 0.41

    def __post_init__(self) -> None:
        if not 0 < self.fraction < 1:
            raise InputError(f"fraction_of_max {self.fraction:g}: expected a fraction between 0 and 1, such as 0.41")

    def region_of(self, pet: np.ndarray, click_vox: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
        """The 18-connected component of voxels at or above the fraction that contains the maximum.

        Args:
            pet: (X, Y, Z) in any unit.
            click_vox: (3,) voxel coordinates in ``pet``.
            spacing_mm: (3,) voxel size in mm.

        Returns:
            (X, Y, Z) bool; empty if there is no positive value within `REACH_MM`.
        """
        near = _distance_mm2(pet.shape, click_vox, spacing_mm) <= REACH_MM**2
        peak_vox = np.unravel_index(np.argmax(np.where(near, pet, -np.inf)), pet.shape)
        if pet[peak_vox] <= 0:
            return np.zeros(pet.shape, bool)
        return _component(pet >= self.fraction * pet[peak_vox], peak_vox)


@dataclass(frozen=True)
class SuvAtLeast:
    """A fixed SUV threshold; 3 and 4 are common."""

    suv: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.suv) and self.suv > 0):
            raise InputError(f"suv_at_least {self.suv:g}: expected a positive SUV, such as 4")

    def region_of(self, pet: np.ndarray, click_vox: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
        """The 18-connected component at or above the SUV that contains the click, or else the nearest one.

        A click in a cold centre thus selects the rim around it. The mask is empty if nothing is within `REACH_MM`.
        Arguments and result as in `FractionOfMaximum.region_of`, with ``pet`` in SUV.
        """
        above = self.mask(pet)
        squares_mm2 = np.where(above, _distance_mm2(pet.shape, click_vox, spacing_mm), np.inf)
        nearest = np.unravel_index(np.argmin(squares_mm2), pet.shape)
        if squares_mm2[nearest] > REACH_MM**2:
            return np.zeros(pet.shape, bool)
        return _component(above, nearest)

    def mask(self, pet: np.ndarray) -> np.ndarray:
        """(X, Y, Z) bool, every voxel at or above the SUV: the rule without clicks. Includes bladder and brain."""
        return pet >= self.suv


@dataclass(frozen=True, eq=False)
class ThresholdedLesion:
    """A lesion after its last click; see `ThresholdByClicks`."""

    region: Region
    mask: np.ndarray
    """``region.shape`` bool."""
    predicted_iou: float = float("nan")


class ThresholdByClicks:
    """A threshold rule used as a promptable model: one scan, whose lesions are segmented from clicks.

    - Each foreground click adds the region that the rule finds there.
    - A background click inside that region removes every voxel that is nearer (in mm) to it than to all foreground
      clicks of the lesion. Outside the region, a background click has no effect.

    The result does not depend on the order of the clicks, and never includes voxels below the threshold.

    Args:
        rule: finds the region of one foreground click.
    """

    modalities = ("PT",)

    def __init__(self, rule: ThresholdRule) -> None:
        self.rule = rule
        self._pet: Volume | None = None
        self._clicks: dict[int, list[tuple[np.ndarray, int]]] = {}
        self._found: dict[int, np.ndarray] = {}

    def set_image(self, images: Mapping[str, Volume]) -> None:
        """Set the PET, in SUV, and forget all lesions."""
        self._pet = images["PT"]
        self._clicks, self._found = {}, {}

    def add_click(self, position_vox: Any, label: int = 1, lesion: int = 1) -> ThresholdedLesion:
        """Add a click, (3,) in canonical voxel coordinates, to a lesion and return the lesion.

        Raises:
            InputError: no image, a click outside the image, or a background click as a lesion's first.
        """
        if self._pet is None:
            raise InputError("no image yet: call set_image before clicking")
        pet, spacing_mm = self._pet.array, self._pet.spacing_mm
        click_vox = np.asarray(position_vox, np.float64)
        if click_vox.shape != (3,) or (np.rint(click_vox) < 0).any() or (np.rint(click_vox) >= pet.shape).any():
            raise InputError(f"lesion {lesion}: the click {click_vox.tolist()} is outside the image {pet.shape}")
        clicks = self._clicks.setdefault(lesion, [])
        if not clicks and label != 1:
            raise InputError(f"lesion {lesion}: the first click is background; start with a foreground click")
        clicks.append((click_vox, label))
        if label == 1:
            found = self.rule.region_of(pet, click_vox, spacing_mm)
            self._found[lesion] = self._found[lesion] | found if lesion in self._found else found
        mask = self._found[lesion]
        background = [place for place, given in clicks if given == 0 and mask[_voxel(place)]]
        if background:
            foreground = [place for place, given in clicks if given == 1]
            mask = _nearer_to(mask, foreground, background, spacing_mm)
        x, y, z = pet.shape
        return ThresholdedLesion(Region((0, 0, 0), (x, y, z)), mask)

    def remove(self, lesion: int) -> None:
        """Forget a lesion with all its clicks."""
        del self._clicks[lesion], self._found[lesion]


def _nearer_to(
    mask: np.ndarray, wanted_vox: list[np.ndarray], unwanted_vox: list[np.ndarray], spacing_mm: np.ndarray
) -> np.ndarray:
    """The part of an (X, Y, Z) mask that is at least as near to a wanted point as to every unwanted one."""
    voxels = np.argwhere(mask)
    wanted, unwanted = (
        np.min([(((voxels - place) * spacing_mm) ** 2).sum(axis=1) for place in places], axis=0)
        for places in (wanted_vox, unwanted_vox)
    )
    kept = np.zeros(mask.shape, bool)
    kept[tuple(voxels[wanted <= unwanted].T)] = True
    return kept


def _voxel(position_vox: np.ndarray) -> tuple[int, int, int]:
    x, y, z = np.rint(position_vox).astype(int).tolist()
    return x, y, z


def _distance_mm2(shape: tuple[int, ...], click_vox: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    squares = [
        ((np.arange(size) - at) * step) ** 2 for size, at, step in zip(shape, click_vox, spacing_mm, strict=True)
    ]
    return squares[0][:, None, None] + squares[1][:, None] + squares[2]


def _component(above: np.ndarray, holds: tuple[Any, ...]) -> np.ndarray:
    components, _ = lesions_from_mask(above, connectivity=_CONNECTIVITY)
    return components == components[holds]
