"""Training of baselines end to end on tiny scans: learning, resuming, replaying, segmenting, and errors."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sammed3d_ft.automatic.config import AutomaticConfig
from sammed3d_ft.automatic.networks import NETWORKS
from sammed3d_ft.automatic.report import score_mask
from sammed3d_ft.automatic.segmenter import AutomaticSegmenter
from sammed3d_ft.automatic.task import AutomaticTask
from sammed3d_ft.dataset.manifest import read_manifest, write_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation import evaluate_case
from sammed3d_ft.images.images import read_image, read_label
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.weights import save_safetensors
from sammed3d_ft.prompted.config import PromptedConfig
from sammed3d_ft.provenance import state_hash
from sammed3d_ft.recipes import predict
from sammed3d_ft.recipes import train as recipe
from sammed3d_ft.recipes.train import load_config
from sammed3d_ft.training.failures import explain_failure
from tests.support.tiny_cases import write_case, write_cohort
from tests.support.training_runs import ROOT, train_until

YAML = """
run: {{dir: "{run}", seed: 1}}
data: {{manifest: "{manifest}"}}
network: {{name: unet, size: laptop}}
crops: {{size: 32, spacing_mm: 6.0, translate_vox: 2}}
loss: {{name: dice_ce}}
optim: {{epochs: 2, batch_size: 2, lr: 1e-3}}
validate: {{every_epochs: 1, test: false}}
checkpoint: {{every_steps: 1}}
track: {{trackers: [], log_every_steps: 1}}
"""
SHIPPED = sorted((ROOT / "configs" / "baselines").glob("*.yaml"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


def config_file(run: Path, manifest: Path) -> Path:
    path = run.with_suffix(".yaml")
    path.write_text(YAML.format(run=run, manifest=manifest))
    return path


def settings(run: Path, manifest: Path, *overrides: str) -> AutomaticConfig:
    config = load_config(config_file(run, manifest), overrides)
    assert isinstance(config, AutomaticConfig)
    return config


def logged(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_a_baseline_learns_and_its_export_replays_to_its_scores(tmp_path: Path, manifest: Path) -> None:
    run = tmp_path / "run"
    changes = ("optim.epochs=24", "optim.lr=1e-2", "validate.every_epochs=12", "validate.test=true")
    summary = recipe.train(settings(run, manifest, *changes))

    lines = logged(run)
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    assert len(losses) == 48  # two batches of three crops, 24 times
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])
    highest = [line["train/max_probability"] for line in lines if "train/loss" in line]
    assert all(0 < value <= 1 for value in highest)
    assert min(highest[-4:]) > 0.5  # it finds lesions
    assert [line["epoch"] for line in lines if "val/dice" in line] == [12, 24]  # nothing to score before training
    assert summary["val/dice"] == max(line["val/dice"] for line in lines if "val/dice" in line) > 0.3
    segmenter = AutomaticSegmenter.from_pretrained(run / "export", "cpu")
    for split in ("val", "test"):
        case = read_manifest(manifest).split(split)[0]
        assert case.label is not None
        mask = segmenter.segment({"PT": read_image(case.images["PT"])}) > 0
        truth = read_label(case.label)
        expected = evaluate_case(truth.array > 0, mask, truth.spacing_mm)
        assert summary[f"{split}/dice"] == pytest.approx(expected.dice, abs=1e-12)
        assert summary[f"{split}/lesion_dice"] == pytest.approx(expected.lesion_dice, abs=1e-12)
        with (run / f"{split}_cases.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0]) == ["case", "lesion", "volume_ml", "dice"]
        assert [row["lesion"] for row in rows] == (["all", "1", "2"] if split == "val" else ["all", "1"])
        assert float(rows[0]["dice"]) == summary[f"{split}/dice"]
    facts = json.loads((run / "run.json").read_text())
    assert facts["tuning"] == ["unet, size laptop: 1,203,496 parameters train"]
    assert segmenter.metadata["base_hash"] == facts["base_hash"]


@pytest.mark.parametrize(("last_step", "loss"), [(1, "dice_ce"), (2, "dice_ce"), (1, "l1dfl, warm_start: 0.3")])
def test_a_stopped_run_ends_in_the_same_export(last_step: int, loss: str, tmp_path: Path, manifest: Path) -> None:
    """Step 1 is amid an epoch, step 2 at its end. Batch norm's running statistics are part of both.

    The warm start covers steps 1 and 2 of 4, so that the stop is amid it.
    """
    whole = recipe.train(settings(tmp_path / "whole", manifest, f"loss={{name: {loss}}}"))
    broken = settings(tmp_path / "broken", manifest, f"loss={{name: {loss}}}")
    train_until(last_step, broken)
    resumed = recipe.train(broken)
    assert resumed["export_sha256"] == whole["export_sha256"]
    assert resumed["best"] == whole["best"]
    assert logged(tmp_path / "broken") == logged(tmp_path / "whole")
    statistics = load_file(tmp_path / "whole" / "export" / "model.safetensors")
    counted = {int(value) for name, value in statistics.items() if name.endswith("num_batches_tracked")}
    assert counted == {resumed["best"]["step"]}


@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "unet"])
def test_every_network_goes_through_the_loop(name: str, tmp_path: Path, manifest: Path) -> None:
    more = ["crops.size=64", "network.weights=random"] if name == "unetr_sammed3d" else []
    changes = ("optim.epochs=1", "loss.name=l1dfl", f"network.name={name}", *more)
    summary = recipe.train(settings(tmp_path / "run", manifest, *changes))
    assert summary["best"]["step"] == 2
    assert AutomaticSegmenter.from_pretrained(summary["export"], "cpu").metadata["network"] == name


def test_the_encoder_starts_from_the_weights_given(tmp_path: Path, manifest: Path) -> None:
    base = seeded_model("mini", seed=5)
    save_safetensors(tmp_path / "base.safetensors", base.state_dict(), {})
    changes = ("network.name=unetr_sammed3d", "crops.size=64", "optim.lr_encoder=1e-5")
    config = settings(tmp_path / "run", manifest, *changes, f"network.weights={tmp_path / 'base.safetensors'}")
    task = AutomaticTask(config, read_manifest(manifest))
    assert task.base_hash == state_hash(base.state_dict())
    assert state_hash(task.model.get_submodule("encoder").state_dict()) == state_hash(base.image_encoder.state_dict())
    assert task.learning_rates == {"": 1e-3, "encoder.": 1e-5}
    save_safetensors(tmp_path / "other.safetensors", {"a": torch.zeros(1)}, {})
    unfit = replace_network(config, weights=str(tmp_path / "other.safetensors"))
    with pytest.raises(InputError, match="does not fit the model"):
        AutomaticTask(unfit, read_manifest(manifest))


def replace_network(config: AutomaticConfig, **changes: str) -> AutomaticConfig:
    return config.model_copy(update={"network": config.network.model_copy(update=changes)})


def test_pet_and_ct_train_together_and_are_segmented_by_command(tmp_path: Path) -> None:
    cases = []
    for split in ("train", "val"):
        case = write_case(tmp_path, split, [((12.0, 12.0, 11.0), 19.0)], split=split)
        pet = nib.load(case.images["PT"])
        ct = tmp_path / f"{split}_ct.nii.gz"
        fine = np.diag([3.0, 3.0, 3.0, 1.0])
        fine[:3, 3] = pet.affine[:3, 3]
        values = np.random.default_rng(0).uniform(-900, 900, (48, 48, 48)).astype(np.float32)
        nib.save(nib.Nifti1Image(values, fine), ct)
        cases.append(replace(case, images={**case.images, "CT": ct}))
    write_manifest(tmp_path / "manifest.json", cases)
    run = tmp_path / "run"
    recipe.train(settings(run, tmp_path / "manifest.json", "data.modalities=[PT, CT]", "optim.epochs=1"))

    out, table, probability = (tmp_path / "out" / name for name in ("mask.nii.gz", "lesions.csv", "p.nii"))
    image, ct = cases[1].images["PT"], cases[1].images["CT"]
    record = predict.run(
        image,
        None,
        run / "export" / "model.safetensors",
        predict.Outputs(out, probability=probability, table=table),
        ct=ct,
        device="cpu",
    )
    segmenter = AutomaticSegmenter.from_pretrained(run / "export", "cpu")
    logits = segmenter.segment({"PT": read_image(image), "CT": read_image(ct)})
    assert np.array_equal(read_label(out).array, logits > 0)
    np.testing.assert_allclose(read_image(probability).array, 1 / (1 + np.exp(-logits.astype(float))), atol=1e-6)
    with table.open(newline="") as file:
        volumes = [float(row["volume_ml"]) for row in csv.DictReader(file)]
    assert sum(volumes) == pytest.approx((logits > 0).sum() * 0.216)
    assert len(volumes) == len(record["lesions"])
    assert json.loads((tmp_path / "out" / "mask.predict.json").read_text()) == record
    for wrong, says in (
        ({"ct": None}, "no CT image, but the model needs PT and CT"),
        ({"out": tmp_path / "mask.png"}, "images are written as "),
        ({"out": image}, "would overwrite an input"),
    ):
        given = {"image": image, "clicks": None, "checkpoint": run / "export", "ct": ct} | wrong
        with pytest.raises(InputError, match=says):
            predict.run(outputs=predict.Outputs(given.pop("out", out)), **given)  # type: ignore[arg-type]


def test_lesions_are_matched_one_to_one() -> None:
    """Two of 8 and 4 voxels; one found with one voxel too many, one missed, and one found that is none."""
    truth, mask = np.zeros((2, 10, 10, 10), np.uint8)
    truth[1:3, 1:3, 1:3], truth[7, 7:9, 7:9] = 1, 1
    mask[1:3, 1:3, 1:3], mask[3, 1, 1], mask[1:3, 8, 1] = 1, 1, 1
    score = score_mask(mask, truth, 0.5, case="a", connectivity=18)
    assert score.dice == pytest.approx(2 * 8 / (12 + 11))
    assert score.lesions == ((4.0, pytest.approx(2 * 8 / (8 + 9))), (2.0, 0.0))
    assert score_mask(mask, np.zeros_like(truth), 0.5, case="a", connectivity=18).dice is None
    assert score_mask(np.zeros_like(mask), truth, 0.5, case="a", connectivity=18).dice == 0


def test_a_training_set_without_lesions_is_refused(tmp_path: Path) -> None:
    cases = [write_case(tmp_path, split, [], split=split) for split in ("train", "val")]
    write_manifest(tmp_path / "manifest.json", cases)
    with pytest.raises(InputError, match="no lesion in any of the 1 training cases"):
        recipe.train(settings(tmp_path / "run", tmp_path / "manifest.json"))


def test_running_out_of_memory_names_the_settings_that_help(tmp_path: Path, manifest: Path) -> None:
    savers = settings(tmp_path / "run", manifest).memory_savers
    told = explain_failure(torch.OutOfMemoryError("CUDA out of memory"), savers)
    assert told is not None
    assert "optim.batch_size=1 optim.accumulate=2" in told
    assert "a smaller crops.size (now 32)" in told


def test_prepared_scans_are_shared_by_a_cache_folder(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = f"cache.dir={tmp_path / 'cache'}"
    recipe.train(settings(tmp_path / "one", manifest, shared, "optim.epochs=1"))
    assert len(list((tmp_path / "cache" / "scans").iterdir())) == 3
    assert not (tmp_path / "one" / "cache").exists()
    monkeypatch.setattr("sammed3d_ft.automatic.scan_store.read_case", None)  # called, it would fail
    recipe.train(settings(tmp_path / "two", manifest, shared, "optim.epochs=1", "run.seed=2"))


# --- configs ---


def test_all_baselines_are_shipped() -> None:
    assert {path.stem for path in SHIPPED} == {*NETWORKS, "laptop"}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_shipped_config_is_valid_tells_its_command_and_builds(path: Path, manifest: Path) -> None:
    name = path.relative_to(ROOT).as_posix()
    opening = path.read_text().partition("\nrun:")[0]
    assert all(line.startswith("#") for line in opening.splitlines())
    assert f"accelerate launch finetune.py --config {name}" in opening
    config = load_config(path)
    assert isinstance(config, AutomaticConfig)
    if path.stem != "laptop":
        assert config.network.name == path.stem
        assert config.network.size == "paper"
        crops = config.crops
        assert (crops.size, crops.spacing_mm, crops.positive / crops.negative) == (128, 2, 4)
        assert (config.optim.lr, config.optim.weight_decay, config.optim.batch_size) == (2e-4, 1e-5, 4)
        assert (config.optim.warmup, config.optim.clip_norm, config.validate_.every_epochs) == (0, None, 2)
        assert (crops.affine_probability, crops.translate_vox, crops.rotate_z_deg, crops.scale) == (0.5, 10, 12, 0.1)
        assert config.data.modalities == ("PT", "CT")
    if config.network.weights is not None:
        config = replace_network(config, weights="random")  # the published ones are not here
    AutomaticTask(config, read_manifest(manifest))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_laptop_config_takes_every_network(name: str, manifest: Path) -> None:
    more = ["network.weights=mini"] if name == "unetr_sammed3d" else []
    config = load_config(ROOT / "configs" / "baselines" / "laptop.yaml", [f"network.name={name}", *more])
    assert isinstance(config, AutomaticConfig)
    AutomaticTask(config, read_manifest(manifest))


def test_the_section_network_makes_a_config_that_of_a_baseline(tmp_path: Path) -> None:
    file = config_file(tmp_path / "run", tmp_path / "manifest.json")
    assert isinstance(load_config(file), AutomaticConfig)
    assert isinstance(load_config(Path("configs/decoder.yaml")), PromptedConfig)
    config = load_config(file)
    assert AutomaticConfig.model_validate(config.as_plain()) == config


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("network.name=vnet", "unknown network 'vnet': expected one of unet, attention_unet, segresnet, unetr"),
        ("network.size=huge", "network.size: Input should be 'paper' or 'laptop'"),
        ("network.nam=unet", "unknown key network.nam, did you mean 'name'?"),
        ("network.name=unetr_sammed3d", "network.weights is missing"),
        ("network.weights=mini", "unet starts from random weights; leave it out"),
        ("crops.size=40", "crops.size 40: unet in size laptop needs a multiple of 16, at least 32"),
        ("crops={positive: 0, negative: 0}", "no crop could be drawn"),
        ("optim.lr_encoder=1e-4", "only unetr_sammed3d has a separate learning rate"),
        ("optim.lr_decoder=1e-4", "unknown key optim.lr_decoder, did you mean 'lr_encoder'?"),
        ("validate.clicks=[1, 5]", "unknown key validate.clicks"),
        ("loss.iou_weight=1", "unknown key loss.iou_weight"),
        ("loss.warm_start=0.2", "loss.warm_start 0.2 starts with Dice-CE, and loss.name is dice_ce throughout: set "),
        ("model.variant=mini", "unknown key model"),
        ("data.modalities=[]", "data.modalities"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(override: str, says: str, tmp_path: Path) -> None:
    file = config_file(tmp_path / "run", tmp_path / "manifest.json")
    with pytest.raises(InputError) as error:
        load_config(file, [override])
    assert says in str(error.value)


# --- several processes ---


def launched(processes: int, folder: Path, manifest: Path, *overrides: str) -> Path:
    """A run by accelerate's launcher on a CPU, with the probe's files beside it."""
    folder.mkdir()
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    command += [str(ROOT / "tests" / "support" / "gradient_probe.py")]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PROBE": str(folder)}
    environment["PYTHONPATH"] = str(ROOT)
    ended = subprocess.run(
        [*command, "--config", str(config_file(folder / "run", manifest)), *overrides],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert json.loads((folder / "run" / "run.json").read_text())["processes"] == processes
    for rank in range(processes):
        assert (folder / f"rank{rank}_world.txt").read_text() == str(processes)
    return folder


@pytest.fixture(scope="module")
def larger_manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("larger"), train=4, val=3)


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one_with_the_joint_batch(
    tmp_path: Path, larger_manifest: Path
) -> None:
    """Of a network without batch norm, whose statistics are each process's own; SegResNet has group norm."""
    still = ("network.name=segresnet", "optim.epochs=1", "optim.lr=1e-12")
    one = launched(1, tmp_path / "one", larger_manifest, *still, "optim.batch_size=2")
    two = launched(2, tmp_path / "two", larger_manifest, *still, "optim.batch_size=1")
    alone = load_file(one / "rank0_gradients.safetensors")
    whole = torch.cat([gradient.flatten() for gradient in alone.values()])
    assert whole.abs().max() > 0
    for rank in range(2):
        joint = load_file(two / f"rank{rank}_gradients.safetensors")
        assert joint.keys() == alone.keys()
        other = torch.cat([joint[name].flatten() for name in alone])
        assert float((other - whole).norm() / whole.norm()) < 1e-5
    figures = [json.loads((folder / "run" / "summary.json").read_text())["best"] for folder in (one, two)]
    assert figures[1] == pytest.approx(figures[0], abs=1e-9)


@pytest.mark.slow
def test_batch_norm_of_two_processes_scores_as_its_export_does(tmp_path: Path, larger_manifest: Path) -> None:
    """Each process has its own statistics during training; all cases are scored with the saved ones."""
    folder = launched(
        2, tmp_path / "two", larger_manifest, "optim.batch_size=1", "optim.epochs=4", "optim.lr=1e-2",
        "validate.every_epochs=4",
    )  # fmt: skip
    first, second = (load_file(folder / f"rank{rank}_weights.safetensors") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    summary = json.loads((folder / "run" / "summary.json").read_text())
    segmenter = AutomaticSegmenter.from_pretrained(folder / "run" / "export", "cpu")
    dice = []
    for case in read_manifest(larger_manifest).split("val"):
        assert case.label is not None
        truth = read_label(case.label)
        mask = segmenter.segment({"PT": read_image(case.images["PT"])}) > 0
        dice.append(evaluate_case(truth.array > 0, mask, truth.spacing_mm).dice)
    assert summary["best"]["val/dice"] == pytest.approx(np.mean(dice), abs=1e-12)
    assert summary["val/dice"] == pytest.approx(np.mean(dice), abs=1e-12)
