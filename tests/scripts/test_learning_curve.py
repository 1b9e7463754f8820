"""The learning curve's subsets, steps and intervals, by hand."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sammed3d_ft.dataset.manifest import Case, read_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.phantom import write_cohort

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "learning_curve.py"))


def test_subsets_are_nested_and_every_fourth_case_is_for_validation(script: dict[str, Any]) -> None:
    cases = [Case(f"case_{number}", {"PT": Path("x")}, split="train") for number in range(24)]
    chosen = {count: script["subset"](cases, count, 0) for count in (4, 8, 16, 24)}
    for smaller, larger in ((4, 8), (8, 16), (16, 24)):
        assert chosen[larger][:smaller] == chosen[smaller]  # the same cases in the same splits
    assert [case.split for case in chosen[8]] == ["train", "train", "train", "val"] * 2
    assert len({case.id for case in chosen[24]}) == 24
    assert [case.id for case in script["subset"](cases, 8, 1)] != [case.id for case in chosen[8]]


def test_mean_gain_and_intervals_are_over_patients(script: dict[str, Any]) -> None:
    before = {("a", 1): 0.2, ("a", 2): 0.4, ("b", 1): 0.6}
    first = {("a", 1): 0.4, ("a", 2): 0.6, ("b", 1): 0.6}
    second = {("a", 1): 0.6, ("a", 2): 0.8, ("b", 1): 0.6}
    scores = {count: [{lesion: dict.fromkeys((1, 3, 5), dice) for lesion, dice in seed.items()} for seed in seeds]
              for count, seeds in ((0, [before]), (8, [first, second]))}  # fmt: skip
    points = script["curve"](scores)
    assert points[0][1].mean == pytest.approx(0.4)
    assert points[0][1].gain == 0
    # seeds averaged: 0.5, 0.7 and 0.6; gains 0.3, 0.3 and 0
    assert points[8][3].mean == pytest.approx(0.6)
    assert points[8][3].gain == pytest.approx(0.2)
    # two patients drawn with replacement: both a's lesions twice, both b's, or all three
    assert (points[8][5].gain_low, points[8][5].gain_high) == pytest.approx((0.0, 0.3))


def test_repeats_are_chosen_for_the_steps_asked_for(script: dict[str, Any], tmp_path: Path) -> None:
    manifest = write_cohort(tmp_path / "data", 5, seed=1, field="pelvis", test=1)
    found = read_manifest(manifest)
    cases = script["subset"](found.split("train"), 4, 0)
    lesions = script["lesion_count"]([case for case in cases if case.split == "train"], 18)
    config = ROOT / "configs" / "few_cases.yaml"
    run = script["training"](tmp_path, config, ["optim.epochs=5"], cases, found.split("test"), 200, 0)
    steps_an_epoch = -(-lesions * run.config.data.repeats // run.config.optim.batch_size)
    assert 5 * steps_an_epoch == pytest.approx(200, rel=0.2)
    assert run.config.validate_.test
    assert [case.split for case in read_manifest(tmp_path / "manifest.json").cases].count("test") == 1
    assert not run.is_done()


def test_a_cohort_is_made_once_and_never_mixed_with_another(script: dict[str, Any], tmp_path: Path) -> None:
    options = {"cases": 1, "test": 0, "seed": 3, "field": "pelvis"}
    manifest = script["make_cohort"](tmp_path, options)
    made = manifest.stat().st_mtime_ns
    assert script["make_cohort"](tmp_path, options).stat().st_mtime_ns == made
    with pytest.raises(InputError, match="'seed': 3"):
        script["make_cohort"](tmp_path, {**options, "seed": 4})


def test_scores_are_read_from_a_run_and_drawn(script: dict[str, Any], tmp_path: Path) -> None:
    table = tmp_path / "test_cases.csv"
    table.write_text("case,lesion,volume_ml,dice@1,dice@3,dice@5\na,all,,0.1,0.1,0.1\na,1,2.0,0.5,0.6,0.7\n")
    scores = script["read_scores"](table)
    assert scores == {("a", 1): {1: 0.5, 3: 0.6, 5: 0.7}}
    script["draw"](script["curve"]({0: [scores], 4: [scores]}), "title", tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert np.isnan(script["curve"]({0: [scores]})[0][1].low)  # one patient has no interval
