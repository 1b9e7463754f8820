"""Enhanced (multi-frame) PET in one file: the same volume and SUV as the classic series with one file per slice."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from sammed3d_ft.dicom.folder import choose_series, scan_folder
from sammed3d_ft.dicom.series import Series, order_slices, read_values
from sammed3d_ft.dicom.suv import suv_scale
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.images import read_image
from sammed3d_ft.recipes import export_seg
from sammed3d_ft.recipes.import_dicom import run
from tests.support.synthetic_dicom import SHAPE, value_mapping, write_enhanced, write_rtstruct, write_series

START = 70_000 / 1e8  # g/Bq: 70 kg, 200 MBq, one half-life from injection to the moment of decay correction
STORED = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)


def series_in(folder: Path) -> Series:
    return order_slices(choose_series(scan_folder(folder), "PT"))


def suv_of(folder: Path) -> np.ndarray:
    series = series_in(folder)
    return read_values(series, suv_scale(series.headers).factor)


@pytest.mark.parametrize("legacy", [False, True])
def test_same_volume_as_the_classic_series(legacy: bool, tmp_path: Path) -> None:
    write_series(tmp_path / "classic", change=lambda _, header: setattr(header, "RescaleSlope", 5))
    write_enhanced(tmp_path / "enhanced" / "pet.dcm", legacy=legacy, slopes=[5] * SHAPE[0])
    classic, enhanced = series_in(tmp_path / "classic"), series_in(tmp_path / "enhanced")
    assert enhanced.shape == classic.shape == (5, 4, 6)
    np.testing.assert_array_equal(enhanced.affine, classic.affine)
    np.testing.assert_array_equal(enhanced.positions_mm, classic.positions_mm)
    np.testing.assert_array_equal(suv_of(tmp_path / "enhanced"), suv_of(tmp_path / "classic"))


def test_each_frame_has_its_own_place_and_slope(tmp_path: Path) -> None:
    """Frames from head to feet; by hand: value = (stored * slope of its frame) * 7e-4."""
    slopes = [0.5, 1, 2, 3, 4, 5.25]
    write_enhanced(tmp_path / "pet.dcm", slopes=slopes, origin_mm=(-10, -20, 45), step_mm=(0, 0, -3))
    series = series_in(tmp_path)
    assert [file.frame for file in series.files] == [5, 4, 3, 2, 1, 0]
    # RAS: x and y reversed; columns are 2 mm and rows 4 mm apart; the lowest slice is the last frame, at 30 mm.
    np.testing.assert_array_equal(series.affine, [[-2, 0, 0, 10], [0, -4, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]])
    values = suv_of(tmp_path)
    for place, frame in enumerate([5, 4, 3, 2, 1, 0]):
        np.testing.assert_allclose(values[:, :, place], STORED[frame].T * slopes[frame] * START, rtol=1e-6)
    assert values[3, 2, 0] == pytest.approx(113 * 5.25 * 7e-4)  # frame 5, row 2, column 3: 5*20 + 2*5 + 3 = 113


def test_orientation_and_spacing_may_be_per_frame(tmp_path: Path) -> None:
    def move(dataset: Dataset, frames: list[Dataset]) -> None:
        shared = dataset.SharedFunctionalGroupsSequence[0]
        for keyword in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
            for frame in frames:
                frame[keyword] = shared[keyword]
            del shared[keyword]

    write_enhanced(tmp_path / "shared" / "pet.dcm")
    write_enhanced(tmp_path / "own" / "pet.dcm", change=move)
    np.testing.assert_array_equal(series_in(tmp_path / "own").affine, series_in(tmp_path / "shared").affine)
    np.testing.assert_array_equal(suv_of(tmp_path / "own"), suv_of(tmp_path / "shared"))


@pytest.mark.parametrize(
    ("change", "factor", "moment"),
    [
        ({}, START, "Decay Correction DateTime"),
        # Corrected to the injection: nothing decays.
        ({"DecayCorrectionDateTime": "20200102100000"}, START / 2, "Decay Correction DateTime"),
        # Corrected to half a half-life after the injection.
        ({"DecayCorrectionDateTime": "20200102105500"}, START / 2 * 2**0.5, "Decay Correction DateTime"),
        ({"DecayCorrectionDateTime": None}, START, "series date and time"),  # the first frame, at 11:50
    ],
)
def test_decay_correction(change: dict, factor: float, moment: str, tmp_path: Path) -> None:
    write_enhanced(tmp_path / "pet.dcm", **change)
    scale = suv_scale(series_in(tmp_path).headers)
    assert scale.factor == pytest.approx(factor, rel=1e-12)
    assert (scale.facts["dose_bq"], scale.facts["scan_start_from"], scale.warnings) == (2e8, moment, ())


def test_a_dose_that_cannot_be_mbq_is_taken_as_bq(tmp_path: Path) -> None:
    def in_bq(dataset: Dataset, _: list[Dataset]) -> None:
        dataset.RadiopharmaceuticalInformationSequence[0].RadionuclideTotalDose = 2e8

    write_enhanced(tmp_path / "pet.dcm", change=in_bq)
    scale = suv_scale(series_in(tmp_path).headers, "PET series X")
    assert scale.factor == pytest.approx(START, rel=1e-12)
    assert scale.warnings == ("PET series X: Radionuclide Total Dose 2e+08 is too large for MBq, so it is taken as Bq",)


def test_suv_of_the_scanner_is_used_unchanged(tmp_path: Path) -> None:
    def both(_: Dataset, frames: list[Dataset]) -> None:
        for frame in frames:
            frame.RealWorldValueMappingSequence.append(value_mapping(0.25, "g/ml{SUVbw}", intercept=-1))

    write_enhanced(tmp_path / "pet.dcm", change=both, PatientWeight=None)
    assert suv_scale(series_in(tmp_path).headers).facts["units"] == "GML"
    assert suv_of(tmp_path)[3, 2, 5] == 113 * 0.25 - 1


def per_frame(keyword: str, value: object = None):
    """Replace a functional group in all frames, or remove it."""

    def change(_: Dataset, frames: list[Dataset]) -> None:
        for frame in frames:
            if value is None:
                del frame[keyword]
            else:
                setattr(frame, keyword, value)

    return change


def one_frame_less(dataset: Dataset, _: list[Dataset]) -> None:
    del dataset.PerFrameFunctionalGroupsSequence[-1]


def same_place(_: Dataset, frames: list[Dataset]) -> None:
    frames[3].PlanePositionSequence = frames[2].PlanePositionSequence


def lookup_table(_: Dataset, frames: list[Dataset]) -> None:
    for frame in frames:
        del frame.RealWorldValueMappingSequence[0].RealWorldValueSlope


TWO = [value_mapping(1, "Bq/ml", last=50), value_mapping(2, "Bq/ml")]


@pytest.mark.parametrize(
    ("change", "attributes", "says"),
    [
        (one_frame_less, {}, "states 6 frames, describes 5"),
        (same_place, {}, "frame 3 and frame 4 have the same position; is the series dynamic or gated"),
        (per_frame("PlanePositionSequence"), {}, "has no valid ImagePositionPatient"),
        (lookup_table, {}, "frame 1: its values have no single linear mapping to Bq/ml"),
        (per_frame("RealWorldValueMappingSequence", TWO), {}, "no single linear mapping to Bq/ml"),
        (per_frame("RealWorldValueMappingSequence", TWO[:1]), {}, "stores values of 40 to 59, but only -32768 to 50"),
        (
            per_frame("RealWorldValueMappingSequence", [value_mapping(1, "{counts}")]),
            {},
            r"in \{counts\}; SUV needs",
        ),
        (per_frame("RealWorldValueMappingSequence"), {}, "no stated units"),
        (None, {"AttenuationCorrected": "NO"}, "not corrected for attenuation"),
        (None, {"DecayCorrected": "NO"}, "must name ATTN and DECY"),
        (None, {"PatientWeight": None}, "Patient's Weight is missing"),
        (None, {"PerFrameFunctionalGroupsSequence": []}, "states 6 frames, describes 0"),
        (None, {"Rows": 400}, "cannot be read|do not match"),
    ],
)
def test_refusals(change, attributes: dict, says: str, tmp_path: Path) -> None:
    write_enhanced(tmp_path / "dicom" / "pet.dcm", change=change, **attributes)
    with pytest.raises(InputError, match=says):
        run(tmp_path / "dicom", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_import_with_a_region_and_export_of_a_mask(tmp_path: Path) -> None:
    """The mask lies on the frames it was drawn on, although they are stored from head to feet."""
    folder = tmp_path / "dicom"
    dataset = write_enhanced(folder / "pet.dcm", origin_mm=(-10, -20, 45), step_mm=(0, 0, -3))
    square = np.array([(-9, -18, 36), (-5, -18, 36), (-5, -10, 36), (-9, -10, 36)], float)
    write_rtstruct(folder / "rt.dcm", {"GTV": [square]})
    record = run(folder, tmp_path / "in", roi=["GTV"])
    # Columns 1 and 2 (x -8 and -6), rows 1 and 2 (y -16 and -12), the slice at 36 mm.
    assert record["regions"]["GTV"]["voxels"] == 4
    pet = read_image(tmp_path / "in" / "PT.nii.gz")
    np.testing.assert_allclose(nib.load(tmp_path / "in" / "PT.nii.gz").get_fdata().max(), 119 * START, rtol=1e-6)
    assert pet.array.shape == (5, 4, 6)
    out = tmp_path / "seg.dcm"
    export_seg.run(tmp_path / "in" / "mask_GTV.nii.gz", folder, out)
    written = pydicom.dcmread(out)
    (frame,) = written.PerFrameFunctionalGroupsSequence
    assert frame.PlanePositionSequence[0].ImagePositionPatient == [-10, -20, 36]
    source = frame.DerivationImageSequence[0].SourceImageSequence[0]
    assert source.ReferencedSOPInstanceUID == dataset.SOPInstanceUID
    assert source.ReferencedFrameNumber == 4  # 45, 42, 39, 36
    out.rename(folder / "seg.dcm")
    again = run(folder, tmp_path / "again", roi=["GTV", "Lesion"])
    assert again["regions"]["Lesion"]["voxels"] == 4
    masks = [nib.load(tmp_path / "again" / f"mask_{name}.nii.gz").get_fdata() for name in ("GTV", "Lesion")]
    np.testing.assert_array_equal(*masks)
