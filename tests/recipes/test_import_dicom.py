"""From a folder of DICOM to NIfTI and back, on a real scan and as the command line does it."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from pydicom.uid import generate_uid

from sammed3d_ft.cli import main as command
from sammed3d_ft.dicom.folder import choose_series, scan_folder
from sammed3d_ft.dicom.series import order_slices
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume, same_grid
from sammed3d_ft.images.images import read_image, read_label
from sammed3d_ft.recipes import export_seg
from sammed3d_ft.recipes.import_dicom import run
from tests.support.synthetic_dicom import SHAPE, by_highdicom, write_rtstruct, write_series


def at_the_places_of(crop: Volume, whole: Volume) -> np.ndarray:
    """The values of `whole` at the voxel centres of `crop`, found by their place in mm."""
    index_vox = np.moveaxis(np.indices(crop.array.shape), 0, -1)
    found_vox = whole.to_vox(crop.to_mm(index_vox))
    assert np.abs(found_vox - found_vox.round()).max() < 1e-3
    return whole.array[tuple(np.moveaxis(found_vox.round().astype(int), -1, 0))]


@pytest.fixture(scope="module")
def imported(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    if not (real_data / "fdg_pet_dicom").is_dir():
        pytest.skip("the real cases hold no fdg_pet_dicom")
    out = tmp_path_factory.mktemp("imported")
    return out, run(real_data / "fdg_pet_dicom", out, roi=["GTV_Mass", "GTV_Edema"])


def test_real_suv_equals_the_published_crop(imported: tuple[Path, dict], real_data: Path) -> None:
    out, record = imported
    assert record["suv"]["factor"] == pytest.approx(0.000242902977, rel=1e-8)
    assert record["suv"]["decay_s"] == 2711
    pet = read_image(out / "PT.nii.gz")
    crop = read_image(real_data / "fdg_pet_sarcoma" / "STS_001" / "PET_image.nii.gz")
    assert pet.array.shape == (128, 128, 267)
    assert np.abs(at_the_places_of(crop, pet) - crop.array).max() < 0.001
    assert crop.array.max() > 20  # so the comparison says something


def test_real_region_has_the_published_voxels(imported: tuple[Path, dict], real_data: Path) -> None:
    out, record = imported
    mask = read_label(out / "mask_GTV_Mass.nii.gz")
    truth = read_label(real_data / "fdg_pet_sarcoma" / "STS_001" / "PET_mask.nii.gz")
    assert record["regions"]["GTV_Mass"]["voxels"] == mask.array.sum() == 5095
    np.testing.assert_array_equal(at_the_places_of(truth, mask), truth.array)
    edema = read_label(out / "mask_GTV_Edema.nii.gz")
    assert edema.array.sum() > mask.array.sum()


def test_real_segmentation_returns_unchanged(imported: tuple[Path, dict], real_data: Path, tmp_path: Path) -> None:
    """NIfTI to SEG to NIfTI; read as well by plain pydicom, frames placed by the slices that they refer to."""
    out, _ = imported
    source = real_data / "fdg_pet_dicom"
    seg = tmp_path / "in" / "seg.dcm"
    record = export_seg.run(out / "mask_GTV_Mass.nii.gz", source, seg)
    assert (record["segments"], record["voxels"]) == (1, 5095)

    slices = {header.SOPInstanceUID: header for header in map(pydicom.dcmread, source.glob("dicom_PT/*.dcm"))}
    dataset = pydicom.dcmread(seg)
    mask = read_label(out / "mask_GTV_Mass.nii.gz")
    seen = 0
    for frame, group in zip(dataset.pixel_array, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        image = group.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID
        place = group.PlanePositionSequence[0].ImagePositionPatient
        assert list(place) == list(slices[image].ImagePositionPatient)
        rows, columns = np.nonzero(frame)
        lps = np.array(place, float) + np.c_[columns * 4.6875, rows * 4.6875, 0 * rows]
        index = mask.to_vox(lps * (-1, -1, 1)).round().astype(int)
        assert mask.array[tuple(index.T)].all()
        seen += len(rows)
    assert seen == 5095

    for path in source.glob("dicom_PT/*.dcm"):
        (seg.parent / path.name).symlink_to(path)
    run(seg.parent, tmp_path / "again", roi=["Lesion"])
    again = tmp_path / "again" / "mask_Lesion.nii.gz"
    assert again.read_bytes() == (out / "mask_GTV_Mass.nii.gz").read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A PET of SUV 7e-4 per count, its CT at -1000 + count, and a region of one voxel, in sub-folders."""
    write_series(tmp_path / "in" / "pet", uid="1.2.3")
    write_series(
        tmp_path / "in" / "ct", modality="CT", uid="1.2.4", spacing_mm=(2, 1), step_mm=(0, 0, 1.5),
        change=lambda _, one: setattr(one, "RescaleIntercept", -1000),
    )  # fmt: skip
    corners = np.array([(-9, -18, 36), (-7, -18, 36), (-7, -14, 36), (-9, -14, 36)], float)
    (tmp_path / "in" / "rt").mkdir()
    write_rtstruct(tmp_path / "in" / "rt" / "rt.dcm", {"GTV 1/left": [corners], "Other": [corners]})
    (tmp_path / "in" / "DICOM.txt").write_text("not DICOM")
    return tmp_path / "in"


def test_pet_ct_and_mask_come_out_on_their_grids(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    record = run(folder, out, ct=True, roi=["GTV 1/left"])
    stored = np.arange(np.prod(SHAPE), dtype=float).reshape(SHAPE).T  # column, row, slice; columns and rows go L, P
    pet, ct = read_image(out / "PT.nii.gz"), read_image(out / "CT.nii.gz")
    np.testing.assert_allclose(pet.array, stored[::-1, ::-1] * 7e-4, rtol=1e-6)
    np.testing.assert_array_equal(ct.array, stored[::-1, ::-1] - 1000)
    np.testing.assert_allclose(nib.load(out / "PT.nii.gz").affine, np.array(
        [[-2, 0, 0, 10], [0, -4, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1]]
    ))  # fmt: skip
    np.testing.assert_allclose(ct.spacing_mm, (1, 2, 1.5))
    mask = read_label(out / "mask_GTV_1_left.nii.gz")
    assert same_grid(mask, pet)
    assert np.argwhere(mask.array).tolist() == [[5 - 1 - 1, 4 - 1 - 1, 2]]
    assert record == json.loads((out / "import.json").read_text())
    assert record["regions_available"] == ["GTV 1/left", "Other"]
    assert record["regions"]["GTV 1/left"]["volume_ml"] == pytest.approx(0.024)
    for written in record["outputs"].values():
        assert hashlib.sha256(Path(written["path"]).read_bytes()).hexdigest() == written["sha256"]
    assert not {"Test^One"} & set((out / "import.json").read_text().split('"'))


def test_choices_that_cannot_be_made_are_refused_and_nothing_is_written(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(InputError, match="--roi Liver not found; regions on this PET: GTV 1/left, Other"):
        run(folder, out, roi=["Liver"])
    write_rtstruct(folder / "rt2.dcm", {"Other": [np.zeros((3, 3))]})
    with pytest.raises(InputError, match="--roi Other is in 2 files"):
        run(folder, out, roi=["Other"])
    second = generate_uid()
    write_series(folder / "pet2", uid=second, change=lambda _, one: setattr(one, "FrameOfReferenceUID", "1.9"))
    with pytest.raises(InputError, match="contains 2 PET series"):
        run(folder, out)
    with pytest.raises(InputError, match="CT series 1.2.4 and the PET have different frames of reference"):
        run(folder, out, [second], ct=True)
    assert not out.exists()
    assert "may not be aligned" in run(folder, out, [second, "1.2.4"], ct=True)["warnings"][0]


def test_export_finds_the_series_and_checks_the_grid(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path, ct=True, roi=["Other"])
    mask = tmp_path / "mask_Other.nii.gz"
    seg = tmp_path / "seg.dcm"
    assert export_seg.run(mask, folder, seg)["series"] == "1.2.3"
    with pytest.raises(InputError, match="not on the grid of series 1.2.4: voxel size 2x4x3 against 1x2x1.5"):
        export_seg.run(mask, folder, seg, "1.2.4")
    with pytest.raises(InputError, match="--made by hand: expected MANUAL, SEMIAUTOMATIC, AUTOMATIC"):
        export_seg.run(mask, folder, seg, made="by hand")
    # A file in another axis order lies on the same grid.
    image = nib.load(mask)
    nib.save(nib.as_closest_canonical(image), tmp_path / "turned.nii.gz")
    export_seg.run(tmp_path / "turned.nii.gz", folder, tmp_path / "turned.dcm")
    first, turned = (pydicom.dcmread(path) for path in (seg, tmp_path / "turned.dcm"))
    assert first.PixelData == turned.PixelData


def test_segments_that_overlap_are_said(folder: Path, tmp_path: Path) -> None:
    series = order_slices(choose_series(scan_folder(folder), "PT"))
    masks = np.zeros((*SHAPE, 3), np.uint8)
    masks[1, 0:2, 0:3, 0] = masks[1, 1:3, 0:3, 1] = masks[4, 0, 0, 2] = 1
    by_highdicom(folder / "seg.dcm", series, masks, ["Lesion", "Lesion", "Liver"])
    record = run(folder, tmp_path, roi=["Lesion", "Lesion #1", "Lesion #2", "Liver"])
    assert [text.split("seg.dcm: ")[1] for text in record["warnings"]] == [
        "segment 'Lesion': the label occurs 2 times, numbered 'Lesion #1' to 'Lesion #2'; the mask is their union, in "
        "which 3 voxels belong to more than one",
        "segments 'Lesion #1' and 'Lesion #2' share 3 voxels; both masks keep them",
    ]
    voxels = {name: facts["voxels"] for name, facts in record["regions"].items()}
    assert voxels == {"Lesion": 9, "Lesion #1": 6, "Lesion #2": 6, "Liver": 1}
    assert Path(record["outputs"]["mask Lesion #1"]["path"]).name == "mask_Lesion_1.nii.gz"


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["sammed3d-ft", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        command.main()
    return int(end.value.code or 0)


def test_commands_and_their_exit_codes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert call(monkeypatch, "import", folder, "--out", out, "--ct", "--roi", "Other") == 0
    shown = capsys.readouterr()
    assert shown.err == ""
    assert "regions not imported (--roi): GTV 1/left" in shown.out
    assert "SUV factor 0.0007: weight / dose decayed to the start of the scan (START)" in shown.out
    assert call(monkeypatch, "export-seg", out / "mask_Other.nii.gz", "--source", folder, "--out", out / "s.dcm") == 0
    assert "1 segments, 1 voxels, on series 1.2.3" in capsys.readouterr().out.replace("\n", " ")

    write_series(folder / "pet", uid="1.2.3", RadiopharmaceuticalStartDateTime="20150714100000")
    assert call(monkeypatch, "import", folder, "--out", out) == 0
    shown = capsys.readouterr()
    assert "SUV factor 0.0007: " in shown.out
    assert shown.err.count("\n") == 1
    assert "so dates are not used: by the times alone the scan (11:50:00, series time) starts 6600 s after" in shown.err

    wrong = {
        "missing slice": lambda: next(folder.glob("pet/*_3_*")).unlink(),
        "mixed series": lambda: write_series(folder / "pet2"),
        "CT as PET": lambda: [path.unlink() for path in folder.glob("pet*/*")],
        "no radiopharmaceutical": lambda: write_series(folder / "pet", RadiopharmaceuticalInformationSequence=None),
    }
    said = {
        "missing slice": "1 slice(s) missing",
        "mixed series": "contains 2 PET series",
        "CT as PET": "contains no PET series",
        "no radiopharmaceutical": "has no radiopharmaceutical information",
    }
    for name, spoil in wrong.items():
        spoil()
        assert call(monkeypatch, "import", folder, "--out", tmp_path / "none") == 2, name
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("error: "), name
        assert shown.err.count("\n") == 1, name
        assert said[name] in shown.err
    assert not (tmp_path / "none").exists()


def test_dicom_libraries_load_only_when_needed() -> None:
    code = "import sys, sammed3d_ft.cli.main; print(sorted({'pydicom', 'highdicom'} & sys.modules.keys()))"
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
