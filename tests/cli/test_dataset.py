"""`manifest build` and `check` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sammed3d_ft.dataset.manifest import read_manifest
from sammed3d_ft.errors import InputError
from tests.support.command import command


@pytest.fixture
def folder(tmp_path) -> Path:
    """Ten cases of five patients as folders."""
    for number in range(10):
        for name, array in (
            ("pet", np.full((3, 4, 5), 1, np.float32)),
            ("seg", np.ones((3, 4, 5), np.uint8)),
        ):
            array[0, 0, 0] += number if name == "pet" else 0
            array[1, 1, 1] = 0
            path = tmp_path / "data" / f"p{number // 2}" / f"s{number}" / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            nib.save(nib.Nifti1Image(array, np.eye(4)), path)
    return tmp_path / "data"


def test_build_then_check(folder, tmp_path):
    manifest = tmp_path / "m.json"
    pattern = ("--pattern", "{group}/{id}/pet.nii.gz", "--label", "{group}/{id}/seg.nii.gz")
    assert "train" in command("manifest", "build", folder, "--out", manifest, *pattern)
    cases = read_manifest(manifest).cases
    assert len(cases) == 10
    for patient in range(5):
        assert len({case.split for case in cases if case.group == f"p{patient}"}) == 1
    assert {case.split for case in cases} == {"train", "val", "test"}
    output = command("check", manifest)
    assert "0 errors" in output
    (folder / "p0/s1/seg.nii.gz").unlink()
    (folder / "p3/s7/pet.nii.gz").write_bytes(b"broken")
    told = command("check", manifest, code=2)
    for part in ("2 errors, 2 cases affected", "s1", "s7", "no such", "not a NIfTI"):
        assert part in told


def test_splits_options(folder, tmp_path):
    manifest, splits = tmp_path / "m.json", tmp_path / "splits.json"
    pattern = ("--pattern", "{group}/{id}/pet.nii.gz", "--label", "{group}/{id}/seg.nii.gz")
    splits.write_text(json.dumps({"holdout": {"train": ["s0", "s1"], "val": ["s2"], "test": ["s4"]}}))
    command("manifest", "build", folder, "--out", manifest, *pattern, "--splits", splits, "--split-key", "holdout")
    assert [case.id for case in read_manifest(manifest).split("train")] == ["s0", "s1"]
    assert [case.id for case in read_manifest(manifest).split("test")] == ["s4"]
    command("manifest", "build", folder, "--out", manifest, *pattern, "--val-fraction", 0.4, "--test-fraction", 0)
    assert len(read_manifest(manifest).split("val")) == 4
    assert read_manifest(manifest).split("test") == ()


def test_the_form_is_guessed_and_its_options_must_fit(folder, tmp_path):
    manifest, table = tmp_path / "m.json", tmp_path / "cases.csv"
    table.write_text("id,PT\n" + "".join(f"s{n},data/p{n // 2}/s{n}/pet.nii.gz\n" for n in range(10)))
    command("manifest", "build", table, "--out", manifest)
    assert len(read_manifest(manifest).split("test")) == 10  # no labels: to be predicted only
    for words, message in (
        ((table, "--channels", "CT,PT"), "--channels does not apply to the format csv"),
        ((table, "--form", "dicom"), "expected auto or one of"),
        ((folder, "--form", "folders"), "needs --pattern"),
        ((folder,), "--pattern"),
    ):
        with pytest.raises(InputError, match=message):
            command("manifest", "build", *words, "--out", manifest)


def test_real_cohort(real_data, tmp_path):
    folder, manifest = real_data / "fdg_pet_sarcoma", tmp_path / "m.json"
    words = (
        "--pattern",
        "{id}/PET_image.nii.gz",
        "--label",
        "{id}/PET_mask.nii.gz",
        "--ct",
        "{id}/CT_image.nii.gz",
    )
    splits = ("--splits", folder / "splits.json", "--split-key", "holdout")
    command("manifest", "build", folder, "--out", manifest, *words, *splits)
    cases = read_manifest(manifest)
    assert [len(cases.split(name)) for name in ("train", "val", "test")] == [24, 5, 5]
    assert sum("CT" in case.images for case in cases.cases) == 6
    assert "0 errors, 0 warnings" in command("check", manifest)
    command("check", manifest, "--modality", "PT,CT", code=2)  # most cases have no CT
