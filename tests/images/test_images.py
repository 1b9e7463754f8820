"""Reading and writing: orientation, geometry, scale factors, header, and every kind of bad file."""

from __future__ import annotations

import gzip
import hashlib
import logging
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume, from_array, grid_difference, same_grid
from sammed3d_ft.images.images import geometry_warning, read_image, read_label, write_float, write_mask
from sammed3d_ft.provenance import file_hash
from tests.support.storage_orders import ORIENTATIONS, affine_of, scan, source_vox, stored_as

OBLIQUE = affine_of(Rotation.from_euler("xyz", (12, -8, 20), degrees=True), (4.07, 3.9, 2.0), (-90.5, 33.1, -700.2))


def save(path: Path, array, affine, **fields) -> Path:
    image = nib.Nifti1Image(array, affine)
    for name, value in fields.items():
        image.header[name] = value
    nib.save(image, path)
    return path


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_canonical_array_is_identical_in_all_48_orientations(tmp_path, order, signs):
    array = scan()
    stored, affine = stored_as(array, OBLIQUE, order, signs)
    volume = read_image(save(tmp_path / "scan.nii.gz", stored, affine))
    assert volume.array.flags.c_contiguous
    np.testing.assert_array_equal(volume.array, array)
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-4)  # the header holds float32
    np.testing.assert_array_equal(volume.affine[:3, :3], OBLIQUE[:3, :3].astype(np.float32))


@pytest.mark.parametrize(("order", "signs"), ORIENTATIONS)
def test_a_mask_goes_back_to_the_files_own_grid_and_place(tmp_path, order, signs):
    array = scan()
    stored, affine = stored_as(array, OBLIQUE, order, signs)
    source = save(tmp_path / "scan.nii.gz", stored, affine)
    volume = read_image(source)
    write_mask(tmp_path / "mask.nii.gz", volume.array > 0.5, volume)
    written, original = nib.load(tmp_path / "mask.nii.gz"), nib.load(source)
    np.testing.assert_array_equal(written.affine, original.affine)
    np.testing.assert_array_equal(np.asarray(written.dataobj), stored > 0.5)
    for voxel in (
        (0, 0, 0),
        (4, 3, 2),
        (1, 2, 0),
    ):  # a voxel has the same position in mm in both index systems
        stored_vox = source_vox(volume, voxel)
        np.testing.assert_array_equal(volume.from_source_vox(stored_vox), voxel)
        assert stored[tuple(stored_vox.astype(int))] == array[voxel]
        np.testing.assert_allclose(volume.to_mm(voxel), nib.affines.apply_affine(affine, stored_vox), atol=1e-3)
        np.testing.assert_allclose(volume.to_vox(volume.to_mm(voxel)), voxel, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    quaternion=st.tuples(*[st.floats(-1, 1)] * 4).filter(lambda q: np.linalg.norm(q) > 0.1),
    spacing_mm=st.tuples(*[st.floats(0.5, 6)] * 3),
    orientation=st.sampled_from(ORIENTATIONS),
)
def test_canonical_array_does_not_depend_on_storage_however_oblique(quaternion, spacing_mm, orientation):
    array = scan()
    affine = affine_of(Rotation.from_quat(quaternion), spacing_mm, (1.0, 2.0, 3.0))
    reference = from_array(array, affine)
    volume = from_array(*stored_as(array, affine, *orientation))
    np.testing.assert_array_equal(volume.array, reference.array)
    assert grid_difference(volume, reference) is None


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("degrees", [(0, 0, 45), (45, 0, 45), (0, 45, 0)])
def test_ties_between_axes_do_not_depend_on_storage(orientation, degrees):
    affine = affine_of(Rotation.from_euler("xyz", degrees, degrees=True), (2, 2, 3), (0, 0, 0))
    volume = from_array(*stored_as(scan(), affine, *orientation))
    np.testing.assert_array_equal(volume.array, from_array(scan(), affine).array)


@pytest.mark.parametrize("orientation", ORIENTATIONS[::5])
def test_agrees_with_nibabel_where_axes_are_clear(orientation):
    stored, affine = stored_as(scan(), OBLIQUE, *orientation)
    expected = nib.as_closest_canonical(nib.Nifti1Image(stored, affine))
    volume = from_array(stored, affine)
    np.testing.assert_array_equal(volume.array, expected.get_fdata(dtype=np.float32))
    np.testing.assert_allclose(volume.affine, expected.affine, atol=1e-9)


def test_spacing_is_the_length_of_the_affines_columns():
    np.testing.assert_allclose(from_array(scan(), OBLIQUE).spacing_mm, (4.07, 3.9, 2.0))


def test_sform_is_used_and_a_disagreeing_qform_is_warned_of(tmp_path, caplog):
    image = nib.Nifti1Image(scan(), None)
    image.header.set_sform(np.diag([2, 2, 2, 1]), code=1)
    shifted = np.diag([2.0, 2, 2, 1])
    shifted[0, 3] = 10
    image.header.set_qform(shifted, code=1)
    path = tmp_path / "scan.nii.gz"
    nib.save(nib.Nifti1Image(scan(), None, image.header), path)
    with caplog.at_level(logging.WARNING):
        volume = read_image(path)
    np.testing.assert_array_equal(volume.affine, np.diag([2, 2, 2, 1]))
    assert "5.00 voxels apart" in caplog.text
    write_mask(tmp_path / "mask.nii", volume.array > 0, volume)
    written = nib.load(tmp_path / "mask.nii").header
    np.testing.assert_array_equal(written.get_qform(), shifted)  # both are kept: any program puts mask on image
    assert (written["sform_code"], written["qform_code"]) == (1, 1)


def test_qform_alone_is_used(tmp_path):
    image = nib.Nifti1Image(scan(), None)
    image.header.set_qform(OBLIQUE, code=1)
    nib.save(nib.Nifti1Image(scan(), None, image.header), tmp_path / "scan.nii")
    volume = read_image(tmp_path / "scan.nii")
    np.testing.assert_allclose(volume.affine, OBLIQUE, atol=1e-4)
    assert geometry_warning(volume.source.header) is None
    write_mask(tmp_path / "mask.nii", volume.array > 0, volume)
    written = nib.load(tmp_path / "mask.nii").header
    assert (written["sform_code"], written["qform_code"]) == (0, 1)
    np.testing.assert_array_equal(written.get_qform(), nib.load(tmp_path / "scan.nii").header.get_qform())


def test_no_orientation_at_all_is_warned_of(tmp_path):
    header = nib.Nifti1Header()
    header.set_data_shape((5, 4, 3))
    header.set_zooms((2, 2, 3))
    nib.save(nib.Nifti1Image(scan(), None, header), tmp_path / "scan.nii")
    volume = read_image(tmp_path / "scan.nii")
    assert "left and right may be swapped" in geometry_warning(volume.source.header)
    write_mask(tmp_path / "mask.nii", volume.array > 0, volume)
    written = nib.load(tmp_path / "mask.nii").header
    assert (written["sform_code"], written["qform_code"]) == (0, 0)
    assert same_grid(read_label(tmp_path / "mask.nii"), volume)


def test_units_other_than_mm_are_warned_of():
    header = nib.Nifti1Header()
    header.set_sform(np.eye(4), 1)
    assert geometry_warning(header) is None
    header.set_xyzt_units("meter")
    assert "'meter'" in geometry_warning(header)


@pytest.mark.parametrize("extra", [(1,), (1, 1)])
def test_a_single_fourth_frame_is_dropped(tmp_path, extra):
    path = save(tmp_path / "scan.nii.gz", scan().reshape(5, 4, 3, *extra), OBLIQUE)
    volume = read_image(path)
    np.testing.assert_array_equal(volume.array, scan())
    write_mask(tmp_path / "mask.nii.gz", volume.array > 0, volume)
    assert nib.load(tmp_path / "mask.nii.gz").shape == (5, 4, 3)


def test_scale_factors_are_applied_once_and_not_inherited_by_masks(tmp_path):
    stored = np.arange(60, dtype=np.int16).reshape(5, 4, 3)
    header = nib.Nifti1Header()
    header.set_data_dtype(np.int16)
    image = nib.Nifti1Image(stored, np.eye(4), header)
    image.header.set_slope_inter(0.5, -3)
    with nib.openers.Opener(tmp_path / "scan.nii", "wb") as file:  # raw: nibabel's own saving would rescale
        image.header["vox_offset"], image.header["magic"] = 352, b"n+1"
        image.header.set_sform(np.eye(4), 1)
        file.write(image.header.binaryblock + b"\0" * 4 + stored.tobytes("F"))
    volume = read_image(tmp_path / "scan.nii")
    assert volume.array.dtype == np.float32
    np.testing.assert_array_equal(volume.array, stored * 0.5 - 3)
    write_mask(tmp_path / "mask.nii", stored.astype(np.int32), volume)
    written = nib.load(tmp_path / "mask.nii")
    assert written.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(np.asarray(written.dataobj), stored)


def test_big_endian_files_are_read(tmp_path):
    image = nib.Nifti1Image(scan(), OBLIQUE, nib.Nifti1Header(endianness=">"))
    nib.save(image, tmp_path / "scan.nii")
    assert nib.load(tmp_path / "scan.nii").header.endianness == ">"
    volume = read_image(tmp_path / "scan.nii")
    assert volume.array.dtype.isnative
    np.testing.assert_array_equal(volume.array, scan())
    write_mask(tmp_path / "mask.nii", volume.array > 0, volume)
    np.testing.assert_array_equal(read_label(tmp_path / "mask.nii").array, scan() > 0)


def test_nifti2_stays_nifti2(tmp_path):
    nib.save(nib.Nifti2Image(scan(), OBLIQUE), tmp_path / "scan.nii.gz")
    volume = read_image(tmp_path / "scan.nii.gz")
    write_mask(tmp_path / "mask.nii.gz", volume.array > 0, volume)
    written = nib.load(tmp_path / "mask.nii.gz")
    assert isinstance(written, nib.Nifti2Image)
    np.testing.assert_array_equal(written.affine, nib.load(tmp_path / "scan.nii.gz").affine)


def test_header_keeps_geometry_and_units_but_no_texts(tmp_path):
    image = nib.Nifti1Image(scan(), OBLIQUE)
    image.set_sform(OBLIQUE, code=3)
    image.set_qform(OBLIQUE, code=1)
    image.header.set_xyzt_units("mm", "sec")
    image.header["descrip"], image.header["db_name"], image.header["cal_max"] = b"a note", b"DOE^JOHN", 7
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"patient DOE"))
    nib.save(image, tmp_path / "scan.nii.gz")
    volume = read_image(tmp_path / "scan.nii.gz")
    write_float(tmp_path / "map.nii.gz", volume.array, volume)
    written, original = nib.load(tmp_path / "map.nii.gz").header, nib.load(tmp_path / "scan.nii.gz").header
    for field in (
        "sform_code",
        "qform_code",
        "xyzt_units",
        "pixdim",
        "quatern_b",
        "qoffset_x",
        "srow_x",
        "srow_z",
    ):
        np.testing.assert_array_equal(written[field], original[field])
    assert (written["sform_code"], written["qform_code"]) == (3, 1)
    assert written["cal_max"] == 0
    assert b"DOE" not in gzip.decompress((tmp_path / "map.nii.gz").read_bytes())
    np.testing.assert_array_equal(read_image(tmp_path / "map.nii.gz").array, scan())


@pytest.mark.parametrize(
    ("highest", "lowest", "stored"),
    [(255, 0, np.uint8), (256, 0, np.int16), (5, -1, np.int16), (40000, 0, np.int32)],
)
def test_masks_take_the_smallest_type_that_fits(tmp_path, highest, lowest, stored):
    volume = from_array(scan(), OBLIQUE)
    array = np.zeros(volume.array.shape, np.int64)
    array[0, 0, 0], array[1, 1, 1] = highest, lowest
    write_mask(tmp_path / "map.nii.gz", array, volume)
    written = nib.load(tmp_path / "map.nii.gz")
    assert written.get_data_dtype() == stored
    np.testing.assert_array_equal(np.asarray(written.dataobj), array)


def test_equal_masks_are_equal_files_and_replacing_leaves_nothing_behind(tmp_path):
    volume = from_array(scan(), OBLIQUE)
    write_mask(tmp_path / "new" / "a.nii.gz", volume.array > 0, volume)
    write_mask(tmp_path / "new" / "b.nii.gz", volume.array > 9, volume)
    write_mask(tmp_path / "new" / "b.nii.gz", volume.array > 0, volume)
    assert (tmp_path / "new" / "a.nii.gz").read_bytes() == (tmp_path / "new" / "b.nii.gz").read_bytes()
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    volume = from_array(scan(), OBLIQUE)
    write_mask(tmp_path / "a.nii.gz", volume.array > 0, volume)
    before = (tmp_path / "a.nii.gz").read_bytes()

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(nib.Nifti1Image, "to_stream", full)
    with pytest.raises(InputError, match=r"a\.nii\.gz: cannot be written \(No space left on device\)"):
        write_mask(tmp_path / "a.nii.gz", volume.array > 5, volume)
    assert (tmp_path / "a.nii.gz").read_bytes() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_write_refuses_what_does_not_fit(tmp_path):
    volume = from_array(scan(), OBLIQUE)
    for name in ("a.png", "a.mhd"):
        with pytest.raises(InputError, match=r"supported output formats are \.nii\.gz, \.nii, \.nrrd, \.mha$"):
            write_mask(tmp_path / name, volume.array > 0, volume)
    with pytest.raises(ValueError, match="does not fit the grid"):
        write_mask(tmp_path / "a.nii", np.zeros((3, 4, 5), bool), volume)
    with pytest.raises(TypeError, match="write_float"):
        write_mask(tmp_path / "a.nii", volume.array, volume)


def bad_files(folder: Path) -> dict[str, Path]:
    """One file of each kind that must be refused, keyed by the expected message."""
    whole = save(folder / "whole.nii.gz", np.random.default_rng(1).normal(size=(20, 20, 20)), np.eye(4))
    plain = save(folder / "whole.nii", np.random.default_rng(1).normal(size=(20, 20, 20)), np.eye(4))
    truncated_gz, truncated, garbage = folder / "t.nii.gz", folder / "t.nii", folder / "g.nii.gz"
    truncated_gz.write_bytes(whole.read_bytes()[:-3000])
    truncated.write_bytes(plain.read_bytes()[:-3000])
    garbage.write_bytes(b"this is no gzip file at all")
    corrupt = folder / "c.nii.gz"
    content = bytearray(whole.read_bytes())
    content[3000:3100] = b"\xff" * 100
    corrupt.write_bytes(bytes(content))
    text = folder / "x.nii"
    text.write_text("text " * 200)
    (folder / "scan.png").write_bytes(b"a picture")
    (folder / "empty.nii").write_bytes(b"")
    (folder / "series.nii").mkdir()
    with_nan = np.zeros((5, 4, 3), np.float32)
    with_nan[0, 0, :2], with_nan[1, 1, 1] = np.nan, np.inf
    singular = nib.Nifti1Image(scan(), None)
    singular.header["sform_code"], singular.header["srow_x"] = 1, [1, 0, 0, 0]
    nib.save(nib.Nifti1Image(scan(), None, singular.header), folder / "singular.nii")
    return {
        "no such file": folder / "none.nii.gz",
        "ends too early": truncated_gz,
        "is truncated": truncated,
        "is not a NIfTI file": garbage,
        "cannot be read": corrupt,
        "not a NIfTI file ": text,
        "not a NIfTI file": folder / "empty.nii",
        "expected a .nii": folder / "scan.png",
        "is a folder": folder / "series.nii",
        "is 2D": save(folder / "2d.nii", scan()[0], np.eye(4)),
        "several frames": save(folder / "4d.nii", np.zeros((5, 4, 3, 2), np.float32), np.eye(4)),
        "2 NaN and 1 infinite values among 60": save(folder / "nan.nii", with_nan, np.eye(4)),
        "expected real numbers": save(folder / "complex.nii", scan().astype(np.complex64), np.eye(4)),
        "maps the volume onto": folder / "singular.nii",
    }


def test_each_bad_file_gives_one_clear_line(tmp_path):
    for message, path in bad_files(tmp_path).items():
        with pytest.raises(InputError) as error:
            read_image(path, case="P7")
        line = str(error.value)
        assert message in line
        assert line.startswith(f"case P7: {path}")


def test_labels_are_whole_numbers_of_the_smallest_type(tmp_path):
    values = np.array([0, 1, 2, 255] * 15).reshape(5, 4, 3)
    for stored in (np.uint8, np.int16, np.float32, np.float64):
        label = read_label(save(tmp_path / "label.nii.gz", values.astype(stored), OBLIQUE))
        assert label.array.dtype == np.uint8
        np.testing.assert_array_equal(label.array, values)
    label = read_label(save(tmp_path / "label.nii.gz", (values * 300).astype(np.int32), OBLIQUE))
    assert label.array.dtype == np.int32
    assert label.array.max() == 76500


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 0.5, 1], "20 voxels hold fractions (such as 0.5)"),
        ([0, -1, 1], "20 voxels hold a negative label (down to -1)"),
        ([0, np.nan, 1], "20 NaN"),
    ],
)
def test_what_is_no_label_is_refused(tmp_path, values, message):
    array = np.broadcast_to(np.array(values, np.float32), (5, 4, 3)).copy()
    with pytest.raises(InputError) as error:
        read_label(save(tmp_path / "label.nii.gz", array, OBLIQUE))
    assert message in str(error.value)


def test_arrays_in_memory_are_checked():
    with pytest.raises(InputError, match="expected a 3D array"):
        from_array(np.zeros((3, 3)), np.eye(4))
    with pytest.raises(InputError, match="1 NaN"):
        from_array(np.where(np.arange(8).reshape(2, 2, 2) == 3, np.nan, 1.0), np.eye(4))
    with pytest.raises(InputError, match="finite 4x4"):
        from_array(np.zeros((2, 2, 2)), np.full((4, 4), np.nan))
    assert from_array(np.zeros((2, 2, 2), bool), np.eye(4)).array.dtype == np.uint8


def test_a_sheared_affine_in_memory_is_written_with_its_sform(tmp_path):
    sheared = np.eye(4)
    sheared[0, 2] = 0.3  # gantry tilt
    volume = from_array(scan(), sheared)
    write_mask(tmp_path / "mask.nii", volume.array > 0, volume)
    np.testing.assert_allclose(nib.load(tmp_path / "mask.nii").affine, sheared, atol=1e-6)


def test_grid_differences_are_said_in_one_phrase():
    reference = from_array(scan(), np.diag([2.0, 2, 2, 1]))

    def difference(affine, shape=(5, 4, 3)):
        return grid_difference(from_array(scan(shape), affine), reference)

    shifted, turned = np.diag([2.0, 2, 2, 1]), np.eye(4)
    shifted[1, 3] = 3
    turned[:3, :3] = 2 * Rotation.from_euler("z", 5, degrees=True).as_matrix()
    assert difference(np.diag([2.0, 2, 2, 1])) is None
    assert difference(np.diag([2.0, 2, 2, 1]), (5, 4, 4)) == "shape 5x4x4 against 5x4x3 (axes in RAS+ order)"
    assert difference(shifted) == "shifted by (0.00, 3.00, 0.00) mm, 1.50 voxels"
    assert difference(np.diag([2.0, 2, 2.5, 1])) == "voxel size 2x2x2.5 against 2x2x2 mm"
    assert "axes point in other directions" in difference(turned)
    just_within, just_beyond = np.diag([2.0, 2, 2, 1]), np.diag([2.0, 2, 2, 1])
    just_within[0, 3], just_beyond[0, 3] = 0.0198, 0.0202  # of 2 mm voxels: 0.0099 and 0.0101
    assert difference(just_within) is None
    assert difference(just_beyond) is not None


def test_real_scan_keeps_its_codes_and_place(real_data, tmp_path):
    folder = real_data / "fdg_pet_sarcoma" / "STS_001"
    pet, label = read_image(folder / "PET_image.nii.gz"), read_label(folder / "PET_mask.nii.gz")
    assert same_grid(pet, label)
    assert label.array.sum() == 5095
    assert not same_grid(pet, read_label(folder / "CT_mask.nii.gz"))
    write_mask(tmp_path / "mask.nii.gz", label.array, pet)
    written, original = nib.load(tmp_path / "mask.nii.gz"), nib.load(folder / "PET_mask.nii.gz")
    np.testing.assert_array_equal(np.asarray(written.dataobj), np.asarray(original.dataobj))
    np.testing.assert_array_equal(written.affine, original.affine)
    assert (written.header["sform_code"], written.header["qform_code"]) == (0, 1)
    expected = nib.as_closest_canonical(nib.load(folder / "PET_image.nii.gz"))
    np.testing.assert_array_equal(pet.array, expected.get_fdata(dtype=np.float32))
    np.testing.assert_array_equal(pet.affine, expected.affine)


@pytest.mark.parametrize("read", [read_image, read_label])
def test_one_changed_byte_of_a_compressed_file_is_noticed(tmp_path: Path, read: Callable[[Path], Volume]) -> None:
    """Stored without compression inside gzip, so that the byte changes a voxel and nothing else."""
    plain = nib.Nifti1Image(np.arange(4000, dtype=np.int16).reshape(10, 20, 20), np.eye(4)).to_bytes()
    path = tmp_path / "a.nii.gz"
    whole = gzip.compress(plain, compresslevel=0)
    path.write_bytes(whole)
    assert read(path).array[0, 0, 1] == 1
    damaged = bytearray(whole)
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(bytes(damaged))
    with pytest.raises(InputError, match="cannot be read"):
        read(path)


def test_the_hash_of_a_mhd_is_of_its_voxels_too(tmp_path: Path) -> None:
    hashes = []
    for value in (1, 2):
        sitk.WriteImage(sitk.GetImageFromArray(np.full((3, 4, 5), value, np.int16)), str(tmp_path / "a.mhd"))
        hashes.append(file_hash(tmp_path / "a.mhd"))
    assert hashes[0] != hashes[1]
    plain = tmp_path / "a.raw"
    assert file_hash(plain) == hashlib.sha256(plain.read_bytes()).hexdigest()
