"""Solids in mm, and painting them onto a voxel grid with partial volume.

Axes are (x, y, z) in patient RAS+ mm: x to the right, y to the front, z to the head. Every solid gives the depth of the
voxels of a box in mm, positive inside. Depth is a first-order estimate, exact for spheres and tubes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from scipy.interpolate import PchipInterpolator

Box = tuple[slice, slice, slice]
Point = tuple[float, float, float]
_SLAB_VOXELS = 400_000  # a slab's temporaries stay in the processor's cache


@dataclass(frozen=True)
class Grid:
    """An axis-aligned voxel grid; `origin_mm` is the centre of voxel (0, 0, 0)."""

    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    origin_mm: tuple[float, float, float]

    @property
    def affine(self) -> np.ndarray:
        affine = np.diag([*self.spacing_mm, 1.0])
        affine[:3, 3] = self.origin_mm
        return affine

    @property
    def edge_mm(self) -> float:
        """Width over which a surface goes from outside to inside: the edge of a cube with a voxel's volume."""
        return float(np.prod(self.spacing_mm) ** (1 / 3))

    @property
    def voxel_ml(self) -> float:
        return float(np.prod(self.spacing_mm)) / 1000

    def padded(self, margin_vox: Sequence[int]) -> Grid:
        shape = tuple(n + 2 * m for n, m in zip(self.shape, margin_vox, strict=True))
        origin = tuple(o - m * s for o, m, s in zip(self.origin_mm, margin_vox, self.spacing_mm, strict=True))
        return Grid(shape, self.spacing_mm, origin)  # type: ignore[arg-type]

    def box(self, low_mm: np.ndarray, high_mm: np.ndarray) -> Box | None:
        """Voxels whose centres may be touched by a solid within these bounds; None when there are none."""
        low = np.floor((low_mm - self.origin_mm) / self.spacing_mm - 0.6).astype(int)
        high = np.ceil((high_mm - self.origin_mm) / self.spacing_mm + 0.6).astype(int) + 1
        low, high = np.maximum(low, 0), np.minimum(high, self.shape)
        return None if (high <= low).any() else tuple(slice(a, b) for a, b in zip(low, high, strict=True))  # type: ignore

    def axes_mm(self, box: Box) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Coordinates of a box's voxel centres, shaped to broadcast: (nx, 1, 1), (1, ny, 1), (1, 1, nz), float32."""
        x, y, z = (
            (o + s * np.arange(b.start, b.stop)).astype(np.float32)
            for o, s, b in zip(self.origin_mm, self.spacing_mm, box, strict=True)
        )
        return x[:, None, None], y[None, :, None], z[None, None, :]


class Solid(Protocol):
    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]: ...
    def depth_mm(self, grid: Grid, box: Box) -> np.ndarray: ...
    def placed(self, scale: np.ndarray, shift_mm: np.ndarray) -> Solid: ...


def point(values: np.ndarray) -> Point:
    x, y, z = (float(v) for v in values)
    return x, y, z


def rotation(turn_deg: Point) -> np.ndarray:
    """Rotation matrix: first about x, then y, then z."""
    (cx, cy, cz), (sx, sy, sz) = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return about_z @ about_y @ about_x


@dataclass(frozen=True)
class Ellipsoid:
    centre: Point
    semi_axes: Point
    turn_deg: Point = (0.0, 0.0, 0.0)

    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        reach = np.sqrt(((rotation(self.turn_deg) * self.semi_axes) ** 2).sum(1))
        return np.subtract(self.centre, reach), np.add(self.centre, reach)

    def depth_mm(self, grid: Grid, box: Box) -> np.ndarray:
        x, y, z = (a - np.float32(c) for a, c in zip(grid.axes_mm(box), self.centre, strict=True))
        axes = rotation(self.turn_deg).T.astype(np.float32)
        near, slope = np.float32(0), np.float32(0)
        for row, r in zip(axes, self.semi_axes, strict=True):
            u = (row[0] / r) * x + (row[1] / r) * y + (row[2] / r) * z
            u *= u
            near = near + u
            slope = slope + u / np.float32(r * r)
        near = np.sqrt(near)
        slope = np.sqrt(slope) + np.float32(1e-6)
        return (1 - near) * near / slope + np.where(near < 0.05, np.float32(min(self.semi_axes)), np.float32(0))

    def placed(self, scale: np.ndarray, shift_mm: np.ndarray) -> Ellipsoid:
        centre = point(np.multiply(self.centre, scale) + shift_mm)
        # a turned ellipsoid takes the scale along the body axis that each of its own axes lies closest to
        along = np.abs(rotation(self.turn_deg)) ** 2
        semi = point(np.asarray(self.semi_axes) * (scale @ along))
        return replace(self, centre=centre, semi_axes=semi)


@dataclass(frozen=True)
class Drum:
    """An elliptic cylinder standing along z: a vertebral body."""

    centre: Point
    semi_axes: tuple[float, float]
    half_height: float

    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        reach = (*self.semi_axes, self.half_height)
        return np.subtract(self.centre, reach), np.add(self.centre, reach)

    def depth_mm(self, grid: Grid, box: Box) -> np.ndarray:
        x, y, z = (a - np.float32(c) for a, c in zip(grid.axes_mm(box), self.centre, strict=True))
        a, b = self.semi_axes
        side = (1 - np.sqrt((x / a) ** 2 + (y / b) ** 2)) * np.float32(np.sqrt(a * b))
        return np.minimum(side, self.half_height - np.abs(z))

    def placed(self, scale: np.ndarray, shift_mm: np.ndarray) -> Drum:
        centre = point(np.multiply(self.centre, scale) + shift_mm)
        semi = (self.semi_axes[0] * float(scale[0]), self.semi_axes[1] * float(scale[1]))
        return Drum(centre, semi, self.half_height * float(scale[2]))


@dataclass(frozen=True)
class Tube:
    """A bent rod: round, from point to point, with one radius or one per point."""

    points: Sequence[Point] | np.ndarray
    radius: float | Sequence[float] | np.ndarray

    def _ends(self) -> tuple[np.ndarray, np.ndarray]:
        points = np.asarray(self.points, dtype=float)
        return points, np.broadcast_to(np.asarray(self.radius, dtype=float), len(points))

    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        points, radii = self._ends()
        return (points - radii[:, None]).min(0), (points + radii[:, None]).max(0)

    def depth_mm(self, grid: Grid, box: Box) -> np.ndarray:
        depth = np.full([b.stop - b.start for b in box], -1e3, np.float32)
        points, radii = self._ends()
        margin = grid.edge_mm
        for p, q, r_p, r_q in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            reach = max(r_p, r_q) + margin
            near = grid.box(np.minimum(p, q) - reach, np.maximum(p, q) + reach)
            if near is None:
                continue
            part = tuple(slice(max(n.start, b.start), min(n.stop, b.stop)) for n, b in zip(near, box, strict=True))
            if any(s.stop <= s.start for s in part):
                continue
            x, y, z = (a - np.float32(c) for a, c in zip(grid.axes_mm(part), p, strict=True))  # type: ignore[arg-type]
            d = (q - p).astype(np.float32)
            t = np.clip((x * d[0] + y * d[1] + z * d[2]) / np.float32(max(float(d @ d), 1e-6)), 0, 1)
            away = np.sqrt((x - t * d[0]) ** 2 + (y - t * d[1]) ** 2 + (z - t * d[2]) ** 2)
            inside = depth[tuple(slice(s.start - b.start, s.stop - b.start) for s, b in zip(part, box, strict=True))]
            np.maximum(inside, np.float32(r_p) + t * np.float32(r_q - r_p) - away, out=inside)
        return depth

    def placed(self, scale: np.ndarray, shift_mm: np.ndarray) -> Tube:
        points, radii = self._ends()
        return Tube(points * scale + shift_mm, radii * float(np.sqrt(scale[0] * scale[1])))


@dataclass(frozen=True)
class Outline:
    """A trunk or a neck: a rounded cross-section, its half width, half depth and y centre smooth along z.

    `rows` are (z, half width, half depth, y centre), z ascending; `exponent` 2 is an ellipse, more is
    squarer.
    """

    rows: Sequence[tuple[float, float, float, float]] | np.ndarray
    exponent: float = 2.4

    def bounds_mm(self) -> tuple[np.ndarray, np.ndarray]:
        z, a, b, y = np.asarray(self.rows, dtype=float).T
        return np.array([-a.max(), (y - b).min(), z[0]]), np.array([a.max(), (y + b).max(), z[-1]])

    def depth_mm(self, grid: Grid, box: Box) -> np.ndarray:
        rows = np.asarray(self.rows, dtype=float)
        x, y, z = grid.axes_mm(box)
        low, high = np.float32(rows[0, 0]), np.float32(rows[-1, 0])
        a, b, y_centre = PchipInterpolator(rows[:, 0], rows[:, 1:])(np.clip(z[0, 0], low, high)).T.astype(np.float32)
        y = y - y_centre
        n = np.float32(self.exponent)
        near = np.abs(x / a) ** n + np.abs(y / b) ** n  # each term is two-dimensional: only the sum is a volume
        near **= 1 / n
        radius = np.sqrt(x * x + y * y)
        depth = radius / np.maximum(near, 1e-3)  # distance from the axis to the surface along the ray through the voxel
        depth -= radius
        return np.minimum(depth, np.minimum(z - low, high - z), out=depth)

    def placed(self, scale: np.ndarray, shift_mm: np.ndarray) -> Outline:
        rows = np.asarray(self.rows, dtype=float) * [scale[2], scale[0], scale[1], scale[1]]
        return Outline(rows + np.array([shift_mm[2], 0, 0, shift_mm[1]]), self.exponent)


@dataclass(frozen=True)
class Part:
    """A solid of layered tissue: `layers` are (depth below the surface in mm, tissue), outermost first.

    `breathes` is the fraction of the diaphragm's movement that the part follows. A part with an `organ` name has its
    own number in the organ map.
    """

    solid: Solid
    layers: tuple[tuple[float, str], ...]
    organ: str = ""
    breathes: float = 0.0
    uptake: float = 1.0  # factor of this part on the patient's SUV of its tissue
    rough_mm: float = 0.0  # deviation of the surface from the plain solid


def draw_waves(rng: np.random.Generator) -> np.ndarray:
    """A patient's waves in space that make organs irregular: (wave, axis, [wave number per mm, phase])."""
    return np.stack([2 * np.pi / rng.uniform(45, 90, (3, 3)), rng.uniform(0, 2 * np.pi, (3, 3))], -1)


def _bumps(grid: Grid, box: Box, waves: np.ndarray) -> np.ndarray:
    """The waves' sum, mostly between -1 and 1; each a product along the axes, which is cheap."""
    axes = grid.axes_mm(box)
    total: np.ndarray | np.float32 = np.float32(0)
    for wave in waves.astype(np.float32):
        x, y, z = (np.sin(axis * number + phase) for axis, (number, phase) in zip(axes, wave, strict=True))
        total = total + x * y * z
    return np.asarray(total * np.float32(0.9))


def paint(
    grid: Grid,
    parts: Sequence[Part],
    value: Callable[[Part, str], float],
    background: float,
    waves: np.ndarray,
    organ_ids: dict[str, int] | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Paint parts in order (later over earlier), edges weighted by the covered share of the voxel.

    Returns the volume (float32) and the organ map (uint8; 0 where no named organ covers half of the voxel).
    """
    volume = np.full(grid.shape, background, np.float32)
    organs = np.zeros(grid.shape, np.uint8)
    for part in parts:
        low_mm, high_mm = part.solid.bounds_mm()
        whole = grid.box(low_mm - part.rough_mm, high_mm + part.rough_mm)
        if whole is None:
            continue
        x, y, z = whole
        step = max(1, _SLAB_VOXELS // ((x.stop - x.start) * (y.stop - y.start)))
        for start in range(z.start, z.stop, step):
            box = (x, y, slice(start, min(start + step, z.stop)))
            depth = part.solid.depth_mm(grid, box)
            if part.rough_mm:
                depth += np.float32(part.rough_mm) * _bumps(grid, box, waves)
            depth *= np.float32(1 / grid.edge_mm)
            depth += np.float32(0.5)
            view = volume[box]
            for inset_mm, tissue in part.layers:
                cover = np.clip(depth - np.float32(inset_mm / grid.edge_mm), 0, 1)
                view += cover * (np.float32(value(part, tissue)) - view)
            if organ_ids is not None:
                organs[box][depth >= 0.5] = organ_ids.get(part.organ, 0)
    return volume, organs
