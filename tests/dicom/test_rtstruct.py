"""Contours become the voxels whose centres they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sammed3d_ft.dicom.folder import choose_series, scan_folder
from sammed3d_ft.dicom.rtstruct import fill, read_region, region_names
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


def on_pet(folder: Path, heights_mm: list[float], **rtstruct: str) -> tuple[Path, Series]:
    """A PET of 5 columns (2 mm), 4 rows (4 mm), 6 slices (3 mm from z = 30), and a region on its columns 1-2, row 1."""
    write_series(folder)
    corners = [(-9, -18), (-5, -18), (-5, -14), (-9, -14)]
    write_rtstruct(folder / "rt.dcm", {"A": [np.array([(*xy, z) for xy in corners]) for z in heights_mm]}, **rtstruct)
    return folder, order_slices(choose_series(scan_folder(folder), "PT"))


def mask_of(folder: Path, series: Series, name: str = "A") -> np.ndarray:
    return read_region(scan_folder(folder).regions[0], name, series)


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
