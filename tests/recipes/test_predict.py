"""The predict recipe and its command, on files: grids, click forms, table, record, and what is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.spatial.transform import Rotation

from prompts import Click, InputError, write_clicks
from sammed3d_ft.images.images import read_image, read_label
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.prompted.clicked_scan import ClickedScan, group_clicks
from sammed3d_ft.prompted.predictor import Predictor
from sammed3d_ft.prompted.preprocessing import Preprocessing
from sammed3d_ft.prompted.start_lesions import StartLesions
from sammed3d_ft.provenance import file_hash, state_hash
from sammed3d_ft.recipes.evaluate import run as evaluate
from sammed3d_ft.recipes.predict import Outputs, run
from tests.support.command import command
from tests.support.exports import random_mini
from tests.support.storage_orders import source_vox


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return random_mini(tmp_path_factory.mktemp("export"))


@pytest.fixture
def pet(tmp_path) -> Path:
    """A scan stored right to left and rotated, with unusual header codes."""
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
    outputs = Outputs(out, instances, probability, table, figure)
    record = run(pet, tmp_path / "clicks.json", export, outputs, device="cpu")
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
    finer = Predictor.from_pretrained(export, "cpu", spacing_mm=1.25)
    assert finer.preprocessing == Preprocessing(("PT",), 1.25, {"PT": (0, 30)})
    for spacing_mm in (0.0, 1e-7, float("nan")):
        with pytest.raises(InputError, match="expected 0.01 to 100 mm"):
            Predictor.from_pretrained(export, "cpu", spacing_mm=spacing_mm)
    volume = read_image(pet)
    predictor.set_image({"PT": volume})
    vox = [volume.to_vox(click.position_mm) for click in clicks]
    predictor.add_clicks([vox[0], vox[2], vox[3]], [1, 0, 0], 1)
    predictor.add_clicks([vox[1], vox[3]], [1, 0], 5)
    np.testing.assert_array_equal(volume.source.from_canonical(predictor.instances()), numbered)

    assert table.read_text().splitlines()[0] == (
        "lesion_id,name,voxels,volume_ml,size_class,centroid_x_mm,centroid_y_mm,centroid_z_mm,"
        "suv_max,suv_mean,suv_peak,suv_peak_flagged,tla,predicted_iou,foreground_clicks,background_clicks,"
        "accumulate_clicks"
    )
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
    assert record["inputs"]["image"]["sha256"] == file_hash(pet)
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
        run(pet, path, export, Outputs(tmp_path / f"{name}.nii"), device="cpu")
        masks.append((tmp_path / f"{name}.nii").read_bytes())
    assert masks[0] == masks[1]


def test_clicks_are_grouped_by_lesion():
    clicks = [
        Click((0, 0, 0), 1, None),  # a separate lesion
        Click((1, 0, 0), 1, 2),
        Click((2, 0, 0), 0, None),  # for all
        Click((3, 0, 0), 1, "spine"),
        Click((4, 0, 0), 0, 2),
        Click((5, 0, 0), 1, None),  # a separate lesion
        Click((6, 0, 0), 1, 0),  # 0 means background in an instance image
        Click((7, 0, 0), 1, 2**31),  # more than an instance image holds
    ]
    coords = np.array([click.position_mm for click in clicks])
    lesions, background = group_clicks(clicks, coords, Path("c.json"))
    assert [(one.number, one.name, [p[0] for p in one.positions_vox], one.labels) for one in lesions] == [
        (1, None, [0], [1]),
        (2, 2, [1, 4], [1, 0]),
        (3, "spine", [3], [1]),
        (4, None, [5], [1]),
        (5, 0, [6], [1]),
        (6, 2**31, [7], [1]),
    ]
    assert [position[0] for position in background] == [2]
    with pytest.raises(InputError, match=r"c\.json: point 1, the first click of lesion 2, is background"):
        group_clicks(clicks[4:], coords[4:], Path("c.json"))
    with pytest.raises(InputError, match="no foreground click"):
        group_clicks(clicks[2:3], coords[2:3], Path("c.json"))


def test_a_nrrd_scan_gives_the_same_mask_and_gets_it_back_as_nrrd(tmp_path, pet, clicks, export):
    nifti = nib.load(pet)
    image = sitk.GetImageFromArray(np.asarray(nifti.dataobj).transpose(2, 1, 0))
    lps = np.diag([-1.0, -1, 1, 1]) @ nifti.affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(tmp_path / "pet.nrrd"))
    run(pet, tmp_path / "clicks.json", export, Outputs(tmp_path / "a.nii.gz"), device="cpu")
    run(tmp_path / "pet.nrrd", tmp_path / "clicks.json", export, Outputs(tmp_path / "b.nrrd"), device="cpu")
    written = sitk.ReadImage(str(tmp_path / "b.nrrd"))
    expected = np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written).transpose(), expected)
    assert expected.any()
    for what in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(getattr(written, what)(), getattr(image, what)(), rtol=1e-9, atol=1e-9)
    assert (tmp_path / "b.predict.json").is_file()


def boxes(tmp_path, pet, **numbers):
    """A mask file on the grid of the PET: a box per number, in the file's own voxels."""
    source = nib.load(pet)
    values = np.zeros(source.shape, np.uint8)
    places = {"a": np.s_[6:10, 7:11, 4:8], "b": np.s_[15:18, 16:19, 7:10], "c": np.s_[20:23, 2:5, 1:3]}
    for name, number in numbers.items():
        values[places[name]] = number
    nib.save(nib.Nifti1Image(values, source.affine), tmp_path / "start.nii.gz")
    return tmp_path / "start.nii.gz", values


def test_clicked_lesions_of_a_starting_mask_change_and_the_others_stay(tmp_path, pet, clicks, export):
    start, values = boxes(tmp_path, pet, a=7, b=5, c=3)
    affine = nib.load(pet).affine
    at = [tuple((affine[:3, :3] @ vox + affine[:3, 3]).tolist()) for vox in ((8, 9, 6), (7, 8, 5), (2, 22, 12))]
    # Without ids: one in the lesion that the map calls 7, one taking away from it, one where nothing is.
    write_clicks(tmp_path / "two.json", [Click(at[0], 1), Click(at[1], 0), Click(at[2], 1)])
    outputs = Outputs(tmp_path / "mask.nii.gz", tmp_path / "inst.nii.gz", table=tmp_path / "lesions.csv")
    record = run(pet, tmp_path / "two.json", export, outputs, start=start, device="cpu")
    rows = {row["lesion_id"]: row for row in record["lesions"]}
    assert {k: (row["foreground_clicks"], row["background_clicks"]) for k, row in rows.items()} == {
        1: (1, 0),
        3: (0, 0),
        5: (0, 0),
        7: (1, 1),
    }
    assert rows[5]["predicted_iou"] is None
    assert rows[7]["predicted_iou"] is not None
    assert record["inputs"]["start"]["sha256"] == file_hash(start)
    numbered = np.asarray(nib.load(outputs.instances).dataobj)
    # As they were, but for voxels that a clicked lesion claims.
    for number in (3, 5):
        assert np.isin(numbered[values == number], (number, 1, 7)).all()
        assert not (numbered[values != number] == number).any()
    assert (np.asarray(nib.load(outputs.mask).dataobj)[(values == 3) | (values == 5)] == 1).all()

    # The same from the predictor, step by step.
    predictor = Predictor.from_pretrained(export, "cpu")
    volume = read_image(pet)
    predictor.set_image({"PT": volume})
    label = read_label(start).array
    predictor.add_mask(label == 7, 7)
    predictor.add_click(volume.to_vox(at[0]), 1, 7)
    predictor.add_click(volume.to_vox(at[1]), 0, 7)
    predictor.add_click(volume.to_vox(at[2]), 1, 1)
    predictor.add_mask(label == 3, 3)
    predictor.add_mask(label == 5, 5)
    np.testing.assert_array_equal(volume.source.from_canonical(predictor.instances()), numbered)


def test_without_clicks_each_lesion_of_a_mask_is_clicked_at_its_deepest_point(tmp_path, pet, export):
    start, _ = boxes(tmp_path, pet, a=1, b=1)
    record = run(pet, None, export, Outputs(tmp_path / "mask.nii.gz"), start=start, device="cpu")
    assert [(row["lesion_id"], row["foreground_clicks"]) for row in record["lesions"]] == [(1, 1), (2, 1)]
    assert set(record["inputs"]) == {"image", "start"}
    scan = ClickedScan.read(pet, None, start)
    stored = [source_vox(scan.volume, lesion.positions_vox[0]) for lesion in scan.lesions]
    # The middle of a box of 3 voxels, and one of the middle voxels of a box of 4.
    assert sorted(np.abs(np.array(stored) - [7.5, 8.5, 5.5]).max(1).tolist()) == [0.5, 8.5]
    assert any((place == (16, 17, 8)).all() for place in stored)


def start_of(numbers, *places):
    labels = np.zeros((9, 9, 9), np.int32)
    for count, place in enumerate(places, 1):
        labels[place] = count
    return StartLesions(labels, numbers)


def test_clicks_find_the_lesion_of_a_mask_by_place_or_by_number():
    clicks = [
        Click((1, 1, 1), 1, None),  # in the mask's first lesion
        Click((5, 5, 5), 1, None),  # in its second
        Click((1, 1, 1), 0, None),  # first again
        Click((8, 8, 8), 1, "new"),  # in none
        Click((8, 8, 8), 0, 1),  # in none, and number 1 where the map has numbers
        Click((4, 4, 4), 0, "part"),  # in the second, under a name of its own
    ]
    coords = np.array([click.position_mm for click in clicks])
    places = (np.s_[0:2, 0:2, 0:2], np.s_[4:6, 4:6, 4:6], np.s_[7, 7, 7])

    def grouped(numbers, given):
        lesions, background = group_clicks(
            [clicks[i] for i in given], coords[given], Path("c.json"), start_of(numbers, *places)
        )
        assert background == []
        return [(one.number, one.name, one.start, one.labels) for one in lesions]

    assert grouped((4, 1, 9), [0, 1, 2, 3, 4, 5]) == [
        (4, None, 1, [1, 0]),
        (1, 1, 2, [1, 0]),
        (2, "new", None, [1]),
        (3, "part", 2, [0]),
        (9, None, 3, []),
    ]
    assert grouped(None, [0, 1, 2, 3, 5]) == [
        (1, None, 1, [1, 0]),
        (2, None, 2, [1]),
        (3, "new", None, [1]),
        (4, "part", 2, [0]),
        (5, None, 3, []),
    ]
    with pytest.raises(InputError, match="point 1, the first click of lesion 1, is background"):
        grouped(None, [4])
    # ID and position belong to different lesions: the click is refused.
    clicks.append(Click((5, 5, 5), 1, 4))
    coords = np.array([click.position_mm for click in clicks])
    with pytest.raises(InputError, match="point 1 is a foreground click of lesion 4, but lies in lesion 1"):
        grouped((4, 1, 9), [6])


def test_wrong_starting_masks_are_named(tmp_path, pet):
    start, values = boxes(tmp_path, pet, a=1)
    volume = read_image(pet)
    affine = nib.load(pet).affine
    for array, grid, says in (
        (values[:-1], affine, "is not on the grid of .*pet.nii.gz \\(shape"),
        (values * 0, affine, "the start mask is empty"),
        (values * np.float32(0.5), affine, "hold fractions"),
    ):
        nib.save(nib.Nifti1Image(array, grid), start)
        with pytest.raises(InputError, match=says):
            StartLesions.read(start, pet, volume)


def test_a_mask_of_one_number_is_an_instance_map_only_in_one_piece(tmp_path, pet):
    start, _ = boxes(tmp_path, pet, a=7)
    found = StartLesions.read(start, pet, read_image(pet))
    assert (found.count, found.numbers, found.named(7), found.named("7")) == (1, (7,), 1, None)
    start, _ = boxes(tmp_path, pet, a=7, b=7)
    found = StartLesions.read(start, pet, read_image(pet))
    assert (found.count, found.numbers, found.named(7)) == (2, None, None)


def test_wrong_input_is_refused_before_anything_is_written(tmp_path, pet, clicks, export):
    given, out = tmp_path / "clicks.json", tmp_path / "mask.nii.gz"
    outside = tmp_path / "outside.json"
    write_clicks(outside, [Click((1e4, 0, 0), 1)])
    empty = tmp_path / "empty.json"
    empty.write_text('{"tumor": [], "background": []}')
    mask = Outputs(out)
    for arguments, options, said in [
        ((pet, outside, export, mask), {}, "point 1 lies outside the image"),
        ((pet, empty, export, mask), {}, "contains no clicks"),
        ((pet, None, export, mask), {}, "give --clicks or --start"),
        ((pet, given, export, Outputs(pet)), {}, "would overwrite an input"),
        ((pet, given, export, Outputs(given)), {}, "written as .nii.gz, .nii, .nrrd, .mha"),
        ((pet, given, export, Outputs(out, tmp_path / "mask.mhd")), {}, "written as .nii.gz, .nii, .nrrd, .mha"),
        ((pet, given, export, mask), {"ct": pet}, "omit --ct"),
        ((pet, given, export, Outputs(out, out)), {}, "would overwrite another output"),
        ((pet, given, tmp_path / "none.pth", mask), {}, "no weights at"),
        ((pet, given, export, mask), {"base": export}, "omit --base"),
        ((pet, given, export, mask), {"device": "warp"}, "device 'warp'"),
        ((pet, given, export, mask), {"start": tmp_path / "none.nii"}, "no such file"),
        ((pet, given, export, mask), {"source": tmp_path}, "needs both --seg FILE and --source"),
        ((pet, given, export, Outputs(out, seg=tmp_path / "a.dcm")), {}, "needs both --seg FILE and --source"),
    ]:
        with pytest.raises(InputError, match=said):
            run(*arguments, **options)
        assert not out.exists()


def test_published_form_is_recognised(tmp_path, caplog):
    import torch

    state = {f"module.{name}": value for name, value in seeded_model("mini", 0).state_dict().items()}
    torch.save({"model_state_dict": state, "epoch": 3}, tmp_path / "published.pth")
    predictor = Predictor.from_pretrained(tmp_path / "published.pth", "cpu")
    assert predictor.preprocessing == Preprocessing(("PT",), 3.0)
    assert predictor.accumulate
    # Weights that state no settings are not contradicted by the user's.
    other = Predictor.from_pretrained(tmp_path / "published.pth", "cpu", spacing_mm=2.0, accumulate=False)
    assert (other.preprocessing.spacing_mm, other.accumulate) == (2.0, False)
    assert caplog.messages == []


def test_the_click_mode_can_be_chosen_and_is_recorded(tmp_path, pet, clicks, export):
    for accumulate, name in ((None, "true"), (True, "true"), (False, "false")):
        outputs = Outputs(tmp_path / "mask.nii.gz", table=tmp_path / "lesions.csv")
        record = run(pet, tmp_path / "clicks.json", export, outputs, device="cpu", accumulate=accumulate)
        assert record["accumulate_clicks"] is (name == "true")
        with outputs.table.open() as table:
            assert {row["accumulate_clicks"] for row in csv.DictReader(table)} == {name}

    scores = tmp_path / "scores"
    summary = evaluate(outputs.mask, outputs.mask, scores, figures=False)
    told = f"{export}, newest click only: 1 of 1 masks"
    assert summary["configuration"]["predicted_by"] == [told]
    assert told in (scores / "report.html").read_text()
    outputs.record.unlink()
    assert evaluate(outputs.mask, outputs.mask, scores, figures=False)["configuration"]["predicted_by"] == []


def test_names_that_matplotlib_would_read_as_formulas_are_drawn(tmp_path, pet, clicks, export):
    odd = pet.rename(tmp_path / "a$^$b.nii.gz")
    outputs = Outputs(tmp_path / "mask.nii.gz", figure=tmp_path / "mip.png")
    run(odd, tmp_path / "clicks.json", export, outputs, device="cpu")
    assert (tmp_path / "mip.png").stat().st_size > 1000


def test_command_says_what_it_did(tmp_path, pet, clicks, export):
    words = ("--image", pet, "--clicks", tmp_path / "clicks.json", "--checkpoint", export, "--device", "cpu")
    told = command("predict", *words, "--out", tmp_path / "mask.nii.gz")
    assert "2 lesions" in told
    assert "1 (liver)" in told
    assert (tmp_path / "mask.nii.gz").is_file()
