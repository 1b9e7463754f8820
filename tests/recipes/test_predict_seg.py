"""Prediction straight to a DICOM SEG, on series made for the test."""

from __future__ import annotations

import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prompts import Click, write_clicks
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.images import read_image, write_mask
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.weights import save_safetensors
from sammed3d_ft.recipes import import_dicom
from sammed3d_ft.recipes.predict import Outputs, run
from tests.support.synthetic_dicom import write_series


@pytest.fixture
def scan(tmp_path: Path) -> tuple[Path, Path, Path]:
    """A DICOM folder with two PET series, the NIfTI of one, and weights."""
    values = np.random.default_rng(0).integers(0, 3000, (8, 9, 10)).astype(np.int16)
    write_series(tmp_path / "dicom" / "one", values, uid="1.2.3.1")
    write_series(tmp_path / "dicom" / "two", values, uid="1.2.3.2", origin_mm=(-10, -20, 33))
    import_dicom.run(tmp_path / "dicom", tmp_path / "in", ["1.2.3.1"])
    save_safetensors(tmp_path / "model.safetensors", seeded_model("mini", 0).state_dict(), {})
    return tmp_path / "dicom", tmp_path / "in" / "PT.nii.gz", tmp_path / "model.safetensors"


def start_with(folder: Path, pet: Path) -> Path:
    volume = read_image(pet)
    mask = np.zeros(volume.array.shape, np.uint8)
    mask[1:3, 2:5, 3:5], mask[6:9, 5:8, 1:3] = 4, 9
    write_mask(folder / "start.nii.gz", mask, volume)
    return folder / "start.nii.gz"


def test_the_segments_are_the_instance_map_on_the_series_that_was_named(scan, tmp_path):
    dicom, pet, weights = scan
    affine = nib.load(pet).affine
    write_clicks(tmp_path / "c.json", [Click(tuple(affine[:3, 3].tolist()), 1, 2)])
    seg = tmp_path / "seg" / "lesions.dcm"
    outputs = Outputs(tmp_path / "mask.nii.gz", tmp_path / "inst.nii.gz", seg=seg)
    record = run(
        pet, tmp_path / "c.json", weights, outputs,
        start=start_with(tmp_path, pet), source=dicom, series="1.2.3.1", device="cpu",
    )  # fmt: skip
    assert record["outputs"]["seg"] == str(seg)
    numbered = np.asarray(nib.load(outputs.instances).dataobj)
    assert {4, 9} <= set(np.unique(numbered))
    seg.rename(dicom / "seg.dcm")
    back = tmp_path / "back"
    names = {f"Lesion {number}": number for number in np.unique(numbered) if number}
    import_dicom.run(dicom, back, ["1.2.3.1"], roi=list(names))
    for name, number in names.items():
        found = nib.load(back / f"mask_{name.replace(' ', '_')}.nii.gz")
        np.testing.assert_array_equal(found.affine, affine)
        np.testing.assert_array_equal(np.asarray(found.dataobj), numbered == number)


@pytest.mark.parametrize(
    ("series", "says"),
    [
        (None, "contains 2 PET series; choose one with --series"),
        ("1.2.3.2", "PT.nii.gz: not on the grid of series 1.2.3.2: shifted by"),
        ("1.2.3.9", "not found; PET and CT series found"),
    ],
)
def test_another_series_is_refused_before_anything_is_written(scan, tmp_path, series, says):
    dicom, pet, weights = scan
    outputs = Outputs(tmp_path / "mask.nii.gz", seg=tmp_path / "seg.dcm")
    with pytest.raises(InputError, match=says):
        run(pet, None, weights, outputs, start=start_with(tmp_path, pet), source=dicom, series=series, device="cpu")
    assert not outputs.mask.exists()


def test_nothing_found_is_no_segmentation_and_no_failure(scan, tmp_path, caplog):
    dicom, pet, _ = scan
    model = seeded_model("mini", 0)
    last = model.mask_decoder.output_hypernetworks_mlps[0].layers[-1]
    for parameter in last.parameters():
        parameter.detach().zero_()  # logits of 0 everywhere: no lesion
    save_safetensors(tmp_path / "empty.safetensors", model.state_dict(), {})
    outputs = Outputs(tmp_path / "mask.nii.gz", seg=tmp_path / "seg.dcm")
    with caplog.at_level(logging.WARNING):
        record = run(
            pet, None, tmp_path / "empty.safetensors", outputs,
            start=start_with(tmp_path, pet), source=dicom, series="1.2.3.1", device="cpu",
            obey=False,  # an obeyed click leaves at least its own voxel
        )  # fmt: skip
    assert "seg" not in record["outputs"]
    assert not outputs.seg.exists()
    assert "the mask is empty and a DICOM SEG cannot be" in caplog.text
    assert outputs.mask.exists()
