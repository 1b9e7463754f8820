"""Dmax: the distance of the two voxels of a mask that lie farthest apart, exact without all pairs."""

from __future__ import annotations

import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

_ROWS_AT_ONCE = 1024  # bounds the distance block to a few tens of MB whatever the number of hull vertices


def dmax_cm(coords_mm: np.ndarray) -> float:
    """Largest distance in cm between any two of the voxel centres ``coords_mm``, (n, 3) in mm.

    The farthest two points of a set are vertices of its convex hull, so only those are compared. Points on
    one line or in one plane are handled in that line or plane. One voxel gives 0, none gives NaN (not
    defined). The definition is the dissemination feature of PET studies: centre to centre, over all lesions
    of a patient.
    """
    points = np.asarray(coords_mm, dtype=np.float64).reshape(-1, 3)
    if len(points) == 0:
        return float("nan")
    points = points[_hull_vertices(points)]
    largest = 0.0
    for start in range(0, len(points), _ROWS_AT_ONCE):
        largest = max(largest, float(cdist(points[start : start + _ROWS_AT_ONCE], points).max()))
    return largest / 10.0


def _hull_vertices(points: np.ndarray) -> np.ndarray:
    """Indices of the points that can be an end of the longest distance."""
    if len(points) < 5:
        return np.arange(len(points))
    centred = points - points.mean(axis=0)
    # The 3x3 scatter matrix gives the directions in which the set extends; n x 3 factors are not needed.
    variances, directions = np.linalg.eigh(centred.T @ centred)
    # Voxel centres lie on a lattice, so a direction without extent has none but rounding error.
    extends = variances > 1e-12 * variances[-1]
    if not extends.any():
        return np.array([0])
    flat = centred @ directions[:, extends]
    if flat.shape[1] == 1:
        return np.array([flat[:, 0].argmin(), flat[:, 0].argmax()])
    return ConvexHull(flat).vertices
