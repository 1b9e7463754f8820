"""NRRD and MetaImage against SimpleITK itself and hand-written files: values, places, and every kind of bad file."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import same_grid
from sammed3d_ft.images.images import image_stem, read_grid, read_image, read_label, write_float, write_mask
from tests.support.storage_orders import ORIENTATIONS, affine_of, scan, source_vox, stored_as

OBLIQUE = affine_of(Rotation.from_euler("xyz", (12, -8, 20), degrees=True), (4.07, 3.9, 2.0), (-90.5, 33.1, -700.2))
TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def save_itk(path: Path, array: np.ndarray, affine: np.ndarray, compressed: bool = True) -> Path:
    """Written as by another program: `affine` (RAS) in ITK's convention."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.transpose(2, 1, 0)))
    lps = TO_LPS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path), compressed)
    return path


def write_nrrd(path: Path, fields: str, array: np.ndarray) -> Path:
    """A NRRD file spelled out, so that the reader is not tested by the writer of its own library."""
    header = f"NRRD0004\ntype: short\nendian: little\nencoding: raw\n{fields}\n\n"
    path.write_bytes(header.encode() + array.astype("<i2").tobytes(order="F"))
    return path


@pytest.mark.parametrize("suffix", [".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS[::7])
def test_one_scan_is_the_same_in_every_format_and_lies_where_itk_puts_it(tmp_path, suffix, order, signs):
    stored, affine = stored_as(scan(), OBLIQUE, order, signs)
    nib.save(nib.Nifti1Image(stored, affine), tmp_path / "scan.nii.gz")
    nifti = read_image(tmp_path / "scan.nii.gz")
    file = save_itk(tmp_path / f"scan{suffix}", stored, affine)
    volume = read_image(file)
    np.testing.assert_array_equal(volume.array, scan())
    np.testing.assert_array_equal(volume.array, nifti.array)
    assert volume.array.dtype == nifti.array.dtype
    assert volume.array.flags.c_contiguous
    assert same_grid(volume, nifti)
    assert same_grid(read_grid(file), volume)
    image = sitk.ReadImage(str(file))
    for voxel in ((0, 0, 0), (4, 3, 2), (1, 2, 0)):
        index = source_vox(volume, voxel).astype(int).tolist()
        assert image.GetPixel(index) == volume.array[voxel]
        lps = np.array(image.TransformIndexToPhysicalPoint(index))
        np.testing.assert_allclose(volume.to_mm(voxel), lps * (-1, -1, 1), atol=1e-9)
        np.testing.assert_allclose(volume.to_mm(voxel), (OBLIQUE @ (*voxel, 1))[:3], atol=1e-5)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("source", [".nii.gz", ".nrrd", ".mha"])
def test_a_mask_goes_back_in_the_format_asked_for_onto_the_sources_grid(tmp_path, source, suffix):
    stored, affine = stored_as(scan(), OBLIQUE, (2, 0, 1), (-1, 1, -1))
    path = tmp_path / f"scan{source}"
    if source == ".nii.gz":
        nib.save(nib.Nifti1Image(stored, affine), path)
    else:
        save_itk(path, stored, affine)
    volume = read_image(path)
    write_mask(tmp_path / f"mask{suffix}", volume.array > 0.5, volume)
    given, written = sitk.ReadImage(str(path)), sitk.ReadImage(str(tmp_path / f"mask{suffix}"))
    assert written.GetPixelID() == sitk.sitkUInt8
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(given) > 0.5)
    assert written.GetSize() == given.GetSize()
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(written, what)(), getattr(given, what)(), rtol=1e-6, atol=1e-5)
    assert same_grid(read_label(tmp_path / f"mask{suffix}"), volume)
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted([path.name, f"mask{suffix}"])
    write_mask(tmp_path / f"again{suffix}", volume.array > 0.5, volume)
    assert (tmp_path / f"again{suffix}").read_bytes() == (tmp_path / f"mask{suffix}").read_bytes()
    write_float(tmp_path / f"float{suffix}", volume.array, volume)
    np.testing.assert_array_equal(read_image(tmp_path / f"float{suffix}").array, volume.array)


def test_a_nifti_mask_lies_on_the_grid_of_a_nrrd_scan(tmp_path):
    stored, affine = stored_as(scan(), OBLIQUE, (1, 2, 0), (1, -1, -1))
    volume = read_image(save_itk(tmp_path / "scan.nrrd", stored, affine))
    write_mask(tmp_path / "mask.nii.gz", volume.array > 0.5, volume)
    written = nib.load(tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), stored > 0.5)
    np.testing.assert_allclose(written.affine, affine, atol=1e-4)
    np.testing.assert_allclose(written.header.get_qform(), affine, atol=1e-3)


@pytest.mark.parametrize(
    ("space", "signs"),
    [("right-anterior-superior", (1, 1, 1)), ("left-posterior-superior", (-1, -1, 1)), ("LAS", (-1, 1, 1))],
)
def test_the_spaces_of_nrrd_are_distinguished(tmp_path, space, signs):
    values = np.arange(24).reshape(2, 3, 4)
    fields = (
        f"dimension: 3\nsizes: 2 3 4\nspace: {space}\n"
        "space directions: (2,0,0) (0,3,0) (0,0,4)\nspace origin: (10,20,30)"
    )
    volume = read_image(write_nrrd(tmp_path / "scan.nrrd", fields, values))
    for voxel in np.ndindex(2, 3, 4):
        place_mm = (np.array((10, 20, 30)) + np.array(voxel) * (2, 3, 4)) * signs
        assert volume.array[tuple(np.rint(volume.to_vox(place_mm)).astype(int))] == values[voxel]
    assert volume.source.warning is None


def test_a_nrrd_without_a_space_is_warned_of(tmp_path, caplog):
    fields = "dimension: 3\nsizes: 2 3 4\nspacings: 2 3 4"
    with caplog.at_level(logging.WARNING):
        volume = read_image(write_nrrd(tmp_path / "scan.nrrd", fields, np.zeros((2, 3, 4))))
    assert "states no patient space" in caplog.text
    assert "states no patient space" in volume.source.warning


def test_a_single_frame_is_taken_and_labels_keep_their_integers(tmp_path):
    values = np.arange(24).reshape(2, 3, 4)
    fields = (
        "dimension: 4\nsizes: 1 2 3 4\nkinds: list domain domain domain\nspace: LPS\n"
        "space directions: none (2,0,0) (0,3,0) (0,0,4)\nspace origin: (0,0,0)"
    )
    label = read_label(write_nrrd(tmp_path / "a.seg.nrrd", fields, values))
    assert label.array.dtype == np.uint8
    np.testing.assert_array_equal(label.source.from_canonical(label.array), values)
    image = sitk.JoinSeries([sitk.GetImageFromArray(values.transpose(2, 1, 0).astype(np.int32))])
    sitk.WriteImage(image, str(tmp_path / "four.mha"))
    four = read_label(tmp_path / "four.mha")
    np.testing.assert_array_equal(four.source.from_canonical(four.array), values)


def bad_files(folder: Path) -> list[tuple[str, Path]]:
    values = np.random.default_rng(1).normal(size=(20, 20, 20)).astype(np.float32)
    bad = []
    for suffix in (".nrrd", ".mha"):
        for compressed in (True, False):
            whole = save_itk(folder / f"whole{suffix}", values, OBLIQUE, compressed).read_bytes()
            for name, content, says in (
                ("short", whole[:-2000], "; copy or export it again"),
                ("header", whole[:150], "; copy or export it again"),
            ):
                bad.append((says, folder / f"{name}{compressed:d}{suffix}"))
                bad[-1][1].write_bytes(content)
            if compressed:
                damaged = bytearray(whole)
                damaged[len(whole) // 2] ^= 0xFF  # SimpleITK reads such a MetaImage without a warning
                bad.append(("cannot be read", folder / f"damaged{suffix}"))
                bad[-1][1].write_bytes(bytes(damaged))
        bad.append(("again" if suffix == ".nrrd" else "is not a MetaImage file", folder / f"text{suffix}"))
        bad[-1][1].write_text("text\n" * 200)
    save_itk(folder / "alone.mhd", values, OBLIQUE)
    (folder / "alone.zraw").unlink()
    bad.append(("voxel file alone.zraw is missing", folder / "alone.mhd"))
    save_itk(folder / "part.mhd", values, OBLIQUE, compressed=False)
    (folder / "part.raw").write_bytes(values.tobytes()[:-4])
    bad.append(("is truncated", folder / "part.mhd"))
    at = "space: LPS\nspace directions: {} (0,0,4)\nspace origin: (0,0,0)"
    bad += [
        ("is 2D", write_nrrd(folder / "2d.nrrd", "dimension: 2\nsizes: 4 6", np.zeros(24))),
        ("several frames", write_nrrd(folder / "4d.nrrd", "dimension: 4\nsizes: 2 3 4 2", np.zeros(48))),
        (
            "2 values per voxel",
            write_nrrd(
                folder / "vector.nrrd",
                "dimension: 4\nsizes: 2 2 3 4\nkinds: list domain domain domain\n" + at.format("none (2,0,0) (0,3,0)"),
                np.zeros(48),
            ),
        ),
        (
            "maps the volume onto",
            write_nrrd(
                folder / "flat.nrrd", "dimension: 3\nsizes: 2 3 4\n" + at.format("(2,0,0) (2,0,0)"), np.zeros(24)
            ),
        ),
    ]
    values[3, 4, 5] = np.nan
    bad.append(("1 NaN", save_itk(folder / "nan.mha", values, OBLIQUE)))
    return bad


def test_each_bad_file_gives_one_clear_line_and_nothing_else(tmp_path, capfd):
    for says, path in bad_files(tmp_path):
        with pytest.raises(InputError) as error:
            read_image(path, case="P7")
        line = str(error.value)
        assert says in line, (path.name, line)
        assert line.startswith(f"case P7: {path}: ")
    assert capfd.readouterr().err == ""  # the libraries' own prints


def test_stems_name_cases():
    assert [image_stem(Path(name)) for name in ("a.nii.gz", "B.NRRD", "c.d.mha", "e.mhd", "f.nii")] == [
        "a",
        "B",
        "c.d",
        "e",
        "f",
    ]
    assert [image_stem(Path(name)) for name in (".a.nii.gz", "a.json", "nii")] == [None] * 3
