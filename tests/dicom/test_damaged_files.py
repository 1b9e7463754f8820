"""Damage found by fuzzing (scripts/fuzz_readers.py): files that once gave a traceback."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset

from sammed3d_ft.dicom.folder import choose_series, scan_folder
from sammed3d_ft.dicom.series import order_slices
from sammed3d_ft.errors import InputError
from sammed3d_ft.recipes.import_dicom import run
from tests.support.synthetic_dicom import by_highdicom, write_rtstruct, write_series

SQUARE = np.array([(-9, -18, 36), (-5, -18, 36), (-5, -10, 36), (-9, -10, 36)], float)


def bytes_changed(old: bytes, new: bytes) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = path.read_bytes()
        assert old in content
        path.write_bytes(content.replace(old, new, 1))

    return change


def line_broken(element: bytes) -> Callable[[Path], None]:
    """A line break in the value of an element, which is given by its tag and VR."""

    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[content.index(element) + len(element) + 6] = ord("\n")
        path.write_bytes(content)

    return change


def dataset_changed(edit: Callable[[Dataset], object]) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        dataset = pydicom.dcmread(path)
        edit(dataset)
        dataset.save_as(path, enforce_file_format=True)

    return change


ROWS = b"\x28\x00\x10\x00US\x02\x00"
WEIGHT = b"\x10\x00\x30\x10DS\x04\x0070.0"
DAMAGED: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "unknown VR": ("slice", bytes_changed(ROWS, ROWS.replace(b"US", b"ZZ")), "cannot be read as DICOM|no valid Rows"),
    "wrong size": ("slice", bytes_changed(WEIGHT, WEIGHT.replace(b"DS", b"FD")), "cannot be read as DICOM"),
    "slope of unknown type": (
        "slice",
        bytes_changed(b"\x28\x00\x53\x10DS", b"\x28\x00\x53\x10D "),
        "Unknown Value Representation",
    ),
    "line break in a UID": ("slice", line_broken(b"\x20\x00\x0e\x00UI"), "contains 2 PET series"),
    "endless element": (
        "slice",
        bytes_changed(b"\x10\x00\x30\x10DS\x04\x00", b"\x10\x00\x30\x10UN\x00\x00\xf0\xff\xff\x7f"),
        "contains 2 PET series",  # the rest of the header is swallowed, the series' name included
    ),
    "vast slices": ("all", bytes_changed(ROWS + b"\x04\x00", ROWS + b"\xff\xff"), "do not match|cannot be read"),
    "region without number": (
        "rtstruct",
        dataset_changed(lambda one: delattr(one.StructureSetROISequence[0], "ROINumber")),
        "region 'GTV': cannot be read as DICOM",
    ),
    "contours without region": (
        "rtstruct",
        dataset_changed(lambda one: delattr(one.ROIContourSequence[0], "ReferencedROINumber")),
        "region 'GTV': cannot be read as DICOM",
    ),
    "regions as text": ("rtstruct", bytes_changed(b"\x06\x30\x20\x00SQ", b"\x06\x30\x20\x00UT"), "cannot be read"),
    "contour at infinity": ("rtstruct", bytes_changed(b"-9.0000", b"1e300  "), "without a place in the patient"),
    "segment without number": (
        "seg",
        dataset_changed(lambda one: delattr(one.SegmentSequence[0], "SegmentNumber")),
        r"seg\.dcm: cannot be read as DICOM",
    ),
    "frames without segment": (
        "seg",
        dataset_changed(
            lambda one: [
                group.pop("SegmentIdentificationSequence", None)
                for group in (*one.PerFrameFunctionalGroupsSequence, *one.SharedFunctionalGroupsSequence)
            ]
        ),
        "segment 'GTV': cannot be read as DICOM",
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.filterwarnings("ignore:Invalid value for VR", "ignore:Unknown VR", "ignore:The value length")
def test_damage_is_one_line_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    kind, damage, says = DAMAGED[name]
    folder = tmp_path / "dicom"
    write_series(folder)
    series = order_slices(choose_series(scan_folder(folder), "PT"))
    paths = {"slice": [series.files[0].path], "all": [file.path for file in series.files]}
    if kind == "rtstruct":
        write_rtstruct(folder / "rtstruct.dcm", {"GTV": [SQUARE]})
        paths[kind] = [folder / "rtstruct.dcm"]
    elif kind == "seg":
        mask = np.zeros((6, 4, 5), np.uint8)
        mask[2, 1, 1] = 1
        by_highdicom(folder / "seg.dcm", series, mask, ["GTV"])
        paths[kind] = [folder / "seg.dcm"]
    roi = ["GTV"] if kind in ("rtstruct", "seg") else []
    run(folder, tmp_path / "good", roi=roi)
    for path in paths[kind]:
        damage(path)
    with pytest.raises(InputError, match=says):
        run(folder, tmp_path / "out", roi=roi)
    assert not (tmp_path / "out").exists()
