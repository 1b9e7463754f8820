"""The predict recipe and its command, on files: grids, click forms, table, record, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import typer
from scipy.spatial.transform import Rotation
from typer.testing import CliRunner

from prompts import Click, InputError, write_clicks
from sammed3d_ft.cli.predict import predict
from sammed3d_ft.data.images import read_image
from sammed3d_ft.data.preprocessing import Preprocessing
from sammed3d_ft.inference import Predictor
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.weights import save_safetensors, sha256_of, state_hash
from sammed3d_ft.recipes.clicked_scan import group_clicks
from sammed3d_ft.recipes.predict import run


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    """An export of `mini`, small crops so that two lesions are cheap."""
    path = tmp_path_factory.mktemp("export") / "model.safetensors"
    metadata = {"variant": "mini", "preprocessing": Preprocessing(("PT",), 2.5, {"PT": (0, 30)}).to_json()}
    save_safetensors(path, seeded_model("mini", 0).state_dict(), metadata)
    return path


@pytest.fixture
def pet(tmp_path) -> Path:
    """A scan stored right to left and rotated, with header codes of its own."""
    affine = np.eye(4)
    affine[:3, :3] = Rotation.from_euler("z", 12, degrees=True).as_matrix() @ np.diag([-4.0, 3.0, 5.0])
    affine[:3, 3] = (50, -40, 8)
    values = np.random.default_rng(0).gamma(2, 2, (24, 26, 14)).astype(np.float32)
    image = nib.Nifti1Image(values, affine)
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=1)
    nib.save(image, tmp_path / "pet.nii.gz")
    return tmp_path / "pet.nii.gz"


@pytest.fixture
def clicks(tmp_path, pet) -> list[Click]:
    affine = nib.load(pet).affine
    stored_vox = [
        ((8, 9, 6), 1, "liver"),
        ((16, 17, 8), 1, 5),
        ((9, 10, 6), 0, "liver"),
        ((12, 13, 7), 0, None),
    ]
    clicks = [
        Click(tuple(map(float, affine[:3, :3] @ vox + affine[:3, 3])), label, lesion)
        for vox, label, lesion in stored_vox
    ]
    write_clicks(tmp_path / "clicks.json", clicks)
    return clicks


def test_outputs_lie_on_the_grid_of_the_file_and_the_table_agrees(tmp_path, pet, clicks, export):
    out = tmp_path / "new" / "folder" / "mask.nii.gz"
    instances, probability, table = (tmp_path / n for n in ("inst.nii.gz", "prob.nii", "lesions.csv"))
    figure = tmp_path / "mip.png"
    record = run(
        pet, tmp_path / "clicks.json", export, out, None, instances, probability, table, device="cpu", figure=figure
    )
    assert figure.read_bytes().startswith(b"\x89PNG")

    source = nib.load(pet)
    for path in (out, instances, probability):
        written = nib.load(path)
        assert written.shape == source.shape
        np.testing.assert_array_equal(written.affine, source.affine)
        assert int(written.header["sform_code"]) == 2
        assert int(written.header["qform_code"]) == 1
    mask, numbered = nib.load(out), np.asarray(nib.load(instances).dataobj)
    assert mask.get_data_dtype() == np.uint8
    values = np.asarray(mask.dataobj)
    np.testing.assert_array_equal(values, numbered > 0)
    assert 0 < values.sum() < values.size
    np.testing.assert_array_equal(np.asarray(nib.load(probability).dataobj) > 0.5, values > 0)

    # The same, straight from the predictor.
    predictor = Predictor.from_pretrained(export, "cpu")
    assert predictor.preprocessing == Preprocessing(("PT",), 2.5, {"PT": (0, 30)})
    volume = read_image(pet)
    predictor.set_image({"PT": volume})
    vox = [volume.to_vox(click.position_mm) for click in clicks]
    predictor.add_clicks([vox[0], vox[2], vox[3]], [1, 0, 0], 1)
    predictor.add_clicks([vox[1], vox[3]], [1, 0], 5)
    np.testing.assert_array_equal(volume.source.from_canonical(predictor.instances()), numbered)

    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["lesion_id"], row["name"]) for row in rows] == [("1", "liver"), ("5", "5")]
    assert [(row["foreground_clicks"], row["background_clicks"]) for row in rows] == [("1", "2"), ("1", "1")]
    suv = np.asarray(source.dataobj)
    for row in rows:
        own = numbered == int(row["lesion_id"])
        assert int(row["voxels"]) == own.sum()
        if not own.any():
            continue
        assert float(row["volume_ml"]) == pytest.approx(own.sum() * 60 / 1000)
        assert float(row["suv_max"]) == pytest.approx(suv[own].max())
        centroid = source.affine[:3, :3] @ np.argwhere(own).mean(0) + source.affine[:3, 3]
        np.testing.assert_allclose([float(row[f"centroid_{axis}_mm"]) for axis in "xyz"], centroid, atol=1e-3)
        assert float(row["predicted_iou"]) == pytest.approx(predictor.lesion(int(row["lesion_id"])).predicted_iou)

    written_record = json.loads((out.parent / "mask.predict.json").read_text())
    assert written_record == json.loads(json.dumps(record))
    assert record["inputs"]["image"]["sha256"] == sha256_of(pet)
    assert record["model_hash"] == state_hash(seeded_model("mini", 0).state_dict())
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".tmp")]


@pytest.mark.parametrize("form", ["world-lps", "voxel", "slicer-json"])
def test_click_forms_give_the_same_mask(tmp_path, pet, clicks, export, form):
    source = read_image(pet).source
    plain = [Click(click.position_mm, click.label) for click in clicks[:2]]
    masks = []
    for name, given in (("a", "world-ras"), ("b", form)):
        path = tmp_path / f"{name}.json"
        write_clicks(path, plain, form=given, affine=source.affine, shape=source.shape)
        run(pet, path, export, tmp_path / f"{name}.nii", device="cpu")
        masks.append((tmp_path / f"{name}.nii").read_bytes())
    assert masks[0] == masks[1]


def test_clicks_are_grouped_by_lesion():
    clicks = [
        Click((0, 0, 0), 1, None),  # its own lesion
        Click((1, 0, 0), 1, 2),
        Click((2, 0, 0), 0, None),  # for all
        Click((3, 0, 0), 1, "spine"),
        Click((4, 0, 0), 0, 2),
        Click((5, 0, 0), 1, None),  # its own lesion
        Click((6, 0, 0), 1, 0),  # 0 means background in an instance image
    ]
    coords = np.array([click.position_mm for click in clicks])
    lesions, background = group_clicks(clicks, coords, Path("c.json"))
    assert [(one.number, one.name, [p[0] for p in one.positions_vox], one.labels) for one in lesions] == [
        (1, None, [0], [1]),
        (2, 2, [1, 4], [1, 0]),
        (3, "spine", [3], [1]),
        (4, None, [5], [1]),
        (5, 0, [6], [1]),
    ]
    assert [position[0] for position in background] == [2]
    with pytest.raises(InputError, match=r"c\.json: point 1 is the first of lesion 2 and background"):
        group_clicks(clicks[4:], coords[4:], Path("c.json"))
    with pytest.raises(InputError, match="no foreground click"):
        group_clicks(clicks[2:3], coords[2:3], Path("c.json"))


def test_wrong_input_is_refused_before_anything_is_written(tmp_path, pet, clicks, export):
    given, out = tmp_path / "clicks.json", tmp_path / "mask.nii.gz"
    outside = tmp_path / "outside.json"
    write_clicks(outside, [Click((1e4, 0, 0), 1)])
    empty = tmp_path / "empty.json"
    empty.write_text('{"tumor": [], "background": []}')
    for arguments, said in [
        ((pet, outside, export, out), "point 1 lies outside the image"),
        ((pet, empty, export, out), "holds no clicks"),
        ((pet, given, export, pet), "would overwrite an input"),
        ((pet, given, export, tmp_path / "mask.png"), "written as .nii or .nii.gz"),
        ((pet, given, export, out, pet), "leave out --ct"),
        ((pet, given, export, out, None, out), "would overwrite another output"),
        ((pet, given, tmp_path / "none.pth", out), "no weights at"),
        ((pet, given, export, out, None, None, None, None, export), "leave out --base"),
        ((pet, given, export, out, None, None, None, None, None, "warp"), "device 'warp'"),
    ]:
        with pytest.raises(InputError, match=said) as caught:
            run(*arguments)
        assert "\n" not in str(caught.value)
        assert not out.exists()


def test_published_form_is_recognised(tmp_path):
    import torch

    state = {f"module.{name}": value for name, value in seeded_model("mini", 0).state_dict().items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "published.pth")
    predictor = Predictor.from_pretrained(tmp_path / "published.pth", "cpu")
    assert predictor.preprocessing == Preprocessing(("PT",), 3.0)
    assert predictor.accumulate


def test_command_says_what_it_did(tmp_path, pet, clicks, export):
    app = typer.Typer()
    app.command()(predict)
    arguments = [
        "--image",
        pet,
        "--clicks",
        tmp_path / "clicks.json",
        "--checkpoint",
        export,
        "--device",
        "cpu",
    ]
    result = CliRunner().invoke(app, [*map(str, arguments), "--out", str(tmp_path / "mask.nii.gz")])
    assert result.exit_code == 0, result.output
    assert "2 lesions" in result.output
    assert "1 (liver)" in result.output
    assert (tmp_path / "mask.nii.gz").is_file()
