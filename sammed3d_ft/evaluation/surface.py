"""Surface metrics between two masks: normalised surface Dice (NSD) and 95th percentile Hausdorff distance."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.spatial import cKDTree

from sammed3d_ft.evaluation.surface_elements import Surfaces, element_areas_mm2, stacks

_REACH = 4  # cells, about a lesion's surface; farther ones are few, and searched in another way
_CELLS_AT_ONCE = 2**25  # bounds the memory for many lesions; the box of a single pair may be larger


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance of each surface element of one mask to the nearest element of the other, increasing."""

    truth_mm: np.ndarray
    truth_area_mm2: np.ndarray
    pred_mm: np.ndarray
    pred_area_mm2: np.ndarray


def surface_distances(truth: Surfaces, pred: Surfaces, spacing_mm: np.ndarray) -> list[SurfaceDistances]:
    """Distances between the surfaces of pairs of masks: each ground-truth mask and the predicted one of its index.

    Areas are those of `element_areas_mm2`; distances are between element centres. If one mask of a pair is empty, the
    distances of the other are infinite.

    Args:
        truth, pred: the surfaces of as many masks each, on one grid.
        spacing_mm: (3,) voxel size in mm.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    sides = [
        _sorted(_nearest_mm(mine, other, spacing), mine, element_areas_mm2(spacing))
        for mine, other in ((truth, pred), (pred, truth))
    ]
    return [SurfaceDistances(*of_truth, *of_pred) for of_truth, of_pred in zip(*sides, strict=True)]


def nsd(distances: SurfaceDistances, tolerance_mm: float) -> float:
    """Share of the area of both surfaces that lies within ``tolerance_mm`` of the other surface.

    NaN (not defined) if the ground truth is empty; 0 if only the prediction is.
    """
    if len(distances.truth_mm) == 0:
        return float("nan")
    near = (
        distances.truth_area_mm2[distances.truth_mm <= tolerance_mm].sum()
        + distances.pred_area_mm2[distances.pred_mm <= tolerance_mm].sum()
    )
    return float(near / (distances.truth_area_mm2.sum() + distances.pred_area_mm2.sum()))


def hd95_mm(distances: SurfaceDistances) -> float:
    """95th percentile (by area) of the distance to the other surface, the larger of both directions.

    NaN (not defined) if either mask is empty.
    """
    if len(distances.truth_mm) == 0 or len(distances.pred_mm) == 0:
        return float("nan")
    return max(
        _percentile(distances.truth_mm, distances.truth_area_mm2),
        _percentile(distances.pred_mm, distances.pred_area_mm2),
    )


def _percentile(distances_mm: np.ndarray, areas_mm2: np.ndarray) -> float:
    share = np.cumsum(areas_mm2) / areas_mm2.sum()
    return float(distances_mm[min(int(np.searchsorted(share, 0.95)), len(share) - 1)])


def _nearest_mm(mine: Surfaces, other: Surfaces, spacing: np.ndarray) -> np.ndarray:
    """(m,) distance in mm of each cell to the nearest cell of the other mask of its pair."""
    distances = np.full(len(mine.cells), np.inf)
    both = np.flatnonzero((mine.counts > 0) & (other.counts > 0))
    if len(both) < len(mine.counts):  # empty masks have no box
        if len(both):
            paired = np.repeat((mine.counts > 0) & (other.counts > 0), mine.counts)
            distances[paired] = _nearest_mm(mine.pick(both), other.pick(both), spacing)
        return distances
    shells = _shells(tuple(spacing.tolist()))
    margin = np.abs(np.concatenate([offsets for _, offsets in shells])).max(axis=0)
    ends, other_ends = np.cumsum(mine.counts), np.cumsum(other.counts)
    boxes = [(mine.cells, ends - mine.counts), (other.cells, other_ends - other.counts)]
    first = np.minimum(*(np.minimum.reduceat(cells, starts) for cells, starts in boxes)) - margin
    last = np.maximum(*(np.maximum.reduceat(cells, starts) for cells, starts in boxes)) + margin
    for pairs, tops, shape in stacks(last - first + 1, _CELLS_AT_ONCE):
        of = slice(ends[pairs.start] - mine.counts[pairs.start], ends[pairs.stop - 1])
        to = slice(other_ends[pairs.start] - other.counts[pairs.start], other_ends[pairs.stop - 1])
        at, there = (
            np.ravel_multi_index(tuple((cells + np.repeat(tops - first[pairs], counts[pairs], axis=0)).T), shape)
            for cells, counts in ((mine.cells[of], mine.counts), (other.cells[to], other.counts))
        )
        occupied = np.zeros(np.prod(shape), bool)
        occupied[there] = True
        steps = np.array([shape[1] * shape[2], shape[2], 1])
        distances[of] = _nearby_mm(at, occupied, [(length, offsets @ steps) for length, offsets in shells])
    # Few are left for the slower search, which knows no bounds.
    left = np.flatnonzero(np.isinf(distances))
    pair = np.searchsorted(ends, left, side="right")
    for members in np.split(left, np.flatnonzero(np.diff(pair)) + 1):
        if len(members):
            number = np.searchsorted(ends, members[0], side="right")
            others = other.cells[other_ends[number] - other.counts[number] : other_ends[number]]
            # Midpoint splits are faster to build than balanced ones, and lattice points are evenly enough spaced.
            tree = cKDTree(others * spacing, balanced_tree=False, compact_nodes=False)
            _, nearest = tree.query(mine.cells[members] * spacing)
            distances[members] = _length_mm(mine.cells[members] - others[nearest], spacing)
    return distances


def _nearby_mm(at: np.ndarray, occupied: np.ndarray, shells: list[tuple[float, np.ndarray]]) -> np.ndarray:
    """(n,) distance in mm of each flat index to the nearest occupied one, infinite beyond the last shell.

    Args:
        at: (n,) indices into ``occupied``, which no shell leaves.
        shells: distance in mm and (p,) steps between flat indices, increasing.
    """
    distances = np.full(len(at), np.inf)
    left = np.arange(len(at))
    for distance, steps in shells:
        hit = occupied[at + steps[0]]
        for step in steps[1:]:
            hit |= occupied[at + step]
        distances[left[hit]] = distance
        missed = np.flatnonzero(~hit)
        left, at = left[missed], at[missed]
    return distances


@cache
def _shells(spacing_mm: tuple[float, ...]) -> list[tuple[float, np.ndarray]]:
    """Distance in mm and (p, 3) cell offsets of equal length, increasing, up to four times the smallest spacing."""
    spacing = np.array(spacing_mm)
    reach = np.floor(_REACH * spacing.min() / spacing + 1e-9).astype(int)
    offsets = np.stack(np.meshgrid(*[np.arange(-n, n + 1) for n in reach], indexing="ij"), axis=-1).reshape(-1, 3)
    lengths = _length_mm(offsets, spacing)
    near = lengths <= _REACH * spacing.min()
    offsets, lengths = offsets[near], lengths[near]
    return [(float(length), offsets[lengths == length]) for length in np.unique(lengths)]


def _length_mm(offsets: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    # Subtract before scaling: differences of scaled coordinates could round 2 mm to just above the tolerance.
    return np.sqrt(((offsets * spacing) ** 2).sum(axis=1))


def _sorted(distances_mm: np.ndarray, surfaces: Surfaces, areas_mm2: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Distances and areas of each mask's elements, increasing: so sums do not depend on the order of the axes."""
    lengths, length = np.unique(distances_mm, return_inverse=True)
    areas, area = np.unique(areas_mm2, return_inverse=True)
    mask = np.repeat(np.arange(len(surfaces.counts)), surfaces.counts)
    # One integer sorts several times faster than three keys.
    keys = np.sort((mask * len(lengths) + length) * len(areas) + area[surfaces.codes])
    rest, area = np.divmod(keys, len(areas))
    ends = np.cumsum(surfaces.counts)[:-1]
    return list(zip(np.split(lengths[rest % len(lengths)], ends), np.split(areas[area], ends), strict=True))
