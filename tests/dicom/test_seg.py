"""A DICOM SEG reads back unchanged, by this reader and by plain pydicom, and only onto its own grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from sammed3d_ft.dicom.folder import DicomFile, choose_series, scan_folder
from sammed3d_ft.dicom.seg import read_region, region_names, write_segmentation
from sammed3d_ft.dicom.series import Series, order_slices
from sammed3d_ft.errors import InputError
from tests.support.synthetic_dicom import FRAME, SHAPE, STUDY, by_highdicom, write_series


def written(folder: Path, stored: np.ndarray | None = None, **options: Any) -> Series:
    write_series(folder, stored, **options)
    return order_slices(choose_series(scan_folder(folder), "PT"))


def decode(path: Path, series: Series) -> dict[int, np.ndarray]:
    """A second reader: frames placed by the source slice that each refers to, not by position.

    Returns:
        Segment number -> (column, row, slice) bool.
    """
    dataset = pydicom.dcmread(path)
    frames = dataset.pixel_array.reshape(-1, dataset.Rows, dataset.Columns)
    slices = {str(header.SOPInstanceUID): index for index, header in enumerate(series.headers)}
    masks = {int(one.SegmentNumber): np.zeros(series.shape, bool) for one in dataset.SegmentSequence}
    for frame, group in zip(frames, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        shared = dataset.SharedFunctionalGroupsSequence[0]
        identified = group if "SegmentIdentificationSequence" in group else shared
        number = identified.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        source = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        masks[number][:, :, slices[source]] = frame.T
    return masks


def opened(path: Path) -> DicomFile:
    return DicomFile(path, pydicom.dcmread(path, stop_before_pixels=True))


@pytest.fixture(params=["axial", "head first", "sagittal", "uneven"])
def series(request: pytest.FixtureRequest, tmp_path: Path) -> Series:
    options = {
        "axial": {},
        "head first": {"step_mm": (0, 0, -3)},
        "sagittal": {"orientation": (0, 1, 0, 0, 0, -1), "step_mm": (-3, 0, 0)},
        "uneven": {"change": lambda n, one: one.ImagePositionPatient.__setitem__(2, 3.0 * n + 0.07 * (n == 2))},
    }[request.param]
    return written(tmp_path / "in", **options)


@pytest.fixture
def labels(series: Series) -> np.ndarray:
    """Three lesions numbered 2, 3 and 7, on slices 1 and 3 to 5; no symmetry."""
    labels = np.zeros(series.shape, np.int32)
    labels[1:3, 0, 1], labels[4, 1:4, 3:5], labels[0, 3, 5] = 2, 7, 3
    return labels


def test_a_mask_reads_back_unchanged(series: Series, labels: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "seg.dcm"
    assert write_segmentation(out, (labels > 0).astype(np.uint8), series) == 1
    assert region_names(opened(out), FRAME) == ("Lesion",)
    np.testing.assert_array_equal(read_region(opened(out), "Lesion", series)[0], labels > 0)
    np.testing.assert_array_equal(decode(out, series)[1], labels > 0)


def test_instances_become_segments(series: Series, labels: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "seg.dcm"
    assert write_segmentation(out, labels, series) == 3
    assert region_names(opened(out), FRAME) == ("Lesion 2", "Lesion 3", "Lesion 7")
    second = decode(out, series)
    for number, label in enumerate((2, 3, 7), 1):
        np.testing.assert_array_equal(read_region(opened(out), f"Lesion {label}", series)[0], labels == label)
        np.testing.assert_array_equal(second[number], labels == label)


def test_many_instances_keep_their_numbers(tmp_path: Path) -> None:
    """More than one byte counts."""
    series = written(tmp_path / "in", np.zeros((3, 10, 9), np.int16))
    labels = np.arange(270).reshape(series.shape)
    assert write_segmentation(tmp_path / "seg.dcm", labels, series) == 269
    masks = decode(tmp_path / "seg.dcm", series)
    assert all((masks[label] == (labels == label)).all() for label in range(1, 270))
    mask, _ = read_region(opened(tmp_path / "seg.dcm"), "Lesion 257", series)
    np.testing.assert_array_equal(mask, labels == 257)


def test_it_refers_to_its_source(series: Series, labels: np.ndarray, tmp_path: Path) -> None:
    write_segmentation(tmp_path / "seg.dcm", labels, series, "MANUAL")
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    assert dataset.SOPClassUID == pydicom.uid.SegmentationStorage
    assert (dataset.StudyInstanceUID, dataset.FrameOfReferenceUID) == (STUDY, FRAME)
    assert (dataset.PatientName, dataset.PatientID) == ("Test^One", "1")
    assert dataset.ReferencedSeriesSequence[0].SeriesInstanceUID == series.uid
    assert dataset.SeriesInstanceUID != series.uid
    assert {one.SegmentAlgorithmType for one in dataset.SegmentSequence} == {"MANUAL"}


def test_what_cannot_be_written_or_read_is_refused(tmp_path: Path) -> None:
    series = written(tmp_path / "in")
    out = tmp_path / "seg.dcm"
    with pytest.raises(InputError, match="the mask is empty"):
        write_segmentation(out, np.zeros(series.shape, np.uint8), series)
    assert not out.exists()
    write_segmentation(out, np.ones(series.shape, np.uint8), series)
    with pytest.raises(InputError, match="'Liver': not found; segments on this scan: Lesion"):
        read_region(opened(out), "Liver", series)

    for name, options, message in (
        ("moved", {"origin_mm": (-10, -19, 30)}, "a frame lies 0.00 mm and 0.25 voxels from the nearest slice"),
        ("higher", {"origin_mm": (-10, -20, 31.5)}, "a frame lies 1.50 mm"),
        ("turned", {"orientation": (0, 1, 0, -1, 0, 0)}, "not on the grid"),
        ("finer", {"spacing_mm": (4, 1.9)}, "not on the grid"),
        ("larger", {"stored": np.zeros((6, 4, 6), np.int16)}, "frames of 5x4 do not fit"),
    ):
        other = written(tmp_path / name, **options)
        with pytest.raises(InputError, match=message):
            read_region(opened(out), "Lesion", other)

    dataset = pydicom.dcmread(out)
    dataset.SegmentationType = "FRACTIONAL"
    dataset.save_as(out)
    with pytest.raises(InputError, match="the type is FRACTIONAL"):
        read_region(opened(out), "Lesion", series)


def test_repeated_labels_are_numbered_and_overlapping_segments_kept_apart(tmp_path: Path) -> None:
    """Three segments "Lesion", two of which share four voxels, among others of other names."""
    series = written(tmp_path / "in")
    masks = np.zeros((*SHAPE, 5), np.uint8)
    masks[1:3, 0:2, 0:3, 0], masks[1:3, 1:3, 1:4, 2], masks[5, 3, 4, 3] = 1, 1, 1
    masks[2, 2, 2, 1] = masks[4, :, :, 4] = 1
    names = ["Lesion", "Liver", "Lesion", "Lesion", "Lesion #1"]
    by_highdicom(tmp_path / "seg.dcm", series, masks, names)
    file = opened(tmp_path / "seg.dcm")
    assert region_names(file, FRAME) == ("Lesion", "Liver", "Lesion #1", "Lesion ##1", "Lesion ##2", "Lesion ##3")
    for name, index in (("Lesion ##1", 0), ("Lesion ##2", 2), ("Lesion ##3", 3), ("Liver", 1), ("Lesion #1", 4)):
        mask, warnings = read_region(file, name, series)
        np.testing.assert_array_equal(mask, masks[..., index].T > 0)
        assert warnings == []
    mask, warnings = read_region(file, "Lesion", series)
    np.testing.assert_array_equal(mask, masks[..., [0, 2, 3]].any(-1).T)
    assert [text.split("seg.dcm: ")[1] for text in warnings] == [
        "segment 'Lesion': the label occurs 3 times, numbered 'Lesion ##1' to 'Lesion ##3'; the mask is their union, "
        "in which 4 voxels belong to more than one"
    ]


def test_repeated_labels_of_a_label_map_are_numbered(tmp_path: Path) -> None:
    series = written(tmp_path / "in")
    numbers = np.zeros(SHAPE, np.uint8)
    numbers[1, 0, 1:3], numbers[3, 2, 4] = 1, 2
    by_highdicom(tmp_path / "seg.dcm", series, numbers, ["A", "A"], "LABELMAP")
    file = opened(tmp_path / "seg.dcm")
    assert region_names(file, FRAME) == ("A", "A #1", "A #2")
    for name, wanted in (("A", numbers > 0), ("A #1", numbers == 1), ("A #2", numbers == 2)):
        np.testing.assert_array_equal(read_region(file, name, series)[0], wanted.T)


def test_a_label_map_is_read(tmp_path: Path) -> None:
    """LABELMAP, the newer form: the frame holds the segments' numbers. Made by highdicom alone."""
    series = written(tmp_path / "in")
    numbers = np.zeros(SHAPE, np.uint8)
    numbers[1, 0, 1:3], numbers[3, 2, 4] = 1, 2
    by_highdicom(tmp_path / "seg.dcm", series, numbers, ["A", "B"], "LABELMAP")
    for number, name in ((1, "A"), (2, "B")):
        np.testing.assert_array_equal(read_region(opened(tmp_path / "seg.dcm"), name, series)[0], (numbers == number).T)
