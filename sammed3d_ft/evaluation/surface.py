"""Surface metrics between two masks: normalised surface Dice (NSD) and 95th percentile Hausdorff distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from sammed3d_ft.evaluation.surface_elements import element_areas_mm2, surface_elements


@dataclass(frozen=True)
class SurfaceDistances:
    """Distance of each surface element of one mask to the nearest element of the other, increasing."""

    truth_mm: np.ndarray
    truth_area_mm2: np.ndarray
    pred_mm: np.ndarray
    pred_area_mm2: np.ndarray


def surface_distances(truth_vox: np.ndarray, pred_vox: np.ndarray, spacing_mm: np.ndarray) -> SurfaceDistances:
    """Distances between the surfaces of two masks on one grid.

    Elements and areas are those of `surface_elements`; distances are between element centres. If one mask is empty, the
    distances of the other are infinite.

    Args:
        truth_vox: (n, 3) voxel indices of the ground-truth mask, each once.
        pred_vox: (m, 3) voxel indices of the predicted mask, each once.
        spacing_mm: (3,) voxel size in mm.
    """
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    areas = element_areas_mm2(spacing)
    truth_cells, truth_codes = surface_elements(truth_vox)
    pred_cells, pred_codes = surface_elements(pred_vox)
    truth_mm, truth_area = _sorted(_nearest_mm(truth_cells, pred_cells, spacing), areas[truth_codes])
    pred_mm, pred_area = _sorted(_nearest_mm(pred_cells, truth_cells, spacing), areas[pred_codes])
    return SurfaceDistances(truth_mm, truth_area, pred_mm, pred_area)


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


def _nearest_mm(cells: np.ndarray, others: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """(n,) distance in mm of each cell to the nearest of the others."""
    if len(others) == 0:
        return np.full(len(cells), np.inf)
    distances = np.zeros(len(cells))
    apart = np.flatnonzero(~_contains(others, cells))  # shared elements are at distance 0
    if len(apart):
        # Midpoint splits are faster to build than balanced ones, and lattice points are evenly enough spaced for them.
        tree = cKDTree(others * spacing, balanced_tree=False, compact_nodes=False)
        _, nearest = tree.query(cells[apart] * spacing)
        # Subtract before scaling: differences of scaled coordinates could round 2 mm to just above the tolerance.
        distances[apart] = np.sqrt((((cells[apart] - others[nearest]) * spacing) ** 2).sum(axis=1))
    return distances


def _contains(sorted_cells: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """(n,) bool: which cells are among ``sorted_cells``, which are in index order."""
    extent = np.maximum(sorted_cells.max(axis=0, initial=0), cells.max(axis=0, initial=0)) + 1
    numbers = np.ravel_multi_index(tuple(sorted_cells.T), tuple(extent))
    wanted = np.ravel_multi_index(tuple(cells.T), tuple(extent))
    at = np.minimum(np.searchsorted(numbers, wanted), len(numbers) - 1)
    return numbers[at] == wanted


def _sorted(distances_mm: np.ndarray, areas_mm2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.lexsort((areas_mm2, distances_mm))
    return distances_mm[order], areas_mm2[order]
