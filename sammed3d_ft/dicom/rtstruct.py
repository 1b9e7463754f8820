"""Converts regions of an RTSTRUCT, drawn as closed contours, to masks on the grid of a series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from sammed3d_ft.dicom.folder import DicomFile
from sammed3d_ft.dicom.series import Series
from sammed3d_ft.errors import InputError

_CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
# Contours are stored to about 0.001 mm; planes closer than this are the same plane.
_SAME_PLANE_MM = 0.01
# Planes further apart than this many times the usual distance have a gap between them.
_NEIGHBOURS = 1.5
# A contour whose points leave its plane by more than this fraction of a slice was not drawn on these slices.
_FLAT_SLICES = 0.25
# Two contours are compared on this many points per side of each bounding box. A common area below this share is due to
# rounding, as when the same contour is exported with different digits.
_SAMPLES = 128
_SLIVER = 0.01


def region_names(file: DicomFile, frame_of_reference: str) -> tuple[str, ...]:
    """The names of a file's regions in a frame of reference, in the file's order."""
    return tuple(
        str(region.get("ROIName") or "")
        for region in file.header.get("StructureSetROISequence") or []
        if str(region.get("ReferencedFrameOfReferenceUID") or frame_of_reference) == frame_of_reference
    )


def read_region(file: DicomFile, name: str, series: Series) -> tuple[np.ndarray, list[str]]:
    """The mask of a region, (column, row, slice) bool, and a warning about repeated or overlapping contours.

    A voxel belongs to the region if its centre does. Contours in the same plane are combined by `combine`. Each plane
    of contours applies to slices up to half way to the next plane, and to half the usual plane distance beyond the
    last one. Contours drawn on the series itself therefore stay on their own slices, and slices of a finer or coarser
    series use the nearest plane. Slice positions are the true ones, not those of the regular grid.

    Raises:
        InputError: no such region, or several; another frame of reference; contours that are not closed or not in the
            plane of the slices; a region that contains no voxel centre.
    """
    where = f"{file.path}: region {name!r}"
    contours = _contours(file, name, series, where)
    polygons, heights_mm = [], []
    for contour in contours:
        points = np.array(contour.ContourData, np.float64).reshape(-1, 3)
        along = points @ series.normal
        if np.ptp(along) > _FLAT_SLICES * series.step_mm:
            raise InputError(f"{where}: a contour leaves the plane of the series' slices by {np.ptp(along):.2f} mm")
        # The affine gives columns and rows; its slice axis is normal to the plane, so the third coordinate is dropped.
        polygons.append(series.to_vox(points)[:, :2])
        heights_mm.append(float(along.mean()))
    exclusive = all(contour.ContourGeometricType == "CLOSEDPLANAR_XOR" for contour in contours)
    mask = np.zeros(series.shape, bool)
    repeated, overlapping = [], []
    for index, plane in _planes_of_slices(np.array(heights_mm), series).items():
        in_plane = [polygons[i] for i in plane]
        if exclusive:  # the file requests the exclusive or
            mask[:, :, index] = fill(in_plane, series.shape[:2])
            continue
        combined = combine(in_plane, series.shape[:2])
        mask[:, :, index] = combined.mask
        repeated += [index] if combined.repeated else []
        overlapping += [index] if combined.overlapping else []
    if not mask.any():
        raise InputError(f"{where}: contains no voxel centre of series {series.uid}; was it drawn on another scan?")
    warnings = []
    if repeated:
        warnings.append(f"{where}: the same contour occurs more than once on {_slices(repeated)}; it counts once")
    if overlapping:
        warnings.append(f"{where}: contours overlap in part on {_slices(overlapping)}; their union is used")
    return mask, warnings


def _slices(indices: Sequence[int]) -> str:
    """Slices for a message, numbered from 0 as in the NIfTI file."""
    named = ", ".join(str(index) for index in indices[:10])
    more = f" and {len(indices) - 10} more" if len(indices) > 10 else ""
    return f"slice{'s' * (len(indices) > 1)} {named}{more}"


def _contours(file: DicomFile, name: str, series: Series, where: str) -> list[Dataset]:
    regions = [one for one in file.header.get("StructureSetROISequence") or [] if str(one.get("ROIName")) == name]
    if not regions:
        names = ", ".join(region_names(file, series.frame_of_reference)) or "none"
        raise InputError(f"{where}: not found; regions on this scan: {names}")
    if len(regions) > 1:
        raise InputError(f"{where}: occurs {len(regions)} times; give the regions different names")
    frame = str(regions[0].get("ReferencedFrameOfReferenceUID") or "")
    if frame and frame != series.frame_of_reference:
        raise InputError(f"{where}: has another frame of reference than series {series.uid}; register them first")
    number = regions[0].ROINumber
    contours = [
        contour
        for one in file.header.get("ROIContourSequence") or []
        if one.ReferencedROINumber == number
        for contour in one.get("ContourSequence") or []
    ]
    if not contours:
        raise InputError(f"{where}: has no contours")
    for contour in contours:
        kind = contour.get("ContourGeometricType")
        if kind not in _CLOSED:
            raise InputError(f"{where}: has a contour of type {kind}, expected CLOSED_PLANAR")
        if len(contour.get("ContourData") or ()) % 3 or len(contour.get("ContourData") or ()) < 9:
            raise InputError(f"{where}: has a contour with fewer than three complete points")
    return contours


def _planes_of_slices(heights_mm: np.ndarray, series: Series) -> dict[int, np.ndarray]:
    """For each slice inside the region, the indices of the contours in the slice's plane."""
    order = np.argsort(heights_mm, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(heights_mm[order]) > _SAME_PLANE_MM) + 1)
    planes_mm = np.array([heights_mm[group].mean() for group in groups])
    gaps_mm = np.diff(planes_mm)
    usual_mm = float(np.median(gaps_mm)) if len(gaps_mm) else series.step_mm
    # A larger distance is a gap in the region, not a thick plane.
    halves_mm = np.where(gaps_mm <= _NEIGHBOURS * usual_mm, gaps_mm, usual_mm) / 2
    low_mm = planes_mm - np.concatenate([[usual_mm / 2], halves_mm])
    high_mm = planes_mm + np.concatenate([halves_mm, [usual_mm / 2]])
    # As within a plane, a slice exactly on a border belongs to the side above; the offset keeps rounding out of it.
    places_mm = series.positions_mm + _SAME_PLANE_MM
    plane = np.searchsorted(low_mm, places_mm, "right") - 1
    inside = (plane >= 0) & (places_mm < high_mm[plane])
    return {int(index): groups[plane[index]] for index in np.flatnonzero(inside)}


@dataclass(frozen=True, eq=False)
class Combined:
    """The mask of one plane's contours, (column, row) bool, and whether some were repeated or partly overlapping."""

    mask: np.ndarray
    repeated: bool
    overlapping: bool


def combine(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> Combined:
    """Combine the contours of one plane.

    A contour inside another one is a hole, and one inside the hole an island. A repeated contour counts once. Partly
    overlapping contours are united, each without its own holes. For separate or nested contours, this equals the
    exclusive or, which however would erase repeated contours.

    Args:
        polygons: as for `fill`.
        shape: columns, rows.
    """
    kept: list[np.ndarray] = []
    inside: list[set[int]] = []  # for each kept polygon, the polygons that contain it
    repeated = overlapping = False
    for polygon in polygons:
        shares = [_common_shares(polygon, other) for other in kept]
        if any(min(pair) >= 1 - _SLIVER for pair in shares):
            repeated = True
            continue
        inside.append({index for index, (own, _) in enumerate(shares) if own >= 1 - _SLIVER})
        for index, (_, others) in enumerate(shares):
            inside[index] |= {len(kept)} if others >= 1 - _SLIVER else set()
        overlapping |= any(_SLIVER < max(pair) < 1 - _SLIVER for pair in shares)
        kept.append(polygon)

    levels: dict[int, int] = {}  # 0: an outline, 1: a hole in one, 2: an island in the hole
    for index in sorted(range(len(kept)), key=lambda i: len(inside[i])):
        levels[index] = max((levels[other] + 1 for other in inside[index] if other in levels), default=0)
    filled = [fill([polygon], shape) for polygon in kept]
    mask = np.zeros(shape, bool)
    for index, level in levels.items():
        if level % 2 == 0:
            holes = [filled[i] for i in levels if levels[i] == level + 1 and index in inside[i]]
            mask |= filled[index] & ~np.logical_or.reduce([*holes, np.zeros(shape, bool)])
    return Combined(mask, repeated, overlapping)


def _common_shares(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """The intersection of two polygons as a fraction of the area of each; 0 if they do not overlap."""
    if (one.max(0) <= other.min(0)).any() or (other.max(0) <= one.min(0)).any():
        return 0.0, 0.0
    return _share_inside(one, other), _share_inside(other, one)


def _share_inside(polygon: np.ndarray, other: np.ndarray) -> float:
    low, size = polygon.min(0), np.maximum(np.ptp(polygon, axis=0), 1e-9)
    # The odd fraction keeps sample points off the edges, which often lie on simple fractions of a voxel.
    inside, common = (fill([(p - low) / size * _SAMPLES - 0.4142], (_SAMPLES, _SAMPLES)) for p in (polygon, other))
    return float((inside & common).sum() / max(inside.sum(), 1))


def fill(polygons: Sequence[np.ndarray], shape: tuple[int, int]) -> np.ndarray:
    """Which voxel centres lie inside an odd number of polygons, (column, row) bool.

    A centre exactly on an edge belongs to the side of larger column and row, so polygons with a common edge share no
    voxel.

    Args:
        polygons: each (points, 2) in voxels (column, row); the last point is joined to the first.
        shape: columns, rows.
    """
    columns, rows = shape
    crossings = np.zeros((columns + 1, rows), np.int64)
    row = np.arange(rows)
    for polygon in polygons:
        start, end = polygon, np.roll(polygon, -1, axis=0)
        low, high = np.minimum(start[:, 1], end[:, 1])[:, None], np.maximum(start[:, 1], end[:, 1])[:, None]
        edge, crossed_row = np.nonzero((low <= row) & (row < high))
        share = (crossed_row - start[edge, 1]) / (end[edge, 1] - start[edge, 1])
        column = start[edge, 0] + share * (end[edge, 0] - start[edge, 0])
        first_right = np.clip(np.ceil(column), 0, columns).astype(int)
        np.add.at(crossings, (first_right, crossed_row), 1)
    return crossings[:columns].cumsum(0) % 2 == 1
