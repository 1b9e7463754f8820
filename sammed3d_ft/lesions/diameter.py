"""Dmax: the exact distance between the two voxels of a mask that lie farthest apart, without comparing all pairs."""

from __future__ import annotations

import numpy as np
from scipy.spatial import ConvexHull
from scipy.spatial.distance import cdist

_ROWS_AT_ONCE = 1024  # limits the distance block to a few tens of MB for any number of hull vertices


def dmax_cm(coords_mm: np.ndarray) -> float:
    """Largest distance in cm between any two of the voxel centres ``coords_mm``, (n, 3) in mm.

    The two points farthest apart are vertices of the convex hull, so only those are compared; the hull of points on a
    line or in a plane is computed in that line or plane. One voxel gives 0, none gives NaN (not defined). Dmax is
    defined as in PET studies of dissemination: centre to centre, over all lesions of a patient.
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
    """Indices of the points that can be an end point of the longest distance."""
    if len(points) < 5:
        return np.arange(len(points))
    centred = points - points.mean(axis=0)
    # The 3x3 scatter matrix suffices to find the directions in which the points extend.
    variances, directions = np.linalg.eigh(centred.T @ centred)
    # Voxel centres lie on a lattice, so the variance along a flat direction is pure rounding error.
    extends = variances > 1e-12 * variances[-1]
    if not extends.any():
        return np.array([0])
    flat = centred @ directions[:, extends]
    if flat.shape[1] == 1:
        return np.array([flat[:, 0].argmin(), flat[:, 0].argmax()])
    return ConvexHull(flat).vertices
