"""Published weights by name: files in their layout with random tensors, their presets, and both click modes."""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from prompts import Click, write_clicks
from sammed3d_ft.dataset.manifest import read_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import from_array
from sammed3d_ft.images.images import read_image
from sammed3d_ft.images.intensity import CLIP_RANGES
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.published import PUBLISHED, published_as
from sammed3d_ft.model.weights import load_weights, published_weights, read_metadata, read_state_dict
from sammed3d_ft.prompted.predictor import Predictor
from sammed3d_ft.prompted.preprocessing import Preprocessing, channels
from sammed3d_ft.prompted.pretrained import open_pretrained
from sammed3d_ft.prompted.task import PromptedTask
from sammed3d_ft.recipes.train import load_config
from tests.support.command import command
from tests.support.published_files import published_layout
from tests.support.stand_ins import plain_scan
from tests.support.tiny_cases import write_case, write_cohort
from tests.support.training_runs import ROOT, config_file

SEGANYPET = ("seganypet_v1", "seganypet_v2", "seganypet_lesion")


@pytest.fixture(scope="module")
def fetched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which all published weights have been fetched: full size, random tensors."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "weights").mkdir()
    state = seeded_model("vit_b_ori", seed=3).state_dict()
    torch.save(published_layout(state), folder / "weights" / "sam_med3d_turbo.pth")
    torch.save(published_layout(state, prefix=""), folder / "weights" / "seganypet_v1.pth")
    for name in SEGANYPET[1:]:
        os.link(folder / "weights" / "seganypet_v1.pth", folder / "weights" / f"{name}.pth")
    yield folder
    shutil.rmtree(folder)


def test_presets() -> None:
    assert sorted(PUBLISHED) == ["sam_med3d_turbo", "seganypet_lesion", "seganypet_v1", "seganypet_v2"]
    for name in SEGANYPET:
        assert (PUBLISHED[name].repo, PUBLISHED[name].file) == ("YichiZhang98/SegAnyPET", f"{name}.pth")
        assert "none stated" in PUBLISHED[name].licence
    assert PUBLISHED["sam_med3d_turbo"].repo == "blueyo0/SAM-Med3D"
    assert PUBLISHED["sam_med3d_turbo"].clip == CLIP_RANGES


def test_fetching_needs_no_torch() -> None:
    code = "import sys, sammed3d_ft.cli.weights, sammed3d_ft.model.download, sammed3d_ft.model.published"
    subprocess.run([sys.executable, "-c", f"{code}; assert 'torch' not in sys.modules"], cwd=ROOT, check=True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_each_file_loads_and_predicts_by_its_preset(name: str, fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fetched)
    predictor = Predictor.from_pretrained(name, "cpu")
    limits = (0.0, 50.0) if name == "sam_med3d_turbo" else None
    assert predictor.preprocessing == Preprocessing(("PT",), 1.5, {"PT": limits})
    assert predictor.accumulate is False
    assert predictor.preset == name
    own, state = predictor.model.state_dict(), read_state_dict(name).state  # type: ignore[attr-defined]
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], state[key]) for key in state)

    predictor.zoom = False
    predictor.set_image({"PT": plain_scan()})
    found = predictor.add_click((20, 22, 18))
    assert np.isfinite(found.logits).all()
    assert found.logits.std() > 0


def test_both_click_modes_agree_on_one_click_and_differ_on_the_next(
    fetched: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(fetched)
    logits = {}
    for accumulate in (None, False, True):
        predictor = Predictor.from_pretrained("seganypet_lesion", "cpu", obey=False, accumulate=accumulate)
        predictor.zoom = False
        predictor.set_image({"PT": plain_scan()})
        clicks = (((20, 22, 18), 1), ((23, 20, 18), 1), ((10, 30, 20), 0))
        logits[accumulate] = [predictor.add_click(at, label).logits.copy() for at, label in clicks]
    assert caplog.messages == ["seganypet_lesion was trained with newest click only; used here with accumulated clicks"]
    for newest, by_preset in zip(logits[False], logits[None], strict=True):
        np.testing.assert_array_equal(newest, by_preset)
    np.testing.assert_array_equal(logits[False][0], logits[True][0])
    for number in (1, 2):
        assert np.abs(logits[False][number] - logits[True][number]).max() > 1e-3


def test_pet_is_neither_clipped_nor_scaled() -> None:
    array = np.linspace(-1, 120, 64).reshape(4, 4, 4).astype(np.float32)
    pet = from_array(array, np.eye(4))
    preset = Preprocessing(("PT",), 1.5, {"PT": None})
    np.testing.assert_array_equal(channels({"PT": pet}, preset)[0].numpy(), array)
    assert channels({"PT": pet}, Preprocessing(("PT",), 1.5)).max() == 50
    assert json.loads(preset.to_json())["clip"] == {"PT": None}
    assert Preprocessing.from_json(preset.to_json()) == preset


def test_predict_names_preset_and_click_mode_in_every_output(
    tmp_path: Path, fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fetched)
    pet = write_case(tmp_path, "case", [((12.0, 12.0, 12.0), 15.0)], shape=(24, 24, 24)).images["PT"]
    position = read_image(pet).to_mm(np.array([12.0, 12.0, 12.0]))
    write_clicks(tmp_path / "clicks.json", [Click(tuple(position.tolist()), 1, 1)])
    words = ("--image", pet, "--clicks", tmp_path / "clicks.json", "--checkpoint", "seganypet_lesion")
    outputs = ("--out", tmp_path / "mask.nii.gz", "--table", tmp_path / "lesions.csv")
    told = command("predict", *words, *outputs, "--device", "cpu")
    assert "newest click only, preset seganypet_lesion" in told
    record = json.loads((tmp_path / "mask.predict.json").read_text())
    assert record["preset"] == "seganypet_lesion"
    assert record["preprocessing"] == {"modalities": ["PT"], "spacing_mm": 1.5, "clip": {"PT": None}}
    assert record["accumulate_clicks"] is False
    assert record["weights_source"] == "https://huggingface.co/YichiZhang98/SegAnyPET, seganypet_lesion.pth"
    assert "none stated" in record["weights_licence"]
    with (tmp_path / "lesions.csv").open() as table:
        assert [row["accumulate_clicks"] for row in csv.DictReader(table)] == ["false"]


def test_inspect_names_source_and_licence(fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fetched)
    told = command("weights", "inspect", "seganypet_v1", columns=200)
    assert "seganypet_v1, https://huggingface.co/YichiZhang98/SegAnyPET" in told
    assert "none stated by the authors" in told


def test_a_converted_file_keeps_the_preset(tmp_path: Path, fetched: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fetched)
    out = tmp_path / "a.safetensors"
    command("weights", "convert", "seganypet_v2", out, "--half")
    found = open_pretrained(out)
    assert (found.preprocessing, found.accumulate) == (Preprocessing(("PT",), 1.5, {"PT": None}), False)
    assert published_weights(out) is PUBLISHED["seganypet_v2"]
    assert read_metadata(out)["weights_source"].endswith("YichiZhang98/SegAnyPET, seganypet_v2.pth")
    out.unlink()


def test_training_starts_from_the_preset_and_says_what_it_overrides(
    tmp_path: Path, fetched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fetched)
    manifest = write_cohort(tmp_path / "data", 1, 1, 0)
    file = config_file(tmp_path / "run", manifest, "decoder")
    weights = ["model.variant=vit_b_ori", "model.weights=seganypet_v1"]
    task = PromptedTask(load_config(file, [*weights, "clicks.accumulate=false"]), read_manifest(manifest))
    assert task.preprocessing == Preprocessing(("PT",), 1.5, {"PT": None})
    base, trained = task.lines()[-2:]
    assert base.startswith("base weights seganypet_v1, licence: none stated")
    assert trained == "  trained with PT not clipped, crops at 1.5 mm, newest click only"
    export = task.export(tmp_path / "export", {})
    found = open_pretrained(export)
    assert (found.preprocessing, found.accumulate, found.preset) == (task.preprocessing, False, None)
    assert read_metadata(export)["base_weights"] == "seganypet_v1"
    assert "none stated" in read_metadata(export)["weights_licence"]
    export.unlink()

    settings = [*weights, "data.clip.PT=[0, 30]", "model.spacing_mm=0.75"]
    task = PromptedTask(load_config(file, settings), read_manifest(manifest))
    assert task.preprocessing == Preprocessing(("PT",), 0.75, {"PT": (0, 30)})
    assert task.lines()[-1] == "  fine-tuned here with PT clipped to [0, 30], crops at 0.75 mm, accumulated clicks"


def test_clipping_can_be_turned_off_for_any_weights(tmp_path: Path) -> None:
    manifest = write_cohort(tmp_path / "data", 1, 1, 0)
    file = config_file(tmp_path / "run", manifest, "decoder")
    for settings, expected in (([], (0.0, 50.0)), (["data.clip.PT=none"], None)):
        task = PromptedTask(load_config(file, settings), read_manifest(manifest))
        assert task.preprocessing == Preprocessing(("PT",), 3.0, {"PT": expected})
        assert not any("base weights" in line for line in task.lines())


def test_names_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        open_pretrained("seganypet_v2")
    assert str(caught.value) == (
        "seganypet_v2 is not at weights/seganypet_v2.pth: run `sammed3d-ft weights fetch seganypet_v2` in this folder"
    )
    assert published_as("elsewhere/seganypet_v2.pth") is PUBLISHED["seganypet_v2"]
    for other in ("", "mini", "seganypet", "seganypet_v2.safetensors", "weights/seganypet_v2"):
        assert published_as(other) is None
    # A file of the user's by that name, and weights of another size under the published file name, get no preset.
    torch.save(seeded_model("mini", 0).state_dict(), "seganypet_v2")
    torch.save(seeded_model("mini", 0).state_dict(), "seganypet_v1.pth")
    for own in ("seganypet_v2", "seganypet_v1.pth"):
        found = open_pretrained(own)
        assert (found.preprocessing, found.preset) == (Preprocessing(("PT",), 3.0), None)
        load_weights(seeded_model("mini", 1), own)
