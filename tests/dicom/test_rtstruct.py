"""Contours become the voxels whose centres they contain."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sammed3d_ft.dicom.folder import choose_series, scan_folder
from sammed3d_ft.dicom.rtstruct import combine, fill, read_region, region_names
from sammed3d_ft.dicom.series import Series, order_slices
from sammed3d_ft.errors import InputError
from tests.support.synthetic_dicom import FRAME, write_rtstruct, write_series

SQUARE = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])


def square(column: float, row: float, size: float) -> np.ndarray:
    return SQUARE * size + (column, row)


def test_fill_takes_the_centres_inside() -> None:
    mask = fill([square(3, 2, 3)], (8, 6))  # from 1.5 to 4.5 and 0.5 to 3.5
    expected = np.zeros((8, 6), bool)
    expected[2:5, 1:4] = True
    np.testing.assert_array_equal(mask, expected)


def test_fill_of_holes_islands_and_parts_outside() -> None:
    ring = fill([square(4, 4, 7), square(4, 4, 3)], (9, 9))
    assert ring.sum() == 49 - 9
    assert not ring[4, 4]
    assert fill([square(4, 4, 7), square(4, 4, 5), square(4, 4, 3)], (9, 9)).sum() == 49 - 25 + 9
    assert fill([square(0, 0, 5)], (9, 9)).sum() == 9  # three quarters lie outside
    assert not fill([square(-7, 4, 5)], (9, 9)).any()
    keyhole = np.concatenate([square(4, 4, 7), square(4, 4, 7)[:1], square(4, 4, 3)[::-1], square(4, 4, 3)[3:]])
    assert fill([keyhole], (9, 9))[4, 4] == 0


def test_polygons_that_share_an_edge_share_no_voxel() -> None:
    """Edges through centres: each centre belongs to exactly one of four squares round a voxel."""
    parts = [fill([square(4 + dx, 4 + dy, 4)], (10, 10)) for dx in (-2, 2) for dy in (-2, 2)]
    assert sum(part.sum() for part in parts) == 64
    assert (sum(part.astype(int) for part in parts) <= 1).all()


def test_fill_agrees_with_matplotlib_on_random_polygons() -> None:
    from matplotlib.path import Path as Polygon

    rng = np.random.default_rng(0)
    centres = np.stack(np.meshgrid(np.arange(30), np.arange(20), indexing="ij"), -1).reshape(-1, 2)
    for _ in range(20):
        angle = np.sort(rng.uniform(0, 2 * np.pi, 60))
        polygon = np.c_[15 + rng.uniform(2, 16, 60) * np.cos(angle), 10 + rng.uniform(2, 11, 60) * np.sin(angle)]
        expected = Polygon(polygon).contains_points(centres).reshape(30, 20)
        np.testing.assert_array_equal(fill([polygon], (30, 20)), expected)


OUTER, HOLE, ISLAND = square(10, 10, 15), square(10, 10, 9), square(10, 10, 3)


@pytest.mark.parametrize(
    ("polygons", "voxels", "repeated", "overlapping"),
    [
        ([OUTER], 225, False, False),
        ([OUTER, HOLE], 225 - 81, False, False),
        ([ISLAND, OUTER, HOLE], 225 - 81 + 9, False, False),
        ([OUTER, OUTER], 225, True, False),
        ([OUTER, np.roll(OUTER[::-1], 1, axis=0) + 1e-4], 225, True, False),  # other start, sense and digits
        ([OUTER, HOLE, OUTER, HOLE], 225 - 81, True, False),
        ([OUTER, HOLE, OUTER, HOLE, OUTER], 225 - 81, True, False),
        ([square(5, 5, 5), square(8, 5, 5)], 25 + 25 - 10, False, True),
        ([square(5, 5, 5), square(8, 5, 5), square(5, 5, 5)], 25 + 25 - 10, True, True),
        # A ring and a copy of it 4 columns on. Empty: what is in both holes, and a column of each outside the other.
        ([OUTER, HOLE, square(14, 10, 15), square(14, 10, 9)], 15 * 19 - 5 * 9 - 2 * 9, False, True),
        ([OUTER, square(9, 10, 5), square(12, 10, 5)], 225 - 8 * 5, False, True),  # holes that overlap
        ([square(5, 5, 4), square(9, 5, 4)], 32, False, False),  # a common edge
        ([square(5, 5, 4), square(8.99, 5, 4)], 32, False, False),  # an edge common but for rounding
        ([square(3, 3, 3), square(15, 15, 3)], 18, False, False),
        # The third joins the first two.
        ([square(4, 4, 4), square(12, 4, 4), square(8, 4, 6)], 16 + 16 + 36 - 2 * 4, False, True),
    ],
)
def test_contours_of_one_plane_are_combined_as_drawn(
    polygons: list[np.ndarray], voxels: int, repeated: bool, overlapping: bool
) -> None:
    found = combine(polygons, (24, 20))
    assert (int(found.mask.sum()), found.repeated, found.overlapping) == (voxels, repeated, overlapping)


def test_a_keyhole_exported_twice_keeps_its_hole() -> None:
    keyhole = np.concatenate([OUTER, OUTER[:1], HOLE[::-1], HOLE[3:]])
    once = combine([keyhole], (24, 20)).mask
    assert once.sum() == 225 - 81
    np.testing.assert_array_equal(combine([keyhole, keyhole], (24, 20)).mask, once)


def on_pet(folder: Path, heights_mm: list[float], **rtstruct: str) -> tuple[Path, Series]:
    """A PET of 5 columns (2 mm), 4 rows (4 mm), 6 slices (3 mm from z = 30), and a region on its columns 1-2, row 1."""
    write_series(folder)
    corners = [(-9, -18), (-5, -18), (-5, -14), (-9, -14)]
    write_rtstruct(folder / "rt.dcm", {"A": [np.array([(*xy, z) for xy in corners]) for z in heights_mm]}, **rtstruct)
    return folder, order_slices(choose_series(scan_folder(folder), "PT"))


def mask_of(folder: Path, series: Series, name: str = "A") -> np.ndarray:
    return read_region(scan_folder(folder).regions[0], name, series)[0]


@pytest.mark.parametrize(
    ("heights_mm", "slices"),
    [
        ([33, 36, 39], [1, 2, 3]),  # on the slices
        ([33.04, 36.03, 38.98], [1, 2, 3]),
        ([36], [2]),  # one plane
        ([33, 36, 42, 45], [1, 2, 4, 5]),  # a gap stays a gap
        (list(np.arange(33, 39.5, 1.0)), [1, 2, 3]),  # drawn on a finer series
        ([33, 36, 39.2], [1, 2, 3]),  # as uneven as real slices
        ([33, 39], [0, 1, 2, 3]),  # on a coarser one: two planes 6 mm thick are four slices of 3 mm
    ],
)
def test_planes_and_slices(tmp_path: Path, heights_mm: list[float], slices: list[int]) -> None:
    mask = mask_of(*on_pet(tmp_path, heights_mm))
    expected = np.zeros_like(mask)
    expected[1:3, 1, slices] = True
    np.testing.assert_array_equal(mask, expected)


def test_regions_of_another_frame_are_not_offered_and_refused(tmp_path: Path) -> None:
    folder, series = on_pet(tmp_path, [33, 36], frame="1.2.3")
    file = scan_folder(folder).regions[0]
    assert region_names(file, FRAME) == ()
    with pytest.raises(InputError, match="has another frame of reference"):
        read_region(file, "A", series)


def test_wrong_regions_are_refused(tmp_path: Path) -> None:
    folder, series = on_pet(tmp_path, [33, 36])
    with pytest.raises(InputError, match="'B': not found; regions on this scan: A"):
        mask_of(folder, series, "B")
    for contours, kind, message in (
        ([], "CLOSED_PLANAR", "has no contours"),
        ([np.zeros((1, 3))], "POINT", "of type POINT, expected CLOSED_PLANAR"),
        ([np.zeros((2, 3))], "CLOSED_PLANAR", "fewer than three complete points"),
        ([np.array([(-9, -18, 33), (-9, -14, 33), (-9, -14, 42)])], "CLOSED_PLANAR", "leaves the plane .* by 9.00 mm"),
        ([np.array([(50, 50, 33), (60, 50, 33), (60, 60, 33)])], "CLOSED_PLANAR", "contains no voxel centre"),
    ):
        write_rtstruct(folder / "rt.dcm", {"A": contours}, kind=kind)
        with pytest.raises(InputError, match=message):
            mask_of(folder, series)


def box(column: float, row: float, columns: float, rows: float, height_mm: float) -> np.ndarray:
    """A rectangle on the PET of `on_pet`, its sides between voxels, in mm (LPS)."""
    corners = [(0, 0), (columns, 0), (columns, rows), (0, rows)]
    return np.array([(-10 + 2 * (column + c - 0.5), -20 + 4 * (row + r - 0.5), height_mm) for c, r in corners])


def test_repeated_and_overlapping_contours_are_named_with_their_slices(tmp_path: Path) -> None:
    folder, series = on_pet(tmp_path, [33])
    twice, left, right = box(1, 1, 2, 2, 33), box(0, 0, 3, 2, 36), box(2, 1, 3, 2, 36)
    write_rtstruct(folder / "rt.dcm", {"A": [twice, twice, left, right, box(1, 1, 1, 1, 39)]})
    mask, warnings = read_region(scan_folder(folder).regions[0], "A", series)
    expected = np.zeros_like(mask)
    expected[1:3, 1:3, 1] = expected[0:3, 0:2, 2] = expected[2:5, 1:3, 2] = expected[1, 1, 3] = True
    np.testing.assert_array_equal(mask, expected)
    assert [text.split("rt.dcm: ")[1] for text in warnings] == [
        "region 'A': the same contour occurs more than once on slice 1; it counts once",
        "region 'A': contours overlap in part on slice 2; their union is used",
    ]
    # Exclusive or is used if the file requests it.
    write_rtstruct(folder / "rt.dcm", {"A": [left, right]}, kind="CLOSEDPLANAR_XOR")
    mask, warnings = read_region(scan_folder(folder).regions[0], "A", series)
    assert (int(mask.sum()), warnings) == (6 + 6 - 2, [])


def test_a_real_structure_exported_twice_is_itself(real_data: Path) -> None:
    if not (real_data / "fdg_pet_dicom").is_dir():
        pytest.skip("the real cases hold no fdg_pet_dicom")
    contents = scan_folder(real_data / "fdg_pet_dicom")
    series = order_slices(choose_series(contents, "PT"))
    once, warnings = read_region(contents.regions[0], "GTV_Mass", series)
    assert (int(once.sum()), warnings) == (5095, [])
    for drawn in contents.regions[0].header.ROIContourSequence:
        drawn.ContourSequence = [*drawn.ContourSequence, *drawn.ContourSequence]
    twice, warnings = read_region(contents.regions[0], "GTV_Mass", series)
    np.testing.assert_array_equal(twice, once)
    assert "the same contour occurs more than once on slices" in warnings[0]
