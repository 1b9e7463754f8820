"""The viewer's sessions without a browser: saved results equal those of `predict`, and no click is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prompts import Click, InputError, read_clicks, write_clicks
from sammed3d_ft.dataset.check import check_manifest
from sammed3d_ft.dataset.manifest import Case, read_manifest, write_manifest
from sammed3d_ft.prompted.clicked_scan import ClickedScan
from sammed3d_ft.recipes.predict import Outputs, segment
from sammed3d_ft.view.cases import cohort_cases, single_case
from tests.support.synthetic_dicom import write_series
from tests.support.viewers import BLOBS_VOX, SHAPE, Client, blobs, quick_model, serving, write_pet

ROOT = Path(__file__).resolve().parents[2]
FIRST, SECOND = BLOBS_VOX


def predicted(folder: Path, image: Path, viewed: Path) -> tuple[Path, Path, Path]:
    """The result of `predict` with the clicks and the start mask saved by a viewer."""
    clicks, start = viewed / "clicks.json", viewed / "start.nii.gz"
    outputs = Outputs(folder / "mask.nii.gz", folder / "instances.nii.gz", table=folder / "lesions.csv")
    scan = ClickedScan.read(image, clicks if clicks.exists() else None, start if start.exists() else None)
    segment(quick_model(), scan, None, outputs, 0.0)
    return outputs.mask, outputs.instances, outputs.table


def assert_same(made: tuple[Path, ...], viewed: Path) -> None:
    for path in made:
        assert path.read_bytes() == (viewed / path.name).read_bytes(), path.name


def two_lesions() -> np.ndarray:
    """An instance map of both blobs, numbered 4 and 9, the first one cut in half."""
    index = np.stack(np.indices(SHAPE), -1)
    mask = np.zeros(SHAPE, np.int16)
    for number, at in zip((4, 9), BLOBS_VOX, strict=True):
        mask[np.linalg.norm(index - at, axis=-1) < 4] = number
    mask[: FIRST[0]] = 0
    return mask


@pytest.fixture
def pet(tmp_path) -> Path:
    return write_pet(tmp_path / "pet.nii.gz")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_saved_results_equal_predict(tmp_path, suffix) -> None:
    import SimpleITK as sitk

    image = write_pet(tmp_path / "pet.nii.gz")
    if suffix != ".nii.gz":
        sitk.WriteImage(sitk.ReadImage(image), tmp_path / f"pet{suffix}")
        image = tmp_path / f"pet{suffix}"
    out = tmp_path / "out"
    with serving(single_case(image, out)) as (client, _):
        client.click(FIRST)
        client.click((FIRST[0] + 3, *FIRST[1:]), label=0)
        client.click(SECOND, lesion=2)
        client.click((SECOND[0], SECOND[1] + 2, SECOND[2]), lesion=2)
        client.post("/undo")
        client.click((20, 5, 5), lesion=3)
        client.post("/remove", lesion=3)
        saved = client.post("/save")
        rows = client.get("/table")["rows"]
    assert set(saved["files"]) == {path.name for path in out.iterdir() if path.name != "session.json"}
    made = predicted(tmp_path / "predicted", image, out)
    assert_same(made, out)
    lines = [line.split(",") for line in made[2].read_text().splitlines()]
    assert [[str(row.get(name, "")) for name in lines[0]] for row in rows] == lines[1:]


def test_steps_back_and_forth_end_where_predict_does(tmp_path, pet) -> None:
    out = tmp_path / "out"
    with serving(single_case(pet, out)) as (client, _):
        client.click(FIRST)
        client.click(SECOND, lesion=2)
        before = client.get("/table")["rows"]
        client.click((FIRST[0], FIRST[1] + 4, FIRST[2]))
        client.post("/reset", lesion=1)
        client.post("/remove", lesion=2)
        for _ in range(3):
            client.post("/undo")
        assert client.get("/table")["rows"] == before
        client.post("/save")
    assert_same(predicted(tmp_path / "predicted", pet, out), out)


@pytest.mark.parametrize(
    "clicks",
    [
        [(FIRST, 1, 4)],
        [((FIRST[0] - 2, *FIRST[1:]), 1, 4), (FIRST, 1, 4)],
        [((FIRST[0] + 3, *FIRST[1:]), 0, 4), ((FIRST[0] + 2, *FIRST[1:]), 0, 4), (FIRST, 1, 4)],
        [(SECOND, 1, 9), ((20, 5, 5), 1, 10), (FIRST, 1, 4)],
    ],
)
def test_a_corrected_mask_equals_predict(tmp_path, pet, clicks) -> None:
    start, out = tmp_path / "cnn.nii.gz", tmp_path / "out"
    nib.save(nib.Nifti1Image(two_lesions(), nib.load(pet).affine), start)
    with serving(single_case(pet, out, start=start)) as (client, _):
        client.wait(lambda state: len(state.get("lesions", ())) == 2)
        for voxel, label, lesion in clicks:
            client.click(voxel, lesion, label)
        client.click(SECOND, 9)
        client.post("/undo")
        client.post("/save")
    assert_same(predicted(tmp_path / "predicted", pet, out), out)


def test_a_removed_lesion_of_the_mask_stays_away(tmp_path, pet) -> None:
    start, out = tmp_path / "cnn.nii.gz", tmp_path / "out"
    nib.save(nib.Nifti1Image(two_lesions(), nib.load(pet).affine), start)
    case = single_case(pet, out, start=start)
    with serving(case) as (client, _):
        client.wait(lambda state: len(state.get("lesions", ())) == 2)
        client.post("/remove", lesion=9)
        client.post("/undo")
        assert [one["number"] for one in client.get("/state")["lesions"]] == [4, 9]
        client.post("/remove", lesion=9)
    with serving(case) as (client, _):  # and after a restart
        state = client.wait(lambda state: len(state.get("lesions", ())) == 1)
        assert state["lesions"][0]["number"] == 4
        assert any("earlier session" in note for note in state["notes"])
        client.click(FIRST, lesion=4)
        client.post("/save")
    assert_same(predicted(tmp_path / "predicted", pet, out), out)
    assert set(np.unique(nib.load(out / "instances.nii.gz").get_fdata())) == {0, 4}


def test_earlier_clicks_of_any_form_go_on(tmp_path, pet) -> None:
    affine = nib.load(pet).affine
    background = (FIRST[0] + 3, *FIRST[1:])
    points = [(FIRST, 1, "liver"), (SECOND, 1, None), (background, 0, None)]
    clicks = [Click(tuple(affine[:3, :3] @ at + affine[:3, 3]), label, lesion) for at, label, lesion in points]
    write_clicks(tmp_path / "given.json", clicks)
    out = tmp_path / "out"
    with serving(single_case(pet, out, clicks=tmp_path / "given.json")) as (client, _):
        state = client.wait(lambda state: len(state.get("lesions", ())) == 2)
        assert any("liver is 1" in note for note in state["notes"])
        client.post("/save")
    scan = ClickedScan.read(pet, tmp_path / "given.json")
    segment(quick_model(), scan, None, Outputs(tmp_path / "p" / "mask.nii.gz"), 0.0)
    assert (tmp_path / "p" / "mask.nii.gz").read_bytes() == (out / "mask.nii.gz").read_bytes()


def test_clicks_outside_a_crop_are_reported(tmp_path) -> None:
    big = np.random.default_rng(1).uniform(0.5, 1.5, (100, 40, 40)).astype(np.float32)
    big[9:12, 9:12, 9:12] = big[88:91, 30:33, 30:33] = 9
    pet = write_pet(tmp_path / "pet.nii.gz", big, np.diag((4.0, 4, 4, 1)))
    with serving(single_case(pet, tmp_path / "out")) as (client, _):
        client.click((10, 10, 10))
        for label in (1, 0):
            assert client.click((89, 31, 31), label=label)["outside"]
        assert len(read_clicks(tmp_path / "out" / "clicks.json")) == 1
        assert len(client.click((89, 31, 31), anyway=True)["clicks"]) == 2
        client.post("/save")
    assert_same(predicted(tmp_path / "predicted", pet, tmp_path / "out"), tmp_path / "out")


def test_a_refused_click_is_not_kept(tmp_path, pet) -> None:
    with serving(single_case(pet, tmp_path / "out")) as (client, _):
        asked = {"voxel": list(FIRST), "label": 0, "lesion": 1, "anyway": False}
        status, content, _ = client.raw("POST", "/click", json.dumps(asked).encode())
        assert status == 422
        assert "first click" in json.loads(content)["error"]
        assert not (tmp_path / "out" / "clicks.json").exists()
        assert client.raw("POST", "/undo", b"{}")[0] == 422


def test_a_pet_that_is_not_suv_can_be_seen_only(tmp_path) -> None:
    pet = write_pet(tmp_path / "pet.nii.gz", blobs() * 5000)
    with serving(single_case(pet, tmp_path / "out")) as (client, _):
        assert "does not look like PET in SUV" in client.get("/state")["not_suv"]
        asked = {"voxel": list(FIRST), "label": 1, "lesion": 1, "anyway": False}
        assert client.raw("POST", "/click", json.dumps(asked).encode())[0] == 422
        assert client.raw("POST", "/save", b"{}")[0] == 422
    assert not (tmp_path / "out" / "mask.nii.gz").exists()


def test_proposals_lie_outside_the_lesions(tmp_path, pet) -> None:
    with serving(single_case(pet, tmp_path / "out")) as (client, _):
        places = [tuple(one["voxel"]) for one in client.post("/propose")["proposals"]]
        assert len(places) == 2
        assert all(min(np.linalg.norm(np.subtract(at, blob)) for blob in BLOBS_VOX) < 3 for at in places)
        client.click(places[0])
        assert [tuple(one["voxel"]) for one in client.post("/propose")["proposals"]] == places[1:]


def test_a_dicom_folder_ends_as_dicom_seg(tmp_path) -> None:
    import pydicom

    stored = np.round(blobs().transpose(2, 1, 0)[::1] * 1000).astype(np.int16)
    name = "<b onclick=alert(1)>Eve^&"
    write_series(tmp_path / "dicom", stored, change=lambda n, slice_: setattr(slice_, "PatientName", name))
    case = single_case(tmp_path / "dicom", None)
    with serving(case) as (client, server):
        state = client.get("/state")
        assert state["patient"] == f"{name}, 1"
        at = np.unravel_index(server.viewer.session.scan.volume.array.argmax(), state["volumes"]["PT"]["shape"])
        client.click([int(c) for c in at])
        assert "lesions.dcm" in client.post("/save")["files"]
    seg = pydicom.dcmread(case.folder / "lesions.dcm")
    assert seg.Modality == "SEG"
    assert len(seg.SegmentSequence) == 1
    texts = b"".join(path.read_bytes() for path in case.folder.glob("*.json"))
    assert b"onclick" not in texts  # the name is shown, not stored


def test_a_cohort_becomes_a_manifest_for_training(tmp_path) -> None:
    cases = []
    for number in range(3):
        image = write_pet(tmp_path / f"pet{number}.nii.gz", blobs() + number / 100)
        cases.append(Case(f"case{number}", {"PT": image}, None, ("train", "val", None)[number], f"patient{number}"))
    write_manifest(tmp_path / "all.json", cases)
    viewed = cohort_cases(tmp_path / "all.json", tmp_path / "out", None, None)
    annotated = tmp_path / "out" / "manifest.json"
    with serving(*viewed, annotated=annotated) as (client, _):
        for number in (0, 2):
            if number:
                client.post("/case", case=number)
                client.wait()
            client.click(FIRST)
            client.click(SECOND, lesion=2)
            client.post("/save")
        assert [one["done"] for one in client.get("/state")["cases"]] == [True, False, True]
    with serving(*viewed, annotated=annotated) as (client, _):
        assert client.get("/state")["current"] == 1  # the first that is not done
    found = read_manifest(annotated)
    assert [(case.id, case.split, case.group) for case in found.cases] == [
        ("case0", "train", "patient0"),
        ("case2", "train", "patient2"),
    ]
    report = check_manifest(found)
    assert not report.errors
    assert set(np.unique(nib.load(found.cases[0].label).get_fdata())) == {0, 1, 2}


def test_a_changed_click_makes_a_case_undone(tmp_path, pet) -> None:
    case = single_case(pet, tmp_path / "out")
    with serving(case) as (client, _):
        client.click(FIRST)
        client.post("/save")
        assert case.saved
        assert not client.get("/state")["unsaved"]
        client.click(SECOND, lesion=2)
        assert not case.saved
        assert client.get("/state")["unsaved"]
        client.post("/undo")
        assert case.saved


@pytest.mark.parametrize("wrong", ["missing", "ct", "clicks", "both", "neither"])
def test_wrong_input_ends_with_code_2(tmp_path, pet, wrong) -> None:
    words = {
        "missing": [tmp_path / "no.nii.gz"],
        "ct": [pet, "--ct", tmp_path / "no.nii.gz"],
        "clicks": [pet, "--clicks", tmp_path / "no.json"],
        "both": [pet, "--manifest", tmp_path / "no.json"],
        "neither": [],
    }[wrong]
    done = subprocess.run(
        [sys.executable, "-m", "sammed3d_ft.cli.main", "view", *map(str, words), "--no-browser"],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_a_scan_that_cannot_be_read(tmp_path) -> None:
    (tmp_path / "empty").mkdir()
    with serving(single_case(tmp_path / "empty", tmp_path / "out")) as (client, server):
        state = client.get("/state")
        assert state["phase"] == "failed"
        assert state["error"].count(str(tmp_path / "empty")) == 1
        assert server.failure == state["error"]


def test_killed_in_the_middle_no_click_is_lost(tmp_path, pet) -> None:
    """A real process is killed while clicks arrive; every acknowledged click is restored."""
    words = [
        sys.executable,
        "-m",
        "sammed3d_ft.cli.main",
        "view",
        str(pet),
        "--no-browser",
        "--out",
        str(tmp_path / "out"),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def start() -> tuple[subprocess.Popen[str], Client]:
        process = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        found = re.search(r"http://127.0.0.1:(\d+)/#(\w+)", process.stdout.readline())
        assert found is not None
        return process, Client(int(found[1]), found[2])

    process, client = start()
    client.wait()
    client.click(FIRST)
    client.click((FIRST[0] + 3, *FIRST[1:]), label=0)
    link = __import__("http.client").client.HTTPConnection("127.0.0.1", client.port)
    asked = {"voxel": list(SECOND), "label": 1, "lesion": 2, "anyway": False}
    link.request(
        "POST", "/click", json.dumps(asked), {"x-viewer-token": client.token}
    )  # its encoder pass takes a while
    client.wait(lambda state: len(state["clicks"]) == 3)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(20)
    link.close()

    process, client = start()
    try:
        state = client.wait()
        assert [(click["voxel"], click["label"], click["lesion"]) for click in state["clicks"]] == [
            (list(FIRST), 1, 1),
            ([FIRST[0] + 3, *FIRST[1:]], 0, 1),
            (list(SECOND), 1, 2),
        ]
        second = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == 2
        assert "another viewer" in second.stderr
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_start_mask_of_too_many_lesions_is_refused(tmp_path) -> None:
    mask = np.zeros((60, 44, 32), np.int16)
    mask.ravel()[::24][:1500] = np.arange(1, 1501)
    pet = write_pet(tmp_path / "pet.nii.gz", np.random.default_rng(0).gamma(2, 1, mask.shape).astype(np.float32))
    nib.save(nib.Nifti1Image(mask, nib.load(pet).affine), tmp_path / "many.nii.gz")
    with serving(single_case(pet, tmp_path / "out", start=tmp_path / "many.nii.gz")) as (client, _):
        state = client.get("/state")
        assert state["phase"] == "failed"
        assert "at most 1000" in state["error"]
    assert not (tmp_path / "out" / "session.json").exists()


def test_clicks_of_another_image_are_refused(tmp_path, pet) -> None:
    write_clicks(tmp_path / "other.json", [Click((3.0, 3.0, 4.0), 1, 1)], affine=np.eye(4), shape=(9, 9, 9))
    with serving(single_case(pet, tmp_path / "out", clicks=tmp_path / "other.json")) as (client, _):
        assert "another image" in client.get("/state")["error"]


def test_a_case_id_cannot_leave_the_folder(tmp_path, pet) -> None:
    write_manifest(tmp_path / "m.json", [Case("../evil", {"PT": pet})])
    with pytest.raises(InputError, match="must not contain"):
        cohort_cases(tmp_path / "m.json", tmp_path / "out", None, None)
