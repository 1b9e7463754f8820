"""Lesions: their number, positions, volumes, uptake and shapes, and their ground-truth voxels.

Distributions: volumes log-normal (median 1 ml unless asked otherwise, sigma 1.5, cut to 0.1 to 120 ml), counts
log-normal with a share of lesion-free patients (0 to 100), uptake log-normal from SUV 2 (barely above liver or blood)
to 60. Tumours above SUV 60 occur (SUVmax above 100 with 18F-DCFPyL: Szabo et al., Mol Imaging Biol 2015;17:565) and
are left out. The ground truth is the lesion's extent before blurring: a voxel belongs to the lesion if at least half of
it is inside. A lesion that fills half of no voxel keeps the voxel that contains most of it, so that none disappears.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from sammed3d_ft.phantom.shapes import Box, Grid, point, rotation
from sammed3d_ft.phantom.skeleton import LesionSite

VOLUME_ML = (0.1, 120.0)
VOLUME_MEDIAN_ML = 1.0
VOLUME_SIGMA = 1.5
SUV_RANGE = (2.0, 60.0)
MAX_COUNT = 100
TOUCHING_SHARE = 0.2  # share of a patient's lesions, after the first, that are placed in contact with an existing one
GAP_MM = 8.0  # between lesions that do not touch: more than the diagonal of a slice's voxel at 5.5 mm
NECROTIC_ABOVE_ML = 8.0
CORE = 0.55  # radius of a necrotic core, in radii of its lesion


def _even_directions(count: int) -> np.ndarray:
    """Unit vectors spread evenly over the sphere (Fibonacci lattice), (count, 3)."""
    k = np.arange(count) + 0.5
    z = 1 - 2 * k / count
    turn = np.pi * (1 + 5**0.5) * k
    return np.stack([np.sqrt(1 - z**2) * np.cos(turn), np.sqrt(1 - z**2) * np.sin(turn), z], -1)


_DIRECTIONS = _even_directions(1500)


@dataclass(frozen=True)
class Shape:
    """A star-shaped, hence connected, solid: an ellipsoid with waves on its surface.

    `stretch` (3, 3) takes mm to the unit sphere; `size` scales the whole.
    """

    stretch: np.ndarray
    waves: np.ndarray  # (k, 3) waves over the sphere of directions
    phases: np.ndarray
    heights: np.ndarray  # sum of magnitudes below 1
    size: float

    def radius_mm(self, directions: np.ndarray) -> np.ndarray:
        """Distance from centre to surface along unit vectors (..., 3)."""
        bumps = 1 + np.cos(directions @ self.waves.T + self.phases) @ self.heights
        return self.size * bumps / np.linalg.norm(directions @ self.stretch.T, axis=-1)

    @property
    def volume_ml(self) -> float:
        return float(4 / 3 * np.pi * np.mean(self.radius_mm(_DIRECTIONS) ** 3) / 1000)

    @property
    def reach_mm(self) -> float:
        return float(self.radius_mm(_DIRECTIONS).max()) * 1.03

    def depth_share(self, offsets_mm: np.ndarray) -> np.ndarray:
        """Distance from the centre relative to the surface in that direction, below 1 inside. (..., 3) -> (...)"""
        distance = np.linalg.norm(offsets_mm, axis=-1)
        directions = offsets_mm / np.maximum(distance, 1e-6)[..., None]
        directions[distance < 1e-6] = (1, 0, 0)  # the centre has no direction; it is inside
        return distance / self.radius_mm(directions)


@dataclass(frozen=True)
class PhantomLesion:
    """One simulated lesion. `touches` is the ID (from 1) of the lesion it touches; 0 for none."""

    id: int
    region: str
    centre_mm: tuple[float, float, float]
    volume_ml: float
    suv: float
    core_suv: float | None
    touches: int
    hu: float
    breathes: float
    shape: Shape


def draw_count(rng: np.random.Generator, whole_body: bool) -> int:
    """Lesions of one patient: 10 % have none, median about 6, up to 100.

    A field smaller than the whole body always has lesions, 1 to 30.
    """
    free, log_count = rng.random(), rng.standard_normal()
    if not whole_body:
        return int(np.clip(np.round(3.5 * np.exp(0.8 * log_count)), 1, 30))
    return 0 if free < 0.1 else int(np.clip(np.round(6 * np.exp(1.25 * log_count)), 1, MAX_COUNT))


def draw_volume_ml(rng: np.random.Generator, median_ml: float = VOLUME_MEDIAN_ML) -> float:
    """Draw volumes. The median is that of the full log-normal; after cutting at 0.1 ml it is slightly larger."""
    low, high = np.log(np.divide(VOLUME_ML, median_ml)) / VOLUME_SIGMA
    share = rng.uniform(ndtr(low), ndtr(high))
    return float(median_ml * np.exp(VOLUME_SIGMA * ndtri(share)))


def draw_shape(rng: np.random.Generator, volume_ml: float, site_radius_mm: float, along: np.ndarray) -> Shape:
    """An irregular solid of exactly this volume; if too thick for its site, it is stretched along the site."""
    radius = (volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    if radius > 1.2 * site_radius_mm:
        squeeze = min((radius / (1.2 * site_radius_mm)) ** 1.5, 1.8)
        axes = np.array([squeeze, 1.0, 1.0]) * np.exp(rng.normal(0, 0.12, 3))
        side = np.cross(along, rng.standard_normal(3))
        side /= np.linalg.norm(side)
        frame = np.stack([along, side, np.cross(along, side)])
    else:
        axes = np.exp(rng.normal(0, 0.22, 3))
        frame = rotation(tuple(rng.uniform(0, 360, 3)))
    count = 6
    waves = rng.standard_normal((count, 3))
    waves *= (rng.uniform(1.5, 6.0, count) / np.linalg.norm(waves, axis=1))[:, None]
    heights = rng.dirichlet(np.ones(count)) * rng.uniform(0.15, 0.6)
    shape = Shape(np.diag(1 / axes) @ frame, waves, rng.uniform(0, 2 * np.pi, count), heights, 1.0)
    return Shape(shape.stretch, shape.waves, shape.phases, shape.heights, (volume_ml / shape.volume_ml) ** (1 / 3))


def _gap_mm(centre: np.ndarray, shape: Shape, other: PhantomLesion) -> float:
    """Distance between two surfaces along the line between their centres; negative if they overlap there."""
    line = centre - other.centre_mm
    distance = float(np.linalg.norm(line))
    if distance < 1e-6:
        return -np.inf
    line /= distance
    return distance - float(other.shape.radius_mm(line)) - float(shape.radius_mm(-line))


def _clear(
    centre: np.ndarray, shape: Shape, reach: float, others: Sequence[PhantomLesion], reaches: Sequence[float]
) -> bool:
    """Whether the distance to all others is at least GAP_MM; computed only if bounding spheres are close."""
    for other, other_reach in zip(others, reaches, strict=True):
        if np.linalg.norm(centre - other.centre_mm) > reach + other_reach + GAP_MM:
            continue
        if _gap_mm(centre, shape, other) < GAP_MM:
            return False
        # away from the line between the centres, the surfaces may be closer: compare surface points
        mine = centre + _DIRECTIONS[::10] * shape.radius_mm(_DIRECTIONS[::10])[:, None]
        away = mine - other.centre_mm
        length = np.linalg.norm(away, axis=-1)
        if (length - other.shape.radius_mm(away / length[:, None]) < GAP_MM * 0.75).any():
            return False
    return True


def draw_lesions(
    rng: np.random.Generator,
    sites: Sequence[LesionSite],
    count: int,
    low_mm: np.ndarray,
    high_mm: np.ndarray,
    tracer: str,
    median_ml: float = VOLUME_MEDIAN_ML,
) -> tuple[PhantomLesion, ...]:
    """`count` lesions with centres between `low_mm` and `high_mm`; fewer only if there is not enough space."""
    reachable = [s for s in sites if ((s.points > low_mm) & (s.points < high_mm)).all(-1).any()]
    if not reachable:
        return ()
    bone_heavy = rng.beta(0.8, 0.8)  # some patients have mostly nodal disease, others mostly bone metastases
    weights = np.array(
        [s.weight * (bone_heavy if s.region.startswith("bone") else 1 - 0.8 * bone_heavy) for s in reachable]
    )
    brightness = np.log(6.0 if tracer == "fdg" else 9.0) + rng.normal(0, 0.35)
    lesions: list[PhantomLesion] = []
    reaches: list[float] = []
    for _ in range(count):
        volume = draw_volume_ml(rng, median_ml)
        thickness = (volume * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
        roomy = weights * np.array([1.0 if thickness < 2.0 * s.radius_mm else 1e-3 for s in reachable])
        joined = bool(lesions) and rng.random() < TOUCHING_SHARE
        suv = float(np.clip(np.exp(brightness + rng.normal(0, 0.75)), *SUV_RANGE))
        necrotic = rng.random() < 0.4 and volume > NECROTIC_ABOVE_ML
        core = float(rng.uniform(0.12, 0.4) * suv) if necrotic else None
        for _attempt in range(60):
            place = reachable[int(rng.choice(len(reachable), p=roomy / roomy.sum()))]
            step = rng.integers(len(place.points) - 1)
            ends = place.points[step : step + 2]
            along = (ends[1] - ends[0]) / max(float(np.linalg.norm(ends[1] - ends[0])), 1e-6)
            shape = draw_shape(rng, volume, place.radius_mm, along)
            reach = shape.reach_mm
            partner = lesions[int(rng.integers(len(lesions)))] if joined else None
            if partner is None:
                offset = rng.standard_normal(3)
                offset *= 0.6 * place.radius_mm * rng.random() / np.linalg.norm(offset)
                centre = ends[0] + rng.random() * (ends[1] - ends[0]) + offset
            else:
                away = rng.standard_normal(3)
                away /= np.linalg.norm(away)
                touch = 0.9 * (float(partner.shape.radius_mm(away)) + float(shape.radius_mm(-away)))
                centre = np.asarray(partner.centre_mm) + away * touch
            if (centre < low_mm).any() or (centre > high_mm).any():
                continue
            others = [k for k, other in enumerate(lesions) if partner is None or other.id != partner.id]
            if _clear(centre, shape, reach, [lesions[k] for k in others], [reaches[k] for k in others]):
                break
        else:
            continue
        region, breathes = (partner.region, partner.breathes) if partner else (place.region, place.breathes)
        hu = float(rng.uniform(120, 650)) if region.startswith("bone") else float(rng.uniform(25, 60))
        if partner is not None:
            suv = float(np.clip(partner.suv * rng.uniform(0.6, 1.5), *SUV_RANGE))
            core = None
        lesions.append(
            PhantomLesion(len(lesions) + 1, region, point(centre), volume, suv, core,
                   partner.id if partner else 0, hu, breathes, shape)
        )  # fmt: skip
        reaches.append(reach)
    return tuple(lesions)


def covered_share(
    lesion: PhantomLesion, grid: Grid, shift_mm: np.ndarray, scale: float = 1.0
) -> tuple[Box, np.ndarray] | None:
    """Fraction of each voxel (0 to 1) inside the lesion, sampled at several points; `scale` shrinks the lesion."""
    centre = np.asarray(lesion.centre_mm) + shift_mm
    reach = lesion.shape.reach_mm * scale
    box = grid.box(centre - reach, centre + reach)
    if box is None:
        return None
    radius = (lesion.volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3) * scale
    # an odd number of samples per axis, so that never exactly half of them are inside
    per_axis = [2 * int(np.clip(np.ceil(3 * s / radius), 1, 4)) + 1 for s in grid.spacing_mm]
    fine = []
    for b, o, s, n, c in zip(box, grid.origin_mm, grid.spacing_mm, per_axis, centre, strict=True):
        within = (np.arange(n) + 0.5) / n - 0.5
        fine.append((o + s * (np.arange(b.start, b.stop)[:, None] + within).ravel() - c).astype(np.float32))
    offsets = np.stack(np.meshgrid(*fine, indexing="ij"), -1)
    inside = np.linalg.norm(offsets, axis=-1) < reach
    inside[inside] = lesion.shape.depth_share(offsets[inside]) < scale
    (nx, ny, nz), (a, b_, c_) = [x.stop - x.start for x in box], per_axis
    return box, inside.reshape(nx, a, ny, b_, nz, c_).mean((1, 3, 5), dtype=np.float32)


def true_extent(lesions: Sequence[PhantomLesion], grid: Grid) -> np.ndarray:
    """Instance map (uint16, 0 background, else the lesion's ID), by the rule in the module docstring.

    If two touching lesions both fill half of a voxel, it belongs to the smaller one.
    """
    instances = np.zeros(grid.shape, np.uint16)
    shares = {lesion.id: covered_share(lesion, grid, np.zeros(3)) for lesion in lesions}
    for lesion in sorted(lesions, key=lambda one: -one.volume_ml):
        found = shares[lesion.id]
        if found is not None:
            instances[found[0]][found[1] >= 0.5] = lesion.id
    kept = set(np.unique(instances).tolist())
    saved: set[tuple[int, ...]] = set()
    for lesion in lesions:
        found = shares[lesion.id]
        if lesion.id in kept or found is None:
            continue
        box, share = found
        for flat in np.argsort(-share, axis=None):
            voxel = tuple(int(i + b.start) for i, b in zip(np.unravel_index(flat, share.shape), box, strict=True))
            if voxel not in saved:
                break
        saved.add(voxel)
        instances[voxel] = lesion.id
    return instances
