"""Damage found by fuzzing (scripts/fuzz_readers.py): files that once gave a traceback, or ended the process."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sammed3d_ft.errors import InputError
from sammed3d_ft.images.images import read_grid, read_image, read_label

NIFTI = nib.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2.0, 2.0, 2.0, 1.0])).to_bytes()
NIFTI2 = nib.Nifti2Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.diag([2.0, 2.0, 2.0, 1.0])).to_bytes()
NRRD = (
    "NRRD0004\ntype: short\ndimension: 3\nsizes: 5 4 3\nspace: left-posterior-superior\nendian: little\nencoding: raw\n"
    "space directions: (2,0,0) (0,2,0) (0,0,3)\nspace origin: (0,0,0)\n\n"
)
MHA = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
    "TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0\nElementSpacing = 2 2 3\nDimSize = 5 4 3\n"
    "ElementType = MET_SHORT\nElementDataFile = LOCAL\n"
)
VOXELS = bytes(120)


def patched(data: bytes, offset: int, form: str, *values: float) -> bytes:
    """NIfTI fields: dim at 40 (NIfTI-2: 16), xyzt_units at 123, srow_x at 280."""
    return data[:offset] + struct.pack(form, *values) + data[offset + struct.calcsize(form) :]


def changed(header: str, old: str, new: str) -> bytes:
    assert old in header
    return header.replace(old, new).encode() + VOXELS


DAMAGED = {
    "negative.nii": (patched(NIFTI, 40, "<4h", 3, -3, -4, 5), r"contains no voxels \(shape \(-3, -4, 5\)\)"),
    "zero.nii": (patched(NIFTI, 40, "<4h", 3, 3, 0, 5), "contains no voxels"),
    "vast.nii.gz": (gzip.compress(patched(NIFTI, 40, "<4h", 3, 32767, 32767, 32767)), "GiB of memory"),
    "endless.nii": (patched(NIFTI2, 16, "<4q", 3, 1 << 62, 4, 5), "GiB of memory"),
    "larger.nii": (patched(NIFTI, 40, "<4h", 3, 30, 40, 50), r"truncated: its header describes 120\d\d\d bytes"),
    "larger.nii.gz": (gzip.compress(patched(NIFTI, 40, "<4h", 3, 300, 400, 50)), "truncated"),
    "bomb.nii.gz": (gzip.compress(NIFTI + bytes(1 << 27), 1), "unpacks to far more than the 472 bytes"),
    "far.nii": (patched(NIFTI, 280, "<4f", 1e30, 0, 0, 0), r"places voxels 1e\+30 mm away"),
    "axes.mha": (changed(MHA, "NDims = 3", "NDims = 2147483648"), "states 2147483648 dimensions"),
    "axes.nrrd": (changed(NRRD, "dimension: 3", "dimension:43"), "states no dimensions"),
    "sizes.nrrd": (changed(NRRD, "5 4 3", "5 4"), "sizes is '5 4', expected 3 numbers"),
    "vast.nrrd": (changed(NRRD, "5 4 3", "5 2147483647 3"), "GiB of memory"),
    "larger.nrrd": (changed(NRRD, "5 4 3", "5 4 30"), "truncated"),
    "far.nrrd": (changed(NRRD, "(2,0,0)", "(1e30,0,0)"), r"places voxels 1e\+30 mm away"),
    "late.mha": (changed(MHA, "NDims = 3\n", "").replace(b"DimSize", b"NDims = 3\nDimSize"), "NDims must come before"),
    "offset.mha": (changed(MHA, "Offset = 0 0 0", "Offset = 0 0"), "Offset is '0 0', expected 3 numbers"),
    "type.mha": (changed(MHA, "ElementType = MET_SHORT\n", ""), "cannot be read"),
}


@pytest.mark.parametrize("name", DAMAGED)
@pytest.mark.parametrize("read", [read_image, read_label])
def test_damage_is_one_line_and_nothing_is_printed(
    name: str, read: Callable, tmp_path: Path, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    content, says = DAMAGED[name]
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(InputError, match=says) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert capfd.readouterr() == ("", "")
    assert not recwarn.list


def test_an_unknown_unit_and_an_invalid_code_are_as_none_stated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "units.nii"
    path.write_bytes(patched(patched(NIFTI, 123, "B", 0xFF), 254, "<h", 3333))
    nib.load(path)
    assert "nibabel.global" in {record.name for record in caplog.records}  # which says that it changed the code
    caplog.clear()
    for _ in range(2):
        assert read_image(path).array.shape == (3, 4, 5)
    assert {record.name for record in caplog.records} == {"sammed3d_ft.images.images"}
    assert read_grid(path).source.warning is not None


def test_an_axis_longer_than_nifti_1_allows(tmp_path: Path) -> None:
    path = tmp_path / "long.nrrd"
    path.write_bytes(NRRD.replace("5 4 3", "40000 1 2").encode() + bytes(160000))
    image = read_image(path)
    assert image.array.shape == (40000, 1, 2)
    assert image.source.header["sizeof_hdr"] == 540  # NIfTI-2


@pytest.mark.parametrize("special", ["/dev/zero", "pipe"])
def test_what_is_no_regular_file_is_not_opened(special: str, tmp_path: Path) -> None:
    import os

    path = tmp_path / "x.nii"
    if special == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to(special)
    with pytest.raises(InputError, match="is not a regular file"):
        read_image(path)
