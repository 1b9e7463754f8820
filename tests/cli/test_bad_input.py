"""Every kind of wrong input from the command line: one clear line on stderr, exit code 2, and nothing written."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prompts import Click, write_clicks
from sammed3d_ft.cli import main as command
from tests.support.synthetic_dicom import write_series

SHAPE = (24, 20, 16)
AFFINE = np.array([[-4.0, 0, 0, 40], [0, 4.0, 0, -50], [0, 0, 3.0, 200], [0, 0, 0, 1]])
SUV = np.random.default_rng(0).gamma(2.0, 1.0, SHAPE).astype(np.float32)
HU = np.random.default_rng(1).uniform(-1000, 400, SHAPE).astype(np.int16)


def save(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def click_at(vox: tuple[float, float, float]) -> Click:
    return Click(tuple((AFFINE[:3, :3] @ vox + AFFINE[:3, 3]).tolist()), 1)


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def predict(folder: Path, *, pet: Path | None = None, clicks: Path | None = None, more: tuple[object, ...] = ()):
    """The command line of a prediction with valid PET and clicks, except for the given arguments."""
    if pet is None:
        pet = save(folder / "pet.nii.gz", SUV)
    if clicks is None:
        clicks = folder / "clicks.json"
        write_clicks(clicks, [click_at((12, 10, 8))])
    given = ("--image", pet, "--clicks", clicks, "--checkpoint", "mini")
    return ("predict", *given, "--out", folder / "out.nii.gz", *more)


def click_outside(folder: Path):
    write_clicks(folder / "far.json", [click_at((12, 10, 8)), click_at((12, 10, 16))])
    return predict(folder, clicks=folder / "far.json")


def click_file_of_another_scan(folder: Path):
    other = AFFINE.copy()
    other[2, 3] -= 12  # the click lies in both scans
    mask = np.zeros(SHAPE, np.uint8)
    mask[12, 10, 8] = 1
    made = ("prompts", "make", save(folder / "other.nii.gz", mask, other), "--out", folder / "other.json")
    assert run_main(made) == 0
    return predict(folder, clicks=folder / "other.json")


def empty_clicks(folder: Path):
    return predict(folder, clicks=write(folder / "c.json", {"tumor": [], "background": []}))


def empty_click_file(folder: Path):
    (folder / "c.json").touch()
    return predict(folder, clicks=folder / "c.json")


def voxels_called_mm(folder: Path):
    points = [{"position": [12, 10, 8], "label": 1}]
    content = {"version": 1, "coordinate_system": "world", "orientation": "RAS", "units": "mm", "points": points}
    return predict(folder, clicks=write(folder / "c.json", content))


def clicks_in_metres(folder: Path):
    points = [{"position": [0.01, 0.01, 0.21], "label": 1}]
    content = {"version": 1, "coordinate_system": "world", "orientation": "RAS", "units": "m", "points": points}
    return predict(folder, clicks=write(folder / "c.json", content))


def becquerels(folder: Path):
    return predict(folder, pet=save(folder / "bq.nii.gz", SUV * 4000))


def ct_as_pet(folder: Path):
    return predict(folder, pet=save(folder / "ct.nii.gz", HU))


def pet_of_one_value(folder: Path):
    return predict(folder, pet=save(folder / "zero.nii.gz", SUV * 0))


def not_a_number(folder: Path):
    values = SUV.copy()
    values[3, 4, 5] = np.nan
    return predict(folder, pet=save(folder / "nan.nii.gz", values))


def truncated_gzip(folder: Path):
    path = save(folder / "cut.nii.gz", SUV)
    path.write_bytes(path.read_bytes()[:-500])
    return predict(folder, pet=path)


def truncated_nrrd(folder: Path):
    path = folder / "cut.nrrd"
    head = "NRRD0004\ntype: short\ndimension: 3\nsizes: 24 20 16\nendian: little\nencoding: raw\nspace: LPS\n"
    head += "space directions: (4,0,0) (0,4,0) (0,0,3)\nspace origin: (0,0,0)\n\n"
    path.write_bytes(head.encode() + HU.tobytes()[:-2])
    return predict(folder, pet=path)


def slice_of_two_dimensions(folder: Path):
    return predict(folder, pet=save(folder / "flat.nii.gz", SUV[:, :, 0]))


def several_frames(folder: Path):
    return predict(folder, pet=save(folder / "dynamic.nii.gz", np.stack([SUV, SUV], -1)))


def picture(folder: Path):
    (folder / "mip.png").write_bytes(b"\x89PNG")
    return predict(folder, pet=folder / "mip.png")


def neither_clicks_nor_mask(folder: Path):
    image = save(folder / "pet.nii.gz", SUV)
    return ("predict", "--image", image, "--checkpoint", "mini", "--out", folder / "out.nii.gz")


def start_on_another_grid(folder: Path):
    start = save(folder / "start.nii.gz", np.ones((24, 20, 17), np.uint8))
    return predict(folder, more=("--start", start))


def seg_without_its_source(folder: Path):
    return predict(folder, more=("--seg", folder / "out.dcm"))


def import_of(folder: Path, **series):
    write_series(folder / "dicom", **series)
    return ("import", folder / "dicom", "--out", folder / "out")


def missing_slice(folder: Path):
    line = import_of(folder)
    next((folder / "dicom").glob("*_3_*.dcm")).unlink()
    return line


def two_series(folder: Path):
    import_of(folder)
    return import_of(folder)


def slices_of_two_spacings(folder: Path):
    def change(number, header):
        header.PixelSpacing = [4, 2.0 if number < 3 else 2.5]

    return import_of(folder, change=change)


def no_tracer(folder: Path):
    return import_of(folder, RadiopharmaceuticalInformationSequence=None)


def no_weight(folder: Path):
    return import_of(folder, PatientWeight=None)


def ct_folder(folder: Path):
    return import_of(folder, modality="CT")


def no_dicom(folder: Path):
    save(folder / "dicom" / "pet.nii.gz", SUV)
    return ("import", folder / "dicom", "--out", folder / "out")


WRONG = {
    click_outside: r"far\.json: point 2 lies outside the image: voxel \(12, 10, 16\)",
    click_file_of_another_scan: r"other\.json: the clicks were made on another image \(first voxel .* remove \"image\"",
    empty_clicks: "c.json: contains no clicks",
    empty_click_file: "c.json: the click file is empty",
    voxels_called_mm: r"point 1 lies outside the image: .* in the units stated in their file",
    clicks_in_metres: "units is 'm'; world coordinates must be in \"mm\"",
    becquerels: r"bq\.nii\.gz: does not look like PET in SUV \(9\d% .* above 1000.* Bq/ml, .*`sammed3d-ft import`",
    ct_as_pet: r"ct\.nii\.gz: does not look like PET in SUV \(7\d% of the voxels are below -1.* is it a CT\?",
    pet_of_one_value: r"zero\.nii\.gz: every voxel is 0",
    not_a_number: r"nan\.nii\.gz: 1 NaN and 0 infinite values among 7680 voxels",
    truncated_gzip: r"cut\.nii\.gz: the compressed file ends too early",
    truncated_nrrd: r"cut\.nrrd: cannot be read .* copy or export it again",
    slice_of_two_dimensions: r"flat\.nii\.gz: is 2D with shape \(24, 20\), expected a 3D volume",
    several_frames: r"dynamic\.nii\.gz: has several frames",
    picture: r"mip\.png: expected a \.nii",
    neither_clicks_nor_mask: r"pet\.nii\.gz: no clicks and no start mask; give --clicks or --start",
    start_on_another_grid: r"start\.nii\.gz: is not on the grid of .*pet\.nii\.gz \(shape 24x20x17",
    seg_without_its_source: "needs both --seg FILE and --source DICOM_FOLDER",
    missing_slice: r"1 slice\(s\) missing between",
    two_series: r"contains 2 PET series; choose one with --series UID: ",
    slices_of_two_spacings: "mixes slices of different pixel spacing",
    no_tracer: "[Rr]adiopharmaceutical",
    no_weight: "[Ww]eight",
    ct_folder: r"contains no PET series \(found: 1 CT series\)",
    no_dicom: r"contains no DICOM files \(1 others\)",
}


def run_main(words: tuple[object, ...]) -> int:
    """The command as the console script runs it; its exit code."""
    given = sys.argv
    sys.argv = ["sammed3d-ft", *map(str, words)]
    try:
        command.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = given
    return 0


@pytest.mark.parametrize("case", WRONG, ids=lambda case: case.__name__)
def test_one_line_exit_code_2_and_nothing_written(case, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = case(tmp_path)
    capfd.readouterr()
    assert run_main(words) == 2
    shown = capfd.readouterr()  # of the whole process: libraries that print for themselves are caught too
    assert shown.out == ""
    assert shown.err.startswith("error: ")
    assert shown.err.count("\n") == 1, shown.err
    assert re.search(WRONG[case], shown.err), shown.err
    assert not [path for path in tmp_path.rglob("out*") if path.is_file()]
    assert not (tmp_path / "out").exists()


def test_the_good_scan_that_the_others_differ_from_is_fine(tmp_path: Path) -> None:
    assert run_main(predict(tmp_path)) == 0
    assert (tmp_path / "out.nii.gz").is_file()
    assert run_main(import_of(tmp_path)) == 0
