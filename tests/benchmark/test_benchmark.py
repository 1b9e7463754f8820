"""The benchmark: no patient is tested by a model trained on that patient; finished runs stay; failures are marked."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from sammed3d_ft.benchmark import masks, runner, scoring
from sammed3d_ft.benchmark.config import TrainedRow, load_benchmark
from sammed3d_ft.benchmark.folds import write_folds
from sammed3d_ft.benchmark.trainings import training_of
from sammed3d_ft.dataset.manifest import read_manifest, write_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation import kept_cases
from sammed3d_ft.evaluation.paired import paired_test
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.weights import save_safetensors
from sammed3d_ft.provenance import file_hash
from sammed3d_ft.recipes.train import load_config
from tests.support.benchmark_cases import (
    Done,
    StandIn,
    current,
    expected_dice,
    line_of,
    made_in,
    rows_of,
    write_config,
)
from tests.support.command import command
from tests.support.training_runs import ROOT


def test_each_patient_is_tested_once_and_never_trained_on(folder: Path, trained: Done) -> None:
    trained.run(write_config(folder, seeds=[0]))
    tested = []
    for fold in ("x", "y", "z"):
        manifest = read_manifest(folder / "out" / "folds" / f"{fold}.json")
        splits = {name: {case.id for case in manifest.split(name)} for name in ("train", "val", "test")}
        assert [len(splits[name]) for name in ("train", "val", "test")] == [2, 2, 2]
        assert len(set().union(*splits.values())) == 6
        tested += sorted(splits["test"])
        for level in ("1_clicks", "5_clicks"):
            masks = current(folder / "out", "a", fold) / level
            assert {path.name for path in masks.iterdir()} == {f"{case}.nii.gz" for case in splits["test"]}
    assert tested == [f"train_{n}" for n in range(6)]


def test_the_table_holds_what_the_runs_gave(folder: Path, trained: Done) -> None:
    table, failures = trained.run(write_config(folder))
    assert failures == []
    for clicks, block in ((1, "1 click per lesion"), (5, "5 clicks per lesion")):
        a, b = (expected_dice(folder, row, (0, 1), clicks) for row in "ab")
        assert 0.5 < b.mean() < a.mean() < 0.97  # a comparison of equal methods would be meaningless
        first, second = (line_of(folder / "out", row, block) for row in "ab")
        assert float(first["mean"]) == pytest.approx(a.mean())
        assert float(second["mean"]) == pytest.approx(b.mean())
        assert float(second["median"]) == pytest.approx(np.median(b))
        test = paired_test(list(b), list(a))
        assert float(second["difference"]) == pytest.approx((b - a).mean())
        assert float(second["hodges_lehmann"]) == pytest.approx(test.hodges_lehmann)
        for column in ("p", "p_holm", "p_bonferroni"):  # one comparison
            assert float(second[column]) == pytest.approx(test.p)
        assert first["p"] == ""
        assert (second["pairs"], second["patients"], second["of"], second["failed"]) == ("6", "6", "6", "0")
        assert f"| {block} | b | {clicks} per lesion, accumulated | 6/6 | {b.mean():.3f} (" in table
    cases = rows_of(folder / "out" / "cases.csv")
    assert len(cases) == 2 * 2 * 2 * 6  # rows, clicks, seeds, cases
    found = [float(case["dice"]) for case in cases if (case["row"], case["clicks"], case["seed"]) == ("b", "5", "1")]
    assert found == pytest.approx(expected_dice(folder, "b", (1,), 5))
    page = (folder / "out" / "table.html").read_text()
    assert f"{expected_dice(folder, 'b', (0, 1), 5).mean():.3f}" in page
    assert page.count("<img") == 4  # curves, boxes of two blocks, sizes


def test_what_is_done_is_not_done_again_and_a_missing_run_is_reported(folder: Path, trained: Done) -> None:
    config = write_config(folder)
    table, _ = trained.run(config, limit=5)
    assert len(trained.trainings) == 5
    # No patient is averaged over one seed where others have two.
    assert "| 1 click per lesion | a | 1 per lesion, accumulated | 0/6 (6 missing) |  |" in table
    trained.run(config)
    assert len(trained.trainings) == len(set(trained.trainings)) == 12
    assert len(trained.images) == len(set(trained.images)) == 24
    before, made = (folder / "out" / "table.csv").read_bytes(), made_in(folder / "out")
    trained.run(config)
    assert made_in(folder / "out") == made  # no mask made and no case scored again
    assert len(trained.trainings) == 12
    assert len(trained.images) == 24
    assert (folder / "out" / "table.csv").read_bytes() == before


def test_killed_at_any_point_it_resumes_and_writes_the_same_tables(
    folder: Path, trained: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        """Not an Exception, so that no code handles it."""

    config = write_config(folder, seeds=[0])
    trained.run(config)
    wanted = (folder / "out" / "table.csv").read_bytes()
    shutil.rmtree(folder / "out")
    trained.trainings.clear(), trained.images.clear()

    with monkeypatch.context() as patched:
        real = StandIn.add_click

        def dies(self: StandIn, *given: Any, **named: Any) -> Any:
            if len(trained.images) == 4 and self.clicks == 2:  # in the second unit's second case
                raise Killed
            return real(self, *given, **named)

        patched.setattr(StandIn, "add_click", dies)
        with pytest.raises(Killed):
            trained.run(config)
    with monkeypatch.context() as patched:
        real_scoring, scored = scoring.evaluate_pair, []

        def dies_scoring(case: Any, *given: Any, **named: Any) -> Any:
            scored.append(case.pred)
            if len(scored) == 3:
                raise Killed
            return real_scoring(case, *given, **named)

        patched.setattr(scoring, "evaluate_pair", dies_scoring)
        with pytest.raises(Killed):
            trained.run(config)
    trained.run(config)
    assert len(trained.trainings) == len(set(trained.trainings)) == 6
    assert len(trained.images) == 12 + 1  # only the interrupted case is processed twice
    assert trained.images[3] == trained.images[4]
    assert (folder / "out" / "table.csv").read_bytes() == wanted


def test_new_masks_are_made_when_model_clicks_or_a_label_changed_and_old_ones_stay(folder: Path, trained: Done) -> None:
    trained.run(write_config(folder, seeds=[0]))
    assert len(trained.images) == 12
    first = made_in(folder / "out")
    assert sum(path.name.endswith(".nii.gz") for path in first) == 24
    (folder / "out" / "runs" / "a" / "foldx_seed0" / "export" / "model.safetensors").write_text("a 1")
    trained.run(write_config(folder, seeds=[0]))
    assert len(trained.images) == 12 + 2
    label = folder / "cohort" / "train_2_label.nii.gz"
    shutil.copyfile(folder / "cohort" / "train_5_label.nii.gz", label)
    trained.run(write_config(folder, seeds=[0]))
    assert trained.images[14:] == [("a", 0, "train_2"), ("b", 0, "train_2")]
    trained.run(write_config(folder, seeds=[0], clicks=[1, 2, 5]))
    assert len(trained.images) == 16 + 12
    assert len(trained.trainings) == 6  # validation at other numbers of clicks selects the same model
    assert line_of(folder / "out", "a", "2 clicks per lesion")["patients"] == "6"
    trained.run(write_config(folder, seeds=[0], clicks=[1, 2, 5]))
    assert len(trained.images) == 28  # nothing changed
    assert first.items() <= made_in(folder / "out").items()


def test_a_format_counted_up_makes_new_masks_or_scores_beside_the_old(
    folder: Path, trained: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out = write_config(folder, seeds=[0]), folder / "out"
    trained.run(config)
    masks_before, scores_before = made_in(out, "masks"), made_in(out, "evaluation")
    monkeypatch.setattr(kept_cases, "EVALUATION_FORMAT", kept_cases.EVALUATION_FORMAT + 1)
    trained.run(config)
    assert len(trained.images) == 12
    assert made_in(out, "masks") == masks_before
    assert len(made_in(out, "evaluation")) == 2 * len(scores_before)
    monkeypatch.setattr(masks, "MASKS_FORMAT", masks.MASKS_FORMAT + 1)
    trained.run(config)
    assert len(trained.images) == 12 + 12
    assert len(made_in(out, "masks")) == 2 * len(masks_before)
    assert (masks_before | scores_before).items() <= made_in(out).items()


def test_a_rows_config_need_not_name_run_folder_and_manifest(folder: Path, trained: Done) -> None:
    content = yaml.safe_load((folder / "train.yaml").read_text())
    del content["run"]["dir"], content["data"]["manifest"]
    (folder / "train.yaml").write_text(yaml.safe_dump(content))
    _, failures = trained.run(write_config(folder, seeds=[0]))
    assert failures == []
    assert line_of(folder / "out", "b", "1 click per lesion")["patients"] == "6"


def test_a_broken_prediction_is_marked_and_repeated_by_the_next_call(folder: Path, trained: Done) -> None:
    config = write_config(folder, seeds=[0])
    trained.run(config)
    mask = current(folder / "out", "b", "y") / "5_clicks" / "train_3.nii.gz"
    mask.write_bytes(mask.read_bytes()[:60])
    table, (failure,) = trained.run(config)
    assert failure.run == "b, fold y, seed 0"
    assert failure.reason.startswith("case train_3: ")
    assert "| 5 clicks per lesion | b | 5 per lesion, accumulated | 5/6 (1 missing) |" in table
    b = np.delete(expected_dice(folder, "b", (0,), 5), 3)
    line = line_of(folder / "out", "b", "5 clicks per lesion")
    assert float(line["mean"]) == pytest.approx(b.mean())
    assert (line["pairs"], line["failed"]) == ("5", "1")
    assert [case["case"] for case in rows_of(folder / "out" / "cases.csv") if case["error"]] == ["train_3"]
    assert trained.run(config)[1] == []
    assert line_of(folder / "out", "b", "5 clicks per lesion")["failed"] == "0"
    assert trained.images[12:] == [("b", 0, "train_3")]


def test_a_case_that_cannot_be_predicted_is_marked(
    folder: Path, trained: Done, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = StandIn.set_image

    def fails(self: StandIn, images: Any) -> None:
        real(self, images)
        if trained.images[-1] == ("a", 0, "train_4"):
            raise RuntimeError("out of memory\nsomewhere")

    monkeypatch.setattr(StandIn, "set_image", fails)
    _, failures = trained.run(write_config(folder, seeds=[0]))
    assert [(failure.run, failure.reason) for failure in failures] == [
        ("a, fold z, seed 0", "case train_4: out of memory somewhere")
    ]
    assert line_of(folder / "out", "a", "1 click per lesion")["failed"] == "1"


def test_the_manifests_own_split_is_one_fold(folder: Path, trained: Done) -> None:
    cohort = folder / "cohort" / "manifest.json"
    splits = {"train_0": "train", "train_1": "val", "train_2": "test", "train_3": "test", "train_4": "train"}
    wanted = expected_dice(folder, "a", (0, 1), 1)[[2, 3]].mean()
    cases = [replace(case, split=splits.get(case.id)) for case in read_manifest(cohort).cases]
    cases[5] = replace(cases[5], label=None)  # an omitted one needs none
    write_manifest(cohort, cases)
    _, failures = trained.run(write_config(folder, folds="split", folds_key=None))
    assert failures == []
    assert sorted(trained.trainings) == ["a split 0", "a split 1", "b split 0", "b split 1"]
    line = line_of(folder / "out", "a", "1 click per lesion")
    assert (line["patients"], line["failed"]) == ("2", "0")
    assert float(line["mean"]) == pytest.approx(wanted)
    # The same patient in train and test, or no test at all, is refused.
    write_manifest(cohort, [replace(case, group="p") if case.id in ("train_0", "train_2") else case for case in cases])
    with pytest.raises(InputError, match="1 patient is in two splits: p; models would be tested"):
        trained.run(write_config(folder, folds="split", folds_key=None))
    write_manifest(cohort, [replace(case, split="train") for case in cases[:5]])
    with pytest.raises(InputError, match="no case in val, test, needed by folds: split; or give folds"):
        trained.run(write_config(folder, folds="split", folds_key=None))
    write_manifest(cohort, [replace(case, split="training") for case in cases[:5]])
    with pytest.raises(InputError, match="unknown split training, expected train, val, test"):
        trained.run(write_config(folder, folds="split", folds_key=None))


def test_a_seed_given_twice_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"seeds \[0, 0\]: a duplicate seed"):
        runner.run(write_config(folder, seeds=[0, 0]))


def test_results_of_other_settings_or_folds_are_not_reused(folder: Path, trained: Done) -> None:
    trained.run(write_config(folder))
    train = str(folder / "train.yaml")
    changed = {"a": {"config": train}, "b": {"config": train, "set": ["loss.name=dice"]}}
    with pytest.raises(InputError, match=r"foldx_seed0 was made with other settings .loss.name: l1dfl -> dice"):
        trained.run(write_config(folder, rows=changed))
    folds = {"x": ["train_1", "train_2"], "y": ["train_0", "train_3"], "z": ["train_4", "train_5"]}
    (folder / "folds.json").write_text(json.dumps({"folds": folds}))
    with pytest.raises(InputError, match="was made with other settings .the fold's cases"):
        trained.run(write_config(folder))
    assert len(trained.trainings) == 12


# config.yaml of a training by an earlier version, which had fewer settings, key by key.
EARLIER = """
run: {{dir: {run}, seed: 0, resume: auto}}
data: {{manifest: {manifest}, modalities: [PT], targets: each, connectivity: 18, clip: {{}}, shapes: 0, workers: null}}
model: {{variant: mini, weights: mini, spacing_mm: 3.0}}
clicks: {{first: uniform, next: error_random, rounds: 3, accumulate: true}}
tune: {{method: decoder, lora_rank: 8, lora_alpha: 16.0, lora_dropout: 0.0}}
loss: {{name: l1dfl, options: {{}}, iou_weight: 1.0}}
augment: {{flip: 0.5, rotate_deg: 15.0, zoom: 0.15, gamma: 0.25, noise: 0.1, jitter_vox: 4}}
cache: {{views: 8, batch_size: 1, dir: null}}
optim: {{epochs: 40, batch_size: 4, accumulate: 1, lr_decoder: 0.0003, lr_encoder: 5.0e-05, weight_decay: 0.01,
         clip_norm: 1.0, precision: auto}}
validate: {{every_epochs: 5, clicks: [1, 3, 5, 10], test: true}}
checkpoint: {{every_steps: 200, keep: 2}}
track: {{trackers: [tensorboard], log_every_steps: 5}}
"""


def test_trainings_of_an_earlier_version_are_found_as_done(folder: Path) -> None:
    rows = {"a": {"config": "configs/mini.yaml", "set": ["clicks.next=error_random"]}}  # as it was then
    config = load_benchmark(write_config(folder, rows=rows, clicks=[1, 3, 5, 10], seeds=[0]))
    manifest = write_folds(config)["x"]
    run = folder / "out" / "runs" / "a" / "foldx_seed0"
    run.mkdir(parents=True)
    training = training_of(config, "a", "x", manifest, 0)
    assert training.folder == run
    assert not training.is_done()
    (run / "config.yaml").write_text(EARLIER.format(run="elsewhere", manifest="elsewhere.json"))
    (run / "manifest.sha256").write_text(file_hash(manifest))
    assert not training.is_done()
    (run / "summary.json").write_text("{}")
    assert training.is_done()
    earlier = (run / "config.yaml").read_text()
    for other, said in (
        ("epochs: 41", r"\(optim.epochs: 41 -> 40\)"),
        ("epochs: 40, warmup_steps: 50", "optim.warmup_steps: 50 -> None"),  # what it was then
    ):
        (run / "config.yaml").write_text(earlier.replace("epochs: 40", other))
        with pytest.raises(InputError, match=said):
            training.is_done()


def test_what_is_wrong_with_any_row_is_said_before_training(folder: Path, trained: Done) -> None:
    train = str(folder / "train.yaml")
    for row, said in (
        ({"config": train, "set": ["optim.epoch=3"]}, "method b: .*did you mean 'epochs'"),
        ({"checkpoint": "nowhere.pth"}, "method b: no weights at nowhere.pth"),
        ({"slice_sam": "nowhere.pth"}, "method b: no SAM weights at nowhere.pth"),
        ({"masks": "nowhere"}, "method b: no folder of masks nowhere"),
        ({"cascade": {"detector": "a", "prompted": "a"}}, "method b: its detector 'a' takes clicks"),
        ({"config": train, "set": ["data.targets=all"]}, "methods differ in data.targets"),
    ):
        with pytest.raises(InputError, match=said):
            trained.run(write_config(folder, rows={"a": {"config": train}, "b": row}))
    assert trained.trainings == []


def test_scans_of_a_patient_are_averaged_and_those_without_lesions_count_nowhere(folder: Path, trained: Done) -> None:
    manifest = folder / "cohort" / "manifest.json"
    cases = [
        replace(case, group="p" if case.id in ("train_0", "train_1") else None)
        for case in read_manifest(manifest).cases
    ]
    write_manifest(manifest, cases)
    empty = folder / "cohort" / "train_5_label.nii.gz"
    whole = expected_dice(folder, "a", (0,), 1)
    import nibabel as nib

    image = nib.load(empty)
    nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), empty)
    trained.run(write_config(folder, seeds=[0]))
    line = line_of(folder / "out", "a", "1 click per lesion")
    assert (line["patients"], line["of"], line["failed"]) == ("4", "5", "0")  # p, 2, 3, 4; 5 has no lesion
    assert float(line["mean"]) == pytest.approx(np.mean([whole[:2].mean(), *whole[2:5]]))
    spurious = line_of(folder / "out", "a", "1 click per lesion", "fpv_ml")
    assert (spurious["patients"], spurious["mean"]) == ("5", "0.0")  # defined without a lesion; nothing was clicked


def test_a_row_may_have_seeds_of_its_own(folder: Path, trained: Done) -> None:
    train = str(folder / "train.yaml")
    trained.run(write_config(folder, rows={"a": {"config": train}, "b": {"config": train, "seeds": [1]}}))
    assert len(trained.trainings) == 6 + 3
    line = line_of(folder / "out", "b", "1 click per lesion")
    assert float(line["mean"]) == pytest.approx(expected_dice(folder, "b", (1,), 1).mean())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference": "c"}, "reference 'c' is not in rows: choose one of a, b"),
        ({"rows": {"a": {}}}, "rows.a: give exactly one of config, checkpoint, .* or masks"),
        ({"rows": {"a": {"checkpoint": "mini", "masks": "m"}}}, "rows.a: give exactly one of"),
        ({"rows": {"a": {"checkpoint": "mini", "spacing": 3}}}, "rows.a.spacing: Extra inputs"),
        ({"rows": {"a": {"rule": {"fraction_of_max": 0.41}, "clicks": "none"}}}, "the whole image's maximum"),
        ({"rows": {"a": {"rule": {"fraction_of_max": 41}}}}, "expected a fraction between 0 and 1"),
        ({"rows": {"a": {"rule": {}}}}, "either fraction_of_max or suv_at_least"),
        ({"rows": {"a": {"cascade": {"detector": "z", "prompted": "a"}}}}, "its detector 'z' is not in rows"),
        ({"metrics": ["dice", "dise"]}, "metrics: unknown dise; known: dice, .*, tmtv_error_ml"),
        ({"clicks": [0, 1]}, "a lesion needs at least one click"),
        ({"colour": 1}, "colour: Extra inputs"),
        ({"folds_key": "other"}, "expected at least 3 folds"),
        ({"folds": 7}, "got 7 for 6 patients"),
    ],
)
def test_a_wrong_config_is_one_line(folder: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        runner.run(write_config(folder, **changes))


def test_folds_must_hold_every_case_once(folder: Path) -> None:
    (folder / "folds.json").write_text(json.dumps({"folds": {"x": ["train_0"], "y": ["train_1"], "z": ["nobody"]}}))
    with pytest.raises(InputError, match=r"4 cases without a fold \['train_2', .*1 unknown case IDs \['nobody'\]"):
        runner.run(write_config(folder))
    (folder / "folds.json").write_text(json.dumps({"folds": {"x": ["train_0"], "y": ["train_1"], "z": ["train_1"]}}))
    with pytest.raises(InputError, match="a case is in two folds"):
        runner.run(write_config(folder))


def test_a_patient_must_not_be_in_two_folds(folder: Path) -> None:
    manifest = folder / "cohort" / "manifest.json"
    torn = ("train_0", "train_5")
    cases = read_manifest(manifest).cases
    write_manifest(manifest, [replace(case, group="p" if case.id in torn else None) for case in cases])
    with pytest.raises(InputError, match="1 patient is in two folds: p; models would be tested on patients"):
        runner.run(write_config(folder))


def test_folds_are_read_from_nnunet_or_drawn_by_patient(folder: Path) -> None:
    manifest = folder / "cohort" / "manifest.json"
    cases = read_manifest(manifest).cases
    splits = [
        {"train": [case.id for case in cases if case.id not in held], "val": held}
        for held in (["train_0", "train_3"], ["train_1", "train_4"], ["train_2", "train_5"])
    ]
    (folder / "splits_final.json").write_text(json.dumps(splits))
    changes: dict[str, Any] = {"folds": str(folder / "splits_final.json"), "folds_key": None}
    found = write_folds(load_benchmark(write_config(folder, **changes)))
    assert [sorted(case.id for case in read_manifest(path).split("test")) for path in found.values()] == [
        split["val"] for split in splits
    ]
    write_manifest(manifest, [replace(case, group=f"p{number // 2}") for number, case in enumerate(cases)])
    drawn = write_folds(load_benchmark(write_config(folder, folds=3, folds_key=None)))
    tested = [{case.group for case in read_manifest(path).split("test")} for path in drawn.values()]
    assert sorted(map(len, tested)) == [1, 1, 1]
    assert set.union(*tested) == {"p0", "p1", "p2"}


UNET = [
    *("crops.size=32", "crops.spacing_mm=6", "optim.epochs=1", "track.trackers=[]", "optim.batch_size=2"),
    *("validate.every_epochs=1", "data.workers=0"),
]


@pytest.mark.slow
def test_real_runs_a_failed_one_and_a_checkpoint_as_it_is(folder: Path) -> None:
    """Without stand-ins: the command trains, makes masks and scores; one method fails to train."""
    base = folder / "base.safetensors"
    save_safetensors(base, seeded_model("mini", seed=1).state_dict(), {})
    train = str(folder / "train.yaml")
    rows = {
        "a": {"config": train},
        "broken": {"config": train, "set": ["loss.options={nonsense: 1}"]},
        "as_it_is": {"checkpoint": str(base)},
        "unet": {"config": "configs/baselines/laptop.yaml", "set": UNET, "seeds": [3]},
        "cascade": {"cascade": {"detector": "unet", "prompted": "as_it_is"}},
    }
    told = command("benchmark", write_config(folder, rows=rows, seeds=[0]), code=3)
    assert "broken, fold x, seed 0: error: loss l1dfl has no option 'nonsense'" in told
    assert "| 1 click per lesion | a | 1 per lesion, accumulated | 6/6 |" in told
    assert "| 1 click per lesion | broken | 1 per lesion, accumulated | 0/6 (6 missing) |" in told
    assert "| 1 click per lesion | as_it_is | 1 per lesion, accumulated | 6/6 |" in told
    assert "| automatic | unet | none | 6/6 |" in told
    assert "| automatic | cascade | none | 6/6 |" in told
    assert (current(folder / "out", "cascade", "x", seed=3) / "automatic" / "train_0.nii.gz").is_file()
    # Training's own test scores and the evaluator's, from masks on the disk, are the same numbers.
    own = {line["case"]: line["dice@5"] for line in rows_of(folder / "out/runs/a/foldx_seed0/test_cases.csv")}
    cases = [line for line in rows_of(folder / "out" / "cases.csv") if (line["row"], line["clicks"]) == ("a", "5")]
    assert all(float(line["dice"]) == pytest.approx(float(own[line["case"]])) for line in cases if line["fold"] == "x")


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "benchmark").glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_benchmark_is_valid_and_tells_its_command(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # its command works in any folder
    config = load_benchmark(Path("configs/benchmark") / path.name)
    assert f"sammed3d-ft benchmark configs/benchmark/{path.name}" in path.read_text()
    for name, row in config.rows.items():
        config.seeds_of(name)
        if isinstance(row, TrainedRow):
            assert load_config(row.config, row.overrides)
    yaml.safe_dump(config.model_dump(mode="json", by_alias=True))
