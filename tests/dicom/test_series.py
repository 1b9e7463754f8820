"""Slices of a folder become one volume at the right position, or one clear error line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import JPEGLSLossless, RLELossless, generate_uid

from sammed3d_ft.dicom.folder import choose_series, scan_folder
from sammed3d_ft.dicom.series import Series, order_slices, read_values
from sammed3d_ft.errors import InputError
from tests.support.synthetic_dicom import SHAPE, write_series


def read(folder: Path, modality: str = "PT", *uids: str) -> Series:
    return order_slices(choose_series(scan_folder(folder), modality, uids))


def on_one(**attributes: Any) -> Any:
    """Sets attributes of slice 2 alone."""

    def change(number: int, slice_: Dataset) -> None:
        for keyword, value in attributes.items() if number == 2 else ():
            setattr(slice_, keyword, value)

    return change


def on_all(**attributes: Any) -> Any:
    return lambda _, slice_: [setattr(slice_, keyword, value) for keyword, value in attributes.items()]


def tilted(number: int, slice_: Dataset) -> None:
    slice_.ImagePositionPatient[1] = float(number)


def moved(**mm: float) -> Any:
    """Moves slices along z: `_3=1.5` puts slice 3 1.5 mm higher."""

    def change(number: int, slice_: Dataset) -> None:
        slice_.ImagePositionPatient[2] += mm.get(f"_{number}", 0.0)

    return change


@pytest.mark.parametrize(
    ("orientation", "step_mm"),
    [
        ((1, 0, 0, 0, 1, 0), (0, 0, 3)),
        ((1, 0, 0, 0, 1, 0), (0, 0, -3)),  # written from the head down
        ((-1, 0, 0, 0, -1, 0), (0, 0, 3)),  # prone
        ((0, 1, 0, 0, 0, -1), (-3, 0, 0)),  # sagittal
        ((0.8, 0.6, 0, -0.6, 0.8, 0), (0, 0, 3)),  # oblique
    ],
)
def test_every_value_lies_where_dicom_puts_it(tmp_path: Path, orientation: tuple, step_mm: tuple) -> None:
    """Against PS3.3 C.7.6.2.1.1: P = position + column * (along row) + row * (along column), in LPS."""
    written = write_series(tmp_path, orientation=orientation, step_mm=step_mm)
    series = read(tmp_path)
    values = read_values(series)
    assert series.shape == values.shape == (5, 4, 6)
    for slice_ in written:
        pixels = np.frombuffer(slice_.PixelData, "<i2").reshape(4, 5)
        along_row, along_column = np.array(orientation, float).reshape(2, 3)
        for row, column in ((0, 0), (3, 0), (0, 4), (2, 3)):
            place = np.array(slice_.ImagePositionPatient, float) + along_row * column * 2 + along_column * row * 4
            index = series.to_vox(place)
            assert np.abs(index - index.round()).max() < 1e-6
            i, j, k = index.round().astype(int)
            assert values[i, j, k] == pixels[row, column]
            ras = series.affine @ (i, j, k, 1)
            np.testing.assert_allclose(ras[:3], place * (-1, -1, 1), atol=1e-6)


def test_each_slice_has_its_own_slope_and_intercept(tmp_path: Path) -> None:
    def change(number: int, slice_: Dataset) -> None:
        slice_.RescaleSlope, slice_.RescaleIntercept = 0.5 + number, -number

    stored = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) - 60  # signed
    write_series(tmp_path, stored, change=change)
    expected = (stored * (0.5 + np.arange(6.0))[:, None, None] - np.arange(6.0)[:, None, None]) * 3
    np.testing.assert_allclose(read_values(read(tmp_path), 3.0), expected.T)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_slices_are_read(tmp_path: Path, syntax: str) -> None:
    stored = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE) - 60
    write_series(tmp_path, stored)
    for path in tmp_path.glob("*.dcm"):
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax, generate_instance_uid=False)
        dataset.save_as(path)
    np.testing.assert_array_equal(read_values(read(tmp_path)), stored.T)


def test_a_ct_is_read_in_hu(tmp_path: Path) -> None:
    stored = np.full(SHAPE, 24, np.int16)
    write_series(tmp_path, stored, modality="CT", change=lambda _, one: setattr(one, "RescaleIntercept", -1024))
    assert (read_values(read(tmp_path, "CT")) == -1000).all()


def test_steps_that_are_not_quite_even_are_accepted(tmp_path: Path) -> None:
    """2.4 % off, as in real scanners; the affine is linear from the first slice to the last."""
    write_series(tmp_path, change=moved(_2=0.07, _5=0.06))
    series = read(tmp_path)
    assert series.step_mm == pytest.approx((5 * 3 + 0.06) / 5)
    np.testing.assert_allclose(np.diff(series.positions_mm), [3, 3.07, 2.93, 3, 3.06])
    np.testing.assert_allclose(series.affine[:3, 3], [10, 20, 30])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (moved(_3=3, _4=3, _5=3), r"1 slice\(s\) missing between .*_2_.* and .*_3_.*, as the step is 6.00 mm instead"),
        (moved(_3=9, _4=9, _5=9), r"3 slice\(s\) missing"),
        (moved(_3=3), "have the same position; is the series dynamic or gated"),
        (moved(_3=1), "slices are 2.00 to 4.00 mm apart"),
        (moved(_0=0.29, _1=0.29, _2=0.29, _5=0.29), None),
        (on_one(ImageOrientationPatient=[0, 1, 0, -1, 0, 0]), "different orientation"),
        (on_one(PixelSpacing=[4, 2.1]), "different pixel spacing"),
        (on_one(Rows=5, Columns=4), "different rows"),
        (on_one(FrameOfReferenceUID="1.2"), "different frames of reference"),
        (tilted, "shifted sideways by up to 5.00 mm .gantry tilt"),
        (on_one(ImagePositionPatient=None), "has no valid ImagePositionPatient"),
        (on_one(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "not a pair of perpendicular unit vectors"),
        (on_one(PixelSpacing=[4, 0]), "must be above 0"),
        (on_all(NumberOfFrames=3), "multi-frame"),
        (on_all(NumberOfSlices=7), "state 7 slices but only 6 were found"),
        (on_all(SamplesPerPixel=3), "colour image"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path: Path, change: Any, message: str | None) -> None:
    write_series(tmp_path, change=change)
    if message is None:
        read(tmp_path)
        return
    with pytest.raises(InputError, match=message):
        read(tmp_path)


def test_one_file_taken_away_is_noticed(tmp_path: Path) -> None:
    write_series(tmp_path)
    next(tmp_path.glob("*_3_*.dcm")).unlink()
    with pytest.raises(InputError, match=r"1 slice\(s\) missing"):
        read(tmp_path)
    for path in tmp_path.glob("*_[1-5]_*.dcm"):
        path.unlink()
    with pytest.raises(InputError, match="a single slice is not a volume"):
        read(tmp_path)


def test_several_series_are_listed_and_one_is_chosen(tmp_path: Path) -> None:
    first, second = generate_uid(), generate_uid()
    write_series(tmp_path / "a", uid=first, SeriesDescription="PET AC")
    write_series(tmp_path / "b", np.ones(SHAPE, np.int16), uid=second, SeriesDescription="PET NAC")
    write_series(tmp_path / "c", modality="CT")
    with pytest.raises(InputError, match="contains 2 PET series; choose one with --series") as caught:
        read(tmp_path)
    assert all(text in str(caught.value) for text in (first, second, "PET AC, 6 images", "PET NAC"))
    assert (read_values(read(tmp_path, "PT", second)) == 1).all()
    with pytest.raises(InputError, match="--series 1.2.3 not found; PET and CT series found: "):
        read(tmp_path, "PT", "1.2.3")


def test_a_ct_given_as_pet_is_refused(tmp_path: Path) -> None:
    uid = generate_uid()
    write_series(tmp_path, modality="CT", uid=uid)
    with pytest.raises(InputError, match=r"contains no PET series \(found: 1 CT series\)"):
        read(tmp_path)
    with pytest.raises(InputError, match=rf"contains no PET series .*; --series {uid} is CT"):
        read(tmp_path, "PT", uid)


def test_a_scout_and_a_ct_of_another_frame_are_passed_over(tmp_path: Path) -> None:
    write_series(tmp_path / "scout", modality="CT", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_series(tmp_path / "other", modality="CT", change=lambda _, one: setattr(one, "FrameOfReferenceUID", "1.2"))
    uid = generate_uid()
    pet = write_series(tmp_path / "pet")
    write_series(tmp_path / "ct", modality="CT", uid=uid)
    found = choose_series(scan_folder(tmp_path), "CT", (), pet[0].FrameOfReferenceUID)
    assert found.uid == uid


def test_folders_without_dicom_and_broken_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        scan_folder(tmp_path / "none")
    (tmp_path / "notes.txt").write_text("no DICOM")
    with pytest.raises(InputError, match=r"contains no DICOM files \(1 others\)"):
        scan_folder(tmp_path)
    write_series(tmp_path)
    file = next(tmp_path.glob("*_2_*.dcm"))
    copy = tmp_path / "z_copy.dcm"
    copy.write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="is the same DICOM object as"):
        scan_folder(tmp_path)
    copy.unlink()
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match="pixels stored as Explicit VR Little Endian cannot be read"):
        read_values(read(tmp_path))
    file.write_bytes(file.read_bytes()[:200])
    with pytest.raises(InputError):
        read(tmp_path)


def test_no_rescale_values_and_other_ct_units_are_refused(tmp_path: Path) -> None:
    write_series(tmp_path / "a", change=lambda _, one: delattr(one, "RescaleSlope"))
    with pytest.raises(InputError, match="has no Rescale Slope"):
        read_values(read(tmp_path / "a"))
    write_series(tmp_path / "b", modality="CT", RescaleType="OD")
    with pytest.raises(InputError, match="CT values are in OD, expected HU"):
        read_values(read(tmp_path / "b", "CT"))
