"""The benchmark: every patient tested by a model that saw none of him; done runs stay done; failures are marked."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from prompts.errors import InputError
from sammed3d_ft.cli.main import app
from sammed3d_ft.data.manifest import read_manifest, write_manifest
from sammed3d_ft.evaluation.paired import paired_test
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.weights import save_safetensors, sha256_of
from sammed3d_ft.recipes import benchmark
from sammed3d_ft.recipes.config import load_config
from tests.data.tiny_cases import write_cohort
from tests.recipes.test_train import ROOT, YAML

SCORES = {"a": 0.5, "b": 0.3}  # what a stand-in for training writes, plus 0.01 per case and 0.1 per seed


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_cohort(tmp_path / "cohort", train=6, val=0, test=0)
    folds = {"x": ["train_0", "train_1"], "y": ["train_2", "train_3"], "z": ["train_4", "train_5"]}
    (tmp_path / "folds.json").write_text(json.dumps({"folds": folds}))
    (tmp_path / "train.yaml").write_text(YAML.format(run="unused", manifest="unused", method="full"))
    return tmp_path


def write_config(folder: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "out": str(folder / "out"),
        "manifest": str(folder / "cohort" / "manifest.json"),
        "folds": str(folder / "folds.json"),
        "folds_key": "folds",
        "seeds": [0, 1],
        "clicks": [1, 5],
        "reference": "a",
        "rows": {"a": {"config": str(folder / "train.yaml")}, "b": {"config": str(folder / "train.yaml")}},
    }
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """In place of training: a table of scores that are known, for the test cases of the fold's manifest."""
    done: list[str] = []

    def train(config: Any, training: Any) -> list[benchmark.Failure]:
        name, folder = training.name, training.folder
        done.append(f"{name} {training.fold} {training.seed}")
        folder.mkdir(parents=True)
        lines = ["case,lesion,volume_ml,dice@1,dice@5"]
        for case in read_manifest(training.config.data.manifest).split("test"):
            value = SCORES[name] + 0.01 * int(case.id[-1]) * (1 if name == "a" else 2) + 0.1 * training.seed
            lines += [f"{case.id},all,,{value},{value + 0.05}", f"{case.id},1,2.0,0,0"]
        (folder / "test_cases.csv").write_text("\n".join(lines) + "\n")
        (folder / "config.yaml").write_text(yaml.safe_dump(training.config.as_plain()))
        (folder / "manifest.sha256").write_text(sha256_of(training.config.data.manifest))
        (folder / "summary.json").write_text("{}")
        return []

    monkeypatch.setattr(benchmark, "_train", train)
    return done


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_each_patient_is_tested_once_and_never_trained_on(folder: Path, trained: list[str]) -> None:
    benchmark.run(write_config(folder))
    tested = []
    for fold in ("x", "y", "z"):
        manifest = read_manifest(folder / "out" / "folds" / f"{fold}.json")
        splits = {name: {case.id for case in manifest.split(name)} for name in ("train", "val", "test")}
        assert [len(splits[name]) for name in ("train", "val", "test")] == [2, 2, 2]
        assert len(set().union(*splits.values())) == 6
        tested += sorted(splits["test"])
    assert tested == [f"train_{n}" for n in range(6)]


def test_the_table_holds_what_the_runs_gave(folder: Path, trained: list[str]) -> None:
    table, failures = benchmark.run(write_config(folder))
    assert failures == []
    a = SCORES["a"] + 0.01 * np.arange(6) + 0.05  # seeds averaged: 0 and 0.1
    b = SCORES["b"] + 0.02 * np.arange(6) + 0.05
    first, second, *_ = rows_of(folder / "out" / "table.csv")
    assert (first["row"], second["row"]) == ("a", "b")
    assert float(first["mean"]) == pytest.approx(a.mean())
    assert float(second["mean"]) == pytest.approx(b.mean())
    assert float(second["difference"]) == pytest.approx((b - a).mean())
    assert float(second["p"]) == pytest.approx(paired_test(list(b), list(a)).p)
    assert first["p"] == ""
    assert "| 1 | b | 6 | 0.400 " in table
    cases = rows_of(folder / "out" / "cases.csv")
    assert [float(case["b dice@5"]) for case in cases] == pytest.approx(b + 0.05)


def test_what_is_done_is_not_done_again_and_a_missing_run_is_told(folder: Path, trained: list[str]) -> None:
    config = write_config(folder)
    table, _ = benchmark.run(config, limit=5)
    assert len(trained) == 5
    assert "(6 missing)" in table
    assert "(2 missing)" not in table  # no patient is averaged over one seed where others have two
    benchmark.run(config)
    assert len(trained) == len(set(trained)) == 12
    benchmark.run(config)
    assert len(trained) == 12


def test_results_of_other_settings_or_folds_are_not_reused(folder: Path, trained: list[str]) -> None:
    benchmark.run(write_config(folder))
    train = str(folder / "train.yaml")
    changed = {"a": {"config": train}, "b": {"config": train, "set": ["loss.name=dice"]}}
    with pytest.raises(InputError, match=r"foldx_seed0 was made with other settings .loss.name: l1dfl -> dice"):
        benchmark.run(write_config(folder, rows=changed))
    folds = {"x": ["train_1", "train_2"], "y": ["train_0", "train_3"], "z": ["train_4", "train_5"]}
    (folder / "folds.json").write_text(json.dumps({"folds": folds}))
    with pytest.raises(InputError, match="was made with other settings .the fold's cases"):
        benchmark.run(write_config(folder))
    assert len(trained) == 12


def test_what_is_wrong_with_any_row_is_said_before_training(folder: Path, trained: list[str]) -> None:
    train = str(folder / "train.yaml")
    for row, said in (
        ({"config": train, "set": ["optim.epoch=3"]}, "row b: .*did you mean 'epochs'"),
        ({"checkpoint": "nowhere.pth"}, "no weights at nowhere.pth"),
        ({"config": train, "set": ["data.targets=all"]}, "rows differ in data.targets"),
    ):
        with pytest.raises(InputError, match=said):
            benchmark.run(write_config(folder, rows={"a": {"config": train}, "b": row}))
    assert trained == []


def test_scans_of_a_patient_are_averaged_and_those_without_lesions_count_nowhere(
    folder: Path, trained: list[str]
) -> None:
    manifest = folder / "cohort" / "manifest.json"
    cases = [
        replace(case, group="p" if case.id in ("train_0", "train_1") else None)
        for case in read_manifest(manifest).cases
    ]
    write_manifest(manifest, cases)
    benchmark.run(write_config(folder, seeds=[0]))
    for fold in ("x", "y", "z"):
        for name in ("a", "b"):
            path = folder / "out" / "runs" / name / f"fold{fold}_seed0" / "test_cases.csv"
            path.write_text(
                path.read_text()
                .replace("train_5,all,,0.55,0.6", "train_5,all,,,")
                .replace("train_5,all,,0.4,0.45", "train_5,all,,,")
            )
    benchmark.run(write_config(folder, seeds=[0]))
    first, *_ = rows_of(folder / "out" / "table.csv")
    assert (first["patients"], first["missing"]) == ("4", "1")  # p, 2, 3, 4; 5 has no lesion
    assert float(first["mean"]) == pytest.approx(np.mean([0.505, 0.52, 0.53, 0.54]))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"reference": "c"}, "reference 'c' is no row: choose one of a, b"),
        ({"rows": {"a": {}}}, "give either config .* or checkpoint"),
        ({"colour": 1}, "colour: Extra inputs"),
        ({"folds_key": "other"}, "expected at least 3 folds"),
    ],
)
def test_a_wrong_config_is_one_line(folder: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        benchmark.run(write_config(folder, **changes))
    assert "\n" not in str(error.value)


def test_folds_must_hold_every_case_once(folder: Path) -> None:
    (folder / "folds.json").write_text(json.dumps({"folds": {"x": ["train_0"], "y": ["train_1"], "z": ["nobody"]}}))
    with pytest.raises(InputError, match=r"4 cases in no fold \['train_2', .*1 ids that are no case \['nobody'\]"):
        benchmark.run(write_config(folder))


@pytest.mark.slow
def test_real_runs_a_failed_one_and_a_checkpoint_as_it_is(folder: Path) -> None:
    """By the command: exit code 3 for the row that cannot train, everything else in the table."""
    base = folder / "base.safetensors"
    save_safetensors(base, seeded_model("mini", seed=1).state_dict(), {})
    train = str(folder / "train.yaml")
    rows = {
        "a": {"config": train},
        "broken": {"config": train, "set": ["loss.options={nonsense: 1}"]},
        "as_it_is": {"checkpoint": str(base)},
    }
    ended = CliRunner().invoke(app, ["benchmark", str(write_config(folder, rows=rows, seeds=[0]))])
    assert ended.exit_code == 3
    assert "broken, fold x, seed 0: error: loss l1dfl has no option 'nonsense'" in ended.output
    assert "| 1 | a | 6 |" in ended.output
    assert "| 1 | broken | 0 (6 missing) |" in ended.output
    assert "| 1 | as_it_is | 6 |" in ended.output


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "benchmark").glob("*.yaml")), ids=lambda path: path.name)
def test_a_shipped_benchmark_is_valid_and_tells_its_command(path: Path) -> None:
    config = benchmark.load_benchmark(path)
    assert f"sammed3d-ft benchmark configs/benchmark/{path.name}" in path.read_text()
    for row in config.rows.values():
        if row.config is not None:
            assert load_config(row.config, row.overrides)
