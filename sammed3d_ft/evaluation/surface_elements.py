"""Surface elements of a mask: where its surface passes between voxels, and the area of each piece in mm^2.

The definition is that of DeepMind's surface-distance (Nikolov et al., arXiv 1809.04430): one element per cell
of 2x2x2 neighbouring voxels that are not all equal, placed at the cell's centre, with the area of the
marching-cubes surface through the cell. The area table is derived from geometry rather than listed; tests compare it
with areas measured on that library.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import product

import numpy as np

Point = tuple[int, int, int]

_CORNERS: list[Point] = [(x, y, z) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
"""Corners of a cell; corner i is bit ``1 << i`` of a cell's code."""


_CELLS_AT_ONCE = 2**24  # bounds the memory for many lesions; the box of a single one may be larger


@dataclass(frozen=True)
class Surfaces:
    """The surface elements of several masks on one grid, each mask by itself, one mask after the other.

    Attributes:
        cells: (m, 3) int64 cell indices, in index order within a mask. Cell (i, j, k) is centred at voxel coordinate
            (i - 0.5, j - 0.5, k - 0.5).
        codes: (m,) uint8, the bits of the cell's foreground corners.
        counts: (k,) number of cells of each mask.
    """

    cells: np.ndarray
    codes: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, coords_vox: np.ndarray, sizes: Sequence[int] | np.ndarray | None = None) -> Surfaces:
        """The cells of 2x2x2 voxels through which the surfaces of masks pass.

        Args:
            coords_vox: (n, 3) voxel indices of the masks, none negative, each once in a mask, one mask after the other.
                Everything else is background, also outside the volume, so the surface at the volume's edge is closed.
            sizes: (k,) number of voxels of each mask, all above 0; None for one mask, which may be empty.
        """
        sizes = np.asarray([len(coords_vox)] if sizes is None else sizes, np.int64)
        if len(coords_vox) == 0:
            return cls(np.zeros((0, 3), np.int64), np.zeros(0, np.uint8), np.zeros(len(sizes), np.int64))
        ends = np.cumsum(sizes)
        first = np.minimum.reduceat(coords_vox, ends - sizes)
        shapes = np.maximum.reduceat(coords_vox, ends - sizes) - first + 2  # cell 0 starts one voxel before the first
        parts = []
        for masks, tops, shape in stacks(shapes, _CELLS_AT_ONCE):
            shift = tops - first[masks]
            voxels = coords_vox[ends[masks.start] - sizes[masks.start] : ends[masks.stop - 1]]
            cells, codes = _elements(voxels + np.repeat(shift, sizes[masks], axis=0), shape)
            counts = np.diff(np.searchsorted(cells[:, 0], tops[1:, 0]), prepend=0, append=len(cells))
            parts.append((cells - np.repeat(shift, counts, axis=0), codes, counts))
        return cls(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))

    def pick(self, masks: np.ndarray) -> Surfaces:
        """Those of the masks with these indices (p,), in this order."""
        ends, counts = np.cumsum(self.counts), self.counts[masks]
        # Each of the chosen cells is as far behind its mask's first one in the old order as in the new.
        cells = np.arange(counts.sum()) + np.repeat(ends[masks] - np.cumsum(counts), counts)
        return Surfaces(self.cells[cells], self.codes[cells], counts)

    def union(self) -> Surfaces:
        """Of all the masks together as one, if no voxel belongs to two of them."""
        if len(self.codes) == 0:
            return Surfaces(self.cells, self.codes, np.zeros(1, np.int64))
        extent = self.cells.max(axis=0) + 1
        numbers = np.ravel_multi_index(tuple(self.cells.T), tuple(extent))
        order = np.argsort(numbers, kind="stable")
        _, first = np.unique(numbers[order], return_index=True)
        codes = np.bitwise_or.reduceat(self.codes[order], first)
        surface = codes != 255  # all foreground: no surface between masks that touch
        cells = self.cells[order[first[surface]]]
        return Surfaces(cells, codes[surface], np.array([len(cells)]))

    @classmethod
    def joined(cls, parts: Sequence[Surfaces]) -> Surfaces:
        """The masks of each part, one part after the other."""
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def stacks(shapes: np.ndarray, most: int) -> Iterator[tuple[slice, np.ndarray, tuple[int, int, int]]]:
    """Put boxes on top of each other along x, so that one array holds many.

    Args:
        shapes: (k, 3) of the boxes.
        most: number of voxels of an array, unless a single box is larger.

    Yields:
        Which boxes, the place (n, 3) of the first voxel of each in their array, and the array's shape.
    """
    start, top, y, z = 0, 0, 0, 0
    tops: list[tuple[int, int, int]] = []
    for index, (height, depth, width) in enumerate(shapes.tolist()):
        if tops and (top + height) * max(y, depth) * max(z, width) > most:
            yield slice(start, index), np.array(tops), (top, y, z)
            start, top, y, z, tops = index, 0, 0, 0, []
        tops.append((top, 0, 0))
        top, y, z = top + height, max(y, depth), max(z, width)
    yield slice(start, len(shapes)), np.array(tops), (top, y, z)


def _elements(coords_vox: np.ndarray, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """(m, 3) cells in index order and (m,) codes of voxels (n, 3) in an array of cells of this shape."""
    at = np.ravel_multi_index(tuple(coords_vox.T), shape)
    codes = np.zeros(np.prod(shape), np.uint8)
    for bit, corner in enumerate(_CORNERS):
        # A voxel is corner (x, y, z) of the cell that starts (x, y, z) before it; cell 0 starts at voxel -1.
        before = np.ravel_multi_index((1 - corner[0], 1 - corner[1], 1 - corner[2]), shape)
        codes[at + before] |= np.uint8(1 << bit)
    touched = np.flatnonzero(codes)
    touched = touched[codes[touched] != 255]  # all foreground: no surface
    return np.stack(np.unravel_index(touched, shape)).T, codes[touched]


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
