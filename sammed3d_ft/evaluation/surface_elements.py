"""Surface elements of a mask: where its surface passes between voxels, and the area of each piece in mm^2.

The definition is that of DeepMind's surface-distance (Nikolov et al., arXiv 1809.04430): one element per cell
of 2x2x2 neighbouring voxels that are not all equal, placed at the cell's centre, with the area of the
marching-cubes surface through the cell. The area table is derived from geometry rather than listed; tests compare it
with areas measured on that library.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import product

import numpy as np

Point = tuple[int, int, int]

_CORNERS: list[Point] = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
"""Corners of a cell; corner i is bit ``1 << i`` of a cell's code."""


def surface_elements(coords_vox: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Cells of 2x2x2 voxels through which the surface of a mask passes.

    Args:
        coords_vox: (n, 3) indices of the mask's voxels, each once, none negative. Everything else is background, also
            outside the volume, so the surface of a lesion at the volume's edge is closed.

    Returns:
        (m, 3) int64 cell indices in index order, where cell (i, j, k) is centred at voxel coordinate (i - 0.5, j - 0.5,
        k - 0.5); and (m,) uint8 codes, the bits of the cell's foreground corners.
    """
    if len(coords_vox) == 0:
        return np.zeros((0, 3), np.int64), np.zeros(0, np.uint8)
    origin = coords_vox.min(axis=0)
    cells = tuple((coords_vox.max(axis=0) - origin + 2).tolist())
    at = np.ravel_multi_index(tuple((coords_vox - origin).T), cells)
    codes = np.zeros(np.prod(cells), np.uint8)
    for bit, corner in enumerate(_CORNERS):
        # A voxel is corner (x, y, z) of the cell that starts (x, y, z) before it; cell 0 starts at voxel -1.
        before = np.ravel_multi_index((1 - corner[0], 1 - corner[1], 1 - corner[2]), cells)
        codes[at + before] |= np.uint8(1 << bit)
    touched = np.flatnonzero(codes)
    touched = touched[codes[touched] != 255]  # all foreground: no surface
    return np.stack(np.unravel_index(touched, cells)).T + origin, codes[touched]


def element_areas_mm2(spacing_mm: np.ndarray) -> np.ndarray:
    """(256,) area in mm^2 of the surface through a cell, by its code, for voxels of ``spacing_mm`` (3,)."""
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    faces = np.array([spacing[1] * spacing[2], spacing[0] * spacing[2], spacing[0] * spacing[1]])
    return np.linalg.norm(_normals() * faces, axis=2).sum(axis=1)


@cache
def _normals() -> np.ndarray:
    """(256, 4, 3) area vectors of the triangles through a unit cell, by code; unused triangles are zero.

    Marching cubes with vertices at the midpoints of edges. Two choices reproduce the published table: on a face whose
    corners alternate, and throughout a cell, the rarer kind of corner is cut off; and a non-planar polygon is
    triangulated for the largest area.
    """
    normals = np.zeros((256, 4, 3))
    for code in range(1, 255):
        rare = code if code.bit_count() <= 4 else 255 - code
        triangles = [t for polygon in _polygons(rare) for t in _largest_triangulation(polygon)]
        normals[code, : len(triangles)] = triangles
    normals.setflags(write=False)
    return normals


def _polygons(code: int) -> list[list[Point]]:
    """Closed polygons that cut off the corners of ``code``; a vertex is the sum of its edge's two corners."""
    inside = {corner: bool(code >> bit & 1) for bit, corner in enumerate(_CORNERS)}
    neighbours: dict[Point, list[Point]] = {}
    for ring in _faces():
        middles = [_middle(ring[i], ring[(i + 1) % 4]) for i in range(4)]
        crossed = [i for i in range(4) if inside[ring[i]] != inside[ring[(i + 1) % 4]]]
        if len(crossed) == 2:
            segments = [(middles[crossed[0]], middles[crossed[1]])]
        else:  # none or all four; with four, each inside corner is cut off separately
            segments = [(middles[i - 1], middles[i]) for i in range(4) if crossed and inside[ring[i]]]
        for a, b in segments:
            neighbours.setdefault(a, []).append(b)
            neighbours.setdefault(b, []).append(a)
    polygons = []
    while neighbours:
        polygon = [min(neighbours)]
        while True:
            ahead = [v for v in neighbours[polygon[-1]] if v not in polygon]
            if not ahead:
                break
            polygon.append(ahead[0])
        for vertex in polygon:
            del neighbours[vertex]
        polygons.append(polygon)
    return polygons


def _faces() -> Iterator[list[Point]]:
    """The four corners of each face of a cell, in ring order."""
    for axis, side in product(range(3), (0, 1)):
        ring = []
        for u, v in ((0, 0), (1, 0), (1, 1), (0, 1)):
            corner = [u, v]
            corner.insert(axis, side)
            ring.append((corner[0], corner[1], corner[2]))
        yield ring


def _middle(a: Point, b: Point) -> Point:
    return (a[0] + b[0], a[1] + b[1], a[2] + b[2])


def _largest_triangulation(polygon: list[Point]) -> np.ndarray:
    """(n, 3) area vectors of the triangulation of largest area; mirror-image ties have equal areas at any spacing."""
    vertices = np.array(polygon) / 2.0
    candidates = [
        np.array([np.cross(vertices[j] - vertices[i], vertices[k] - vertices[i]) / 2.0 for i, j, k in triangles])
        for triangles in _triangulations(0, len(polygon) - 1)
    ]
    return max(candidates, key=lambda vectors: round(float(np.linalg.norm(vectors, axis=1).sum()), 9))


def _triangulations(first: int, last: int) -> Iterator[list[tuple[int, int, int]]]:
    """Every triangulation of the polygon with vertices first..last."""
    if last - first < 2:
        yield []
        return
    for apex in range(first + 1, last):
        for left in _triangulations(first, apex):
            for right in _triangulations(apex, last):
                yield [*left, (first, apex, last), *right]
