"""`sammed3d-ft prompts`, and the import time of `prompts`."""

import json
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from prompts import Click, InputError, read_clicks, write_clicks
from tests.support.command import command

LAS = np.array([[-4.0, 0, 0, 60], [0, 4, 0, -50], [0, 0, 2, 10], [0, 0, 0, 1.0]])


def run(*words: object) -> str:
    return command("prompts", *words)


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    array = np.zeros((12, 14, 16), np.uint8)
    array[2:5, 2:7, 2:9] = 1
    array[9, 10, 11] = 1
    nib.save(nib.Nifti1Image(array, LAS), tmp_path / "mask.nii.gz")
    return tmp_path / "mask.nii.gz"


@pytest.fixture
def pet(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).random((12, 14, 16)).astype(np.float32)
    array[4, 6, 8], array[0, 0, 0] = 30.0, 20.0
    nib.save(nib.Nifti1Image(array, LAS), tmp_path / "pet.nii.gz")
    return tmp_path / "pet.nii.gz"


def voxels(path: Path) -> list[list[int]]:
    return [point["position"] for point in json.loads(path.read_text())["points"]]


def test_make_clicks_on_every_lesion_in_the_files_own_voxels(mask: Path, tmp_path: Path) -> None:
    out = tmp_path / "clicks.json"
    assert "2 foreground and 0 background" in run("make", mask, "--out", out, "--to", "voxel")
    assert sorted(voxels(out)) == [[3, 4, 5], [9, 10, 11]]


def test_make_with_pet_and_negatives(mask: Path, pet: Path, tmp_path: Path) -> None:
    out = tmp_path / "clicks.json"
    options = (
        "--strategy",
        "suvmax",
        "--negatives",
        1,
        "--negative-strategy",
        "hot_background",
        "--to",
        "voxel",
    )
    run("make", mask, "--out", out, "--pet", pet, *options)
    # 2578 background voxels: 7 are hot, the planted one among them; the lesion's own maximum is clicked.
    assert [4, 6, 8] in voxels(out)
    assert len(voxels(out)) == 3


def test_make_autopet_counts_in_the_files_own_order(mask: Path, pet: Path, tmp_path: Path) -> None:
    from prompts import autopet_clicks

    out = tmp_path / "clicks.json"
    run("make", mask, "--out", out, "--pet", pet, "--strategy", "autopet", "--to", "autopet")
    expected = autopet_clicks(np.asarray(nib.load(mask).dataobj), np.asarray(nib.load(pet).dataobj)).coords_vox.tolist()
    assert json.loads(out.read_text()) == {"tumor": expected[:10], "background": expected[10:]}


def test_convert_there_and_back(mask: Path, tmp_path: Path) -> None:
    first, slicer, back = tmp_path / "a.json", tmp_path / "a.mrk.json", tmp_path / "b.json"
    run("make", mask, "--out", first, "--strategy", "uniform", "--negatives", 2)
    run("convert", first, slicer)
    run("convert", slicer, back, "--image", mask)
    assert read_clicks(back) == read_clicks(first)
    assert back.read_text() == first.read_text()
    assert "cannot store lesions" in run("convert", first, back, "--to", "autopet", "--image", mask)


def test_wrong_input_is_one_line(mask: Path, pet: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    empty, other = tmp_path / "empty.nii.gz", tmp_path / "other.nii.gz"
    nib.save(nib.Nifti1Image(np.zeros((4, 4, 4), np.uint8), LAS), empty)
    nib.save(nib.Nifti1Image(np.zeros((12, 14, 15), np.float32), LAS), other)
    for arguments, says in (
        (("make", empty, "--out", out), "contains no lesions"),
        (("make", mask, "--out", out, "--pet", other), "is not on the grid"),
        (("make", mask, "--out", out, "--strategy", "suvmax"), "provide the PET"),
        (("make", mask, "--out", out, "--connectivity", 7), "6, 18 or 26"),
        (("convert", tmp_path / "none.json", out), "no such click file"),
    ):
        with pytest.raises(InputError, match=says):
            run(*arguments)
    assert not out.exists()


def test_importing_prompts_loads_nothing_heavy() -> None:
    code = (
        "import sys, prompts; from sammed3d_ft.cli import prompts as command; "
        "heavy = {'torch', 'numpy', 'scipy', 'cc3d', 'nibabel'} & set(sys.modules); "
        "assert not heavy, heavy; missing = [n for n in prompts.__all__ if not hasattr(prompts, n)]; "
        "assert not missing, missing; assert not {m for m in sys.modules if m.startswith('sammed3d_ft.images')}"
    )
    root = Path(__file__).resolve().parents[2]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root)


@pytest.fixture
def hot(tmp_path: Path) -> Path:
    """Three places of uptake, the highest first: SUV 20, 12, 8."""
    array = np.zeros((30, 30, 40), np.float32)
    for at, suv in (((5, 5, 5), 20.0), ((20, 8, 30), 12.0), ((10, 22, 15), 8.0)):
        array[tuple(slice(c, c + 3) for c in at)] = suv / 2
        array[tuple(c + 1 for c in at)] = suv
    nib.save(nib.Nifti1Image(array, LAS), tmp_path / "hot.nii.gz")
    return tmp_path / "hot.nii.gz"


def test_propose_then_select_keeps_numbers_places_and_the_image(hot: Path, tmp_path: Path) -> None:
    proposed, chosen = tmp_path / "proposals.json", tmp_path / "clicks.json"
    said = run("propose", hot, "--out", proposed, "--figure", tmp_path / "proposals.png")
    assert "3 proposals" in said
    assert (tmp_path / "proposals.png").read_bytes().startswith(b"\x89PNG")

    assert "2 foreground and 1 background" in run("select", proposed, chosen, "--lesions", "3,1", "--background", "2")
    kept = {(click.lesion, click.label): click.position_mm for click in read_clicks(chosen)}
    corners_vox = {(1, 1): (6, 6, 6), (3, 1): (11, 23, 16), (None, 0): (21, 9, 31)}
    assert kept.keys() == corners_vox.keys()
    for which, voxel in corners_vox.items():
        np.testing.assert_allclose(kept[which], (LAS @ (*voxel, 1))[:3], atol=1e-4)
    assert json.loads(chosen.read_text())["image"] == json.loads(proposed.read_text())["image"]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--lesions", "4"), "no lesion 4; the file has lesions 1, 2, 3"),
        (("--lesions", "1,2", "--background", "2"), "2 cannot be both kept and background"),
        (("--lesions", " "), "no lesion to keep"),
    ],
)
def test_select_refuses(hot: Path, tmp_path: Path, options: tuple[str, ...], line: str) -> None:
    run("propose", hot, "--out", tmp_path / "proposals.json")
    with pytest.raises(InputError, match=line):
        run("select", tmp_path / "proposals.json", tmp_path / "clicks.json", *options)
    assert not (tmp_path / "clicks.json").exists()


def test_select_says_when_no_click_has_a_number(tmp_path: Path) -> None:
    write_clicks(tmp_path / "in.json", [Click((1.0, 2.0, 3.0), 1)])
    with pytest.raises(InputError, match="no lesion 1; the file has only clicks without lesion numbers"):
        run("select", tmp_path / "in.json", tmp_path / "out.json", "--lesions", "1")
