"""The page in a real browser: clicked voxels, lesions from the first click to the saved table, keys, names."""

from __future__ import annotations

import base64
import csv
import io
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from PIL import Image
from scipy.spatial.transform import Rotation

from sammed3d_ft.dataset.manifest import Case, write_manifest
from sammed3d_ft.recipes.predict import Outputs, load_model, run
from sammed3d_ft.view.cases import cohort_cases, single_case
from tests.support.exports import random_mini
from tests.support.synthetic_dicom import write_series
from tests.support.viewers import BLOBS_VOX, blobs, serving, write_pet

FIRST, SECOND = BLOBS_VOX
PANES = ("axial", "coronal", "sagittal")


@pytest.fixture
def opened(page):
    """Opens a server's link and waits for the image; the page must have no fault of its own."""
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    yield lambda server: _open(page, server)
    page.evaluate("() => window.stop()")
    page.goto("about:blank")
    assert not faults


def _open(page, server):
    page.goto(server.link)
    page.wait_for_selector("body[data-first]")
    return page


def pixels(page, pane: str) -> np.ndarray:
    """(height, width, 3) of a plane's image, without what is drawn above it."""
    url = page.locator(f"#{pane} canvas").first.evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")).astype(int)


def centre_of(mask: np.ndarray) -> tuple[float, float]:
    """x and y of the middle of the True pixels, from the upper left corner."""
    rows, columns = np.nonzero(mask)
    assert len(rows)
    return float(columns.mean()) + 0.5, float(rows.mean()) + 0.5


def click_at(page, pane: str, at: tuple[float, float], **how) -> None:
    page.locator(f"#{pane}").click(position={"x": at[0], "y": at[1]}, **how)


def settled(page) -> None:
    page.wait_for_selector("#busy", state="hidden")
    page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")


def affine(order: str, spacing=(3.0, 3.0, 3.0), turned_deg: float = 0.0) -> np.ndarray:
    """Of a file whose axes point to these sides: 'LPS' is the usual order of DICOM."""
    columns = {"R": (1, 0, 0), "L": (-1, 0, 0), "A": (0, 1, 0), "P": (0, -1, 0), "S": (0, 0, 1), "I": (0, 0, -1)}
    turn = Rotation.from_euler("xyz", (turned_deg, turned_deg / 2, -turned_deg), degrees=True).as_matrix()
    matrix = np.eye(4)
    matrix[:3, :3] = turn @ np.array([columns[side] for side in order], float).T @ np.diag(spacing)
    matrix[:3, 3] = (17.0, -33.0, 250.0)
    return matrix


GEOMETRIES = {
    "RAS": affine("RAS"),
    "LPS": affine("LPS"),
    "SLA": affine("SLA"),
    "PIR": affine("PIR"),
    "anisotropic": affine("LAS", (2.0, 3.5, 5.0)),
    "oblique": affine("LPS", (3.0, 3.0, 4.0), 17.0),
}


@pytest.mark.parametrize("name", GEOMETRIES)
def test_a_click_on_a_known_voxel_gives_that_voxel(page, opened, tmp_path, name) -> None:
    """One voxel is hot; it is found in the drawn pixels and clicked, without using any formula of the page.

    The CT has the same place bright, on another grid, axis order and spacing.
    """
    grid, hot = GEOMETRIES[name], (9, 21, 14)
    values = np.random.default_rng(0).uniform(0.1, 0.4, (30, 34, 26)).astype(np.float32)
    values[hot] = 30
    pet = write_pet(tmp_path / "pet.nii.gz", values, grid)
    hot_mm = grid[:3, :3] @ hot + grid[:3, 3]
    ct_grid = affine("ASR", (1.7, 2.2, 1.3), 5.0)
    ct_grid[:3, 3] = hot_mm - ct_grid[:3, :3] @ (40, 45, 50)
    index = np.stack(np.indices((80, 90, 100)), -1) - (40, 45, 50)
    ct_values = np.where(np.linalg.norm(index @ ct_grid[:3, :3].T, axis=-1) < 5, 1000, -900).astype(np.int16)
    nib.save(nib.Nifti1Image(ct_values, ct_grid), tmp_path / "ct.nii.gz")
    out = tmp_path / "out"
    with serving(single_case(pet, out, tmp_path / "ct.nii.gz")) as (_client, server):
        opened(server)
        page.wait_for_selector("#layers button[data-layer=fused][aria-checked=true]")
        page.keyboard.press("v")  # the PET alone
        settled(page)
        # The projection jumps to the voxel.
        shown = page.locator("#projection canvas").evaluate("canvas => canvas.toDataURL()")
        image = np.asarray(Image.open(io.BytesIO(base64.b64decode(shown.split(",")[1]))).convert("RGB")).astype(int)
        click_at(page, "projection", centre_of((image.max(axis=2) < 80)[30:]) + np.array((0, 30)))
        settled(page)
        expected = [round(c) for c in server.viewer.session.scan.volume.to_vox(hot_mm)]
        assert page.text_content("#readout").startswith(f"voxel {', '.join(map(str, expected))} ")
        assert "SUV 30.00" in page.text_content("#readout")
        for pane in PANES:
            blob = centre_of(pixels(page, pane).max(axis=2) == 0)
            click_at(page, pane, blob)
            page.wait_for_selector("#lesions tbody tr")
            settled(page)
            point = json.loads((out / "clicks.json").read_text())["points"]
            assert len(point) == 1
            np.testing.assert_allclose(point[0]["position"], hot_mm, atol=1e-3)  # the file's own voxel, by its affine
            page.keyboard.press("Control+z")
            page.wait_for_selector("#lesions tbody tr", state="detached")
            page.keyboard.press("v")  # the CT alone: its bright ball lies about the same point
            settled(page)
            ball = centre_of(pixels(page, pane).min(axis=2) > 200)
            assert np.linalg.norm(np.subtract(ball, blob)) < 4
            page.keyboard.press("v")
            page.keyboard.press("v")
            settled(page)


def test_planes_are_to_scale_and_in_radiological_convention(page, opened, tmp_path) -> None:
    """A bar of 60 mm along each axis, 20 mm thick, in voxels of 2 x 3 x 5 mm; the patient's right is dark."""
    values = np.full((60, 40, 24), 0.1, np.float32)
    centre = np.array((30, 20, 12))
    half = np.round(np.array((30, 30, 30)) / (2, 3, 5)).astype(int)
    values[tuple(slice(c - h, c + h) for c, h in zip(centre, half, strict=True))] = 20
    values[45:, 20, 12] = 20  # a line towards the right
    pet = write_pet(tmp_path / "pet.nii.gz", values, np.diag((2.0, 3, 5, 1)))
    with serving(single_case(pet, tmp_path / "out")) as (_, server):
        opened(server)
        settled(page)
        for pane in PANES:
            dark = pixels(page, pane).max(axis=2) == 0
            rows, columns = dark.sum(axis=1), dark.sum(axis=0)
            tall = np.median(columns[columns > 0])
            wide = np.median(rows[rows > 0])
            assert tall / wide == pytest.approx(1, abs=0.12), pane
        dark = pixels(page, "axial").max(axis=2) == 0
        columns = np.flatnonzero(dark.any(axis=0))
        middle = dark.shape[1] / 2
        assert middle - columns[0] > columns[-1] - middle + 10  # the line to the patient's right is on the left


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return random_mini(tmp_path_factory.mktemp("export"))


def test_from_the_first_click_to_the_saved_table(page, opened, tmp_path, export) -> None:
    """Clicked, corrected, undone, a second lesion by its proposal, saved: equal to `predict` with the saved clicks."""
    pet, out = write_pet(tmp_path / "pet.nii.gz"), tmp_path / "out"
    with serving(single_case(pet, out), load=lambda: load_model(export, "cpu")) as (client, server):
        opened(server)
        page.keyboard.press("g")  # proposals; the first is shown
        page.wait_for_selector("#proposals li.now")
        at = server.viewer.session.propose()[0]["voxel"]
        assert page.text_content("#readout").startswith(f"voxel {', '.join(map(str, at))} ")
        page.keyboard.press("a")
        page.wait_for_selector("#lesions tbody tr[data-lesion='1']")
        settled(page)
        box = page.locator("#axial").bounding_box()
        for how, clicks in (({"modifiers": ["Shift"]}, 2), ({"button": "right"}, 3)):
            click_at(page, "axial", (box["width"] / 2 + 3 * clicks, box["height"] / 2), **how)
            client.wait(lambda state, clicks=clicks: len(state["clicks"]) == clicks and not state["busy"])
            settled(page)
        assert [click["label"] for click in client.get("/state")["clicks"]] == [1, 0, 0]
        page.click("#undo")
        client.wait(lambda state: len(state["clicks"]) == 2)
        page.locator("#proposals button", has_text="✓").first.click()
        page.wait_for_selector("#lesions tbody tr[data-lesion='2']")
        settled(page)
        client.wait(lambda state: not state["busy"])
        page.locator("#lesions tbody tr[data-lesion='2'] td:nth-child(8)", has_text="1 + 0").wait_for()
        page.keyboard.press("s")
        page.locator("#message", has_text="Saved in").wait_for()
        cells = page.locator("#lesions tbody tr").all_inner_texts()
    made = Outputs(
        tmp_path / "p" / "mask.nii.gz", tmp_path / "p" / "instances.nii.gz", None, tmp_path / "p" / "lesions.csv"
    )
    run(pet, out / "clicks.json", export, made, device="cpu")
    for path in (made.mask, made.instances, made.table):
        assert path.read_bytes() == (out / path.name).read_bytes()
    assert (out / "projections.png").is_file()
    rows = list(csv.DictReader((out / "lesions.csv").open()))
    assert len(cells) == len(rows) == 2
    for text, row in zip(cells, rows, strict=True):
        shown = text.split("\t")
        assert shown[0] == row["lesion_id"]
        assert shown[1] == f"{float(row['volume_ml']):.2f}"
        assert shown[2] == f"{float(row['suv_max']):.1f}"
        assert shown[5] == f"{float(row['tla']):.1f}"
        assert shown[7] == f"{row['foreground_clicks']} + {row['background_clicks']}"


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_by_keyboard_alone(page, opened, tmp_path, suffix) -> None:
    """Moves, clicks, corrects, starts a second lesion, undoes, deletes and saves without a pointer."""
    sitk.WriteImage(sitk.ReadImage(write_pet(tmp_path / "pet.nii.gz")), tmp_path / f"pet{suffix}")
    out = tmp_path / "out"
    with serving(single_case(tmp_path / f"pet{suffix}", out)) as (client, server):
        opened(server)
        press = page.keyboard.press
        shape = server.viewer.session.scan.volume.array.shape
        goal, at = FIRST, [n // 2 for n in shape]
        for _ in range(at[2] - goal[2]):
            press("PageDown")
        for _ in range((at[0] - goal[0]) // 5):
            press("Shift+ArrowRight")
        for _ in range((at[0] - goal[0]) % 5):
            press("ArrowRight")
        for _ in range(at[1] - goal[1]):
            press("ArrowDown")
        press("Enter")
        page.wait_for_selector("#lesions tbody tr")
        press("Shift+ArrowLeft")
        press("Shift+Enter")
        client.wait(lambda state: len(state["clicks"]) == 2)
        settled(page)
        press("e")
        press("q")  # the coronal plane
        press("Shift+ArrowUp")
        press("Enter")
        client.wait(lambda state: len(state["clicks"]) == 3)
        settled(page)
        press("Delete")
        client.wait(lambda state: len(state["clicks"]) == 2)
        settled(page)
        press("Control+z")
        clicks = client.wait(lambda state: len(state["clicks"]) == 3)["clicks"]
        assert [(click["voxel"], click["label"], click["lesion"]) for click in clicks] == [
            (list(FIRST), 1, 1),
            ([FIRST[0] + 5, FIRST[1], FIRST[2]], 0, 1),
            ([FIRST[0] + 5, FIRST[1], FIRST[2] + 5], 1, 2),
        ]
        settled(page)
        press("s")
        page.locator("#message", has_text="Saved in").wait_for()
    assert {"mask.nii.gz", "lesions.csv", "projections.png"} <= {path.name for path in out.iterdir()}


def test_a_far_click_asks_whose_it_is(page, opened, tmp_path) -> None:
    with serving(single_case(write_pet(tmp_path / "pet.nii.gz"), tmp_path / "out")) as (client, server):
        opened(server)
        client.click(FIRST)
        page.wait_for_selector("#lesions tbody tr", timeout=10_000)
        page.keyboard.press("n")
        for _ in range(16):
            page.keyboard.press("ArrowLeft")
        page.keyboard.press("Enter")
        assert "mm from lesion 1" in page.locator("#offer").inner_text()
        page.keyboard.press("Enter")
        assert [click["lesion"] for click in client.wait(lambda state: len(state["clicks"]) == 2)["clicks"]] == [1, 2]


def test_windows_layers_and_help(page, opened, tmp_path) -> None:
    with serving(single_case(write_pet(tmp_path / "pet.nii.gz"), tmp_path / "out")) as (_, server):
        opened(server)
        settled(page)
        middle = pixels(page, "axial").mean()
        for key, high in zip("12345", (5, 7, 10, 15, 20), strict=True):
            page.keyboard.press(key)
            settled(page)
            assert page.locator("#pet-window").input_value() == str(high)
        assert pixels(page, "axial").mean() > middle
        page.keyboard.press("0")
        assert page.locator("#pet-window").input_value() == "20"  # resetting the view keeps the window
        page.keyboard.press("?")
        assert "mark the background" in page.locator("#help").inner_text()
        page.keyboard.press("Escape")
        assert page.locator("#help[open]").count() == 0


def test_names_are_text(page, opened, tmp_path) -> None:
    """HTML in the name of a patient, folder or lesion is shown as text and has no effect."""
    evil = "<img src=x onerror=document.title='owned'>"
    stored = np.round(blobs().transpose(2, 1, 0) * 1000).astype(np.int16)
    folder = tmp_path / "<script>document.title='owned'<"
    write_series(folder, stored, change=lambda n, slice_: setattr(slice_, "PatientName", evil))
    with serving(single_case(folder, tmp_path / "out")) as (_, server):
        opened(server)
        assert page.text_content("#patient") == f"{evil}, 1"
        assert page.text_content("#name") == folder.name
        assert page.locator("img").count() == 0
        assert page.locator("script:not([src])").count() == 0
        assert "owned" not in page.title().replace(folder.name, "")


def test_a_file_that_is_not_a_pet_in_suv_is_said_so(page, opened, tmp_path) -> None:
    pet = write_pet(tmp_path / "pet.nii.gz", blobs() * 5000)
    with serving(single_case(pet, tmp_path / "out")) as (_, server):
        opened(server)
        assert "does not look like PET in SUV" in page.text_content("#message")
        assert page.locator("#pet-window option").all_inner_texts() == ["not in SUV"]


def test_without_the_token_the_page_is_empty(page, tmp_path) -> None:
    with serving(single_case(write_pet(tmp_path / "pet.nii.gz"), tmp_path / "out")) as (_, server):
        page.goto(server.link.split("#")[0])
        page.wait_for_selector("#failure:not([hidden])")
        assert "token" in page.locator("#failure").inner_text()
        page.goto("about:blank")


def test_the_link_loses_its_token_and_reloading_works(page, opened, tmp_path) -> None:
    with serving(single_case(write_pet(tmp_path / "pet.nii.gz"), tmp_path / "out")) as (_, server):
        opened(server)
        assert server.token not in page.url
        page.reload()
        page.wait_for_selector("body[data-first]")


def test_an_end_of_the_program_is_said(page, opened, tmp_path) -> None:
    with serving(single_case(write_pet(tmp_path / "pet.nii.gz"), tmp_path / "out")) as (_, server):
        opened(server)
    page.wait_for_selector("#failure:not([hidden])")
    assert "All clicks are saved" in page.locator("#failure").inner_text()


def test_stepping_through_a_cohort(page, opened, tmp_path) -> None:
    cases = [
        Case(f"case{n}", {"PT": write_pet(tmp_path / f"pet{n}.nii.gz", blobs() + n)}, None, "train") for n in (0, 1)
    ]
    write_manifest(tmp_path / "all.json", cases)
    viewed = cohort_cases(tmp_path / "all.json", tmp_path / "out", None, None)
    with serving(*viewed, annotated=tmp_path / "out" / "manifest.json") as (client, server):
        opened(server)
        client.click(FIRST)
        page.wait_for_selector("#lesions tbody tr")
        page.keyboard.press("s")
        page.locator("#message", has_text="manifest.json").wait_for()
        assert page.locator("#cases option").all_inner_texts() == ["✓ case0", "case1"]
        page.keyboard.press("]")
        page.locator("#name", has_text="pet1.nii.gz").wait_for()
        client.wait(lambda state: state["current"] == 1 and state["phase"] == "ready")
        page.wait_for_selector("#lesions tbody tr", state="detached")
        client.click(SECOND)
        page.wait_for_selector("#lesions tbody tr")
        page.keyboard.press("[")  # its results are not saved: a question, answered by Enter
        page.wait_for_selector("#question[open]")
        page.keyboard.press("Enter")
        page.locator("#name", has_text="pet0.nii.gz").wait_for()
        page.wait_for_selector("#lesions tbody tr")  # the first case's lesion is there again
        assert [click["voxel"] for click in client.wait()["clicks"]] == [list(FIRST)]
