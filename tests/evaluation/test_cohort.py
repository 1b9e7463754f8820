"""Cohorts: pairing by ID, one message for all problems, failed cases as rows, tables, the command."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from sammed3d_ft.dataset.manifest import Case, write_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.cohort import evaluate_pairs
from sammed3d_ft.evaluation.metrics import METRICS
from sammed3d_ft.evaluation.pairing import pair_folders
from sammed3d_ft.evaluation.statistics import summarise
from sammed3d_ft.recipes.evaluate import run
from tests.support.cohort_files import AFFINE, lesion, rows, save, write_cohort
from tests.support.command import command


@pytest.fixture
def cohort(tmp_path: Path) -> Path:
    return write_cohort(tmp_path)


def test_tables_of_a_cohort(cohort: Path) -> None:
    run(cohort / "pred", cohort / "gt", cohort / "out", cohort / "pet", figures=False)
    cases = rows(cohort / "out" / "cases.csv")
    assert list(cases[0]) == ["case", "patient", "error", *METRICS]
    assert [case["case"] for case in cases] == ["a", "b", "c"]
    assert [case["dice"] for case in cases] == ["1.0", "0.5", ""]
    assert [float(case["fpv_ml"]) for case in cases] == [0, 0, 1]
    assert [case["fnv_ml"] for case in cases] == ["0.0", "2.0", ""]
    assert [float(case["truth_tla"]) for case in cases] == [12, 18, 0]

    lesions = rows(cohort / "out" / "lesions.csv")
    assert [(row["case"], row["source"], row["fate"], row["size_class"]) for row in lesions] == [
        ("a", "truth", "matched", "large"),
        ("b", "truth", "matched", "large"),
        ("b", "truth", "missed", "medium"),
        ("c", "prediction", "isolated", "small"),
    ]
    assert [row["partner_id"] for row in lesions] == ["1", "1", "", ""]
    assert float(lesions[2]["centroid_x_mm"]) == 85.0

    summary = json.loads((cohort / "out" / "summary.json").read_text())
    dice = summary["metrics"]["dice"]
    assert (dice["n"], dice["not_defined"], dice["mean"], dice["median"]) == (2, 1, 0.75, 0.75)
    assert dice["sd"] == pytest.approx(0.125**0.5)
    assert (dice["q1"], dice["q3"]) == (0.625, 0.875)
    pooled = summary["pooled_detection"]["iou0.1"]
    assert (pooled["tp"], pooled["fp"], pooled["fn"], pooled["f1"]) == (2, 1, 1, pytest.approx(4 / 6))
    assert summary["by_size"]["large"] == {
        "lesions": 2,
        "detected": 2,
        "recall": 1.0,
        "lesion_dice": pytest.approx((1 + 2 * 0.5 / 1.5) / 2),
        "unmatched_predictions": 0,
    }
    assert summary["by_size"]["small"]["unmatched_predictions"] == 1
    assert summary["lesion_free"] == {
        "cases": 1,
        "specificity": 0.0,
        "mean_fpv_ml": 1.0,
        "false_positive_lesions": 1,
    }
    settings = {"connectivity": 18, "foreground": "binary"}
    assert summary["configuration"].items() >= settings.items()
    assert set(summary["conventions"]) == set(METRICS)
    content = (cohort / "pred" / "a.nii.gz").read_bytes()
    assert summary["files"]["a"]["prediction"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert summary["versions"]["numpy"] == np.__version__


def test_missing_and_extra_files_are_named_all_at_once(cohort: Path) -> None:
    (cohort / "pred" / "a.nii.gz").unlink()
    (cohort / "pet" / "b_0001.nii.gz").unlink()
    save(cohort / "pred" / "z.nii", lesion())
    save(cohort / "pet" / "c.nii.gz", np.zeros((12, 4, 4), np.float32))
    with pytest.raises(InputError) as caught:
        run(cohort / "pred", cohort / "gt", cohort / "out", cohort / "pet", figures=False)
    message = str(caught.value)
    for offender in (
        "case a: no prediction",
        "case b: no PET",
        "z.nii does not belong to any case",
        "case c: two PETs",
    ):
        assert offender in message
    assert message.startswith("4 files do not match")
    assert not (cohort / "out").exists()


def test_differing_grids_are_named_all_at_once_before_anything_is_evaluated(cohort: Path) -> None:
    moved = AFFINE.copy()
    moved[0, 3] = 5.0
    save(cohort / "pred" / "a.nii.gz", lesion((0, 3)), moved)
    save(cohort / "pred" / "b.nii.gz", np.zeros((12, 4, 5), np.uint8))
    save(cohort / "pet" / "c_0001.nii.gz", np.zeros((12, 4, 4), np.float32), AFFINE * 2)
    with pytest.raises(InputError) as caught:
        run(cohort / "pred", cohort / "gt", cohort / "out", cohort / "pet", figures=False)
    message = str(caught.value)
    for offender in ("case a: prediction", "shifted by (5.00", "case b: prediction", "12x4x5", "case c: PET"):
        assert offender in message
    assert not (cohort / "out").exists()


def test_another_storage_order_is_the_same_grid(cohort: Path) -> None:
    flip = np.array([[-10.0, 0, 0, 110], [0, 10, 0, 0], [0, 0, 10, 0], [0, 0, 0, 1]])
    save(cohort / "pred" / "a.nii.gz", lesion((0, 3))[::-1], flip)
    done = evaluate_pairs(pair_folders(cohort / "pred", cohort / "gt"))
    assert done[0].result is not None
    assert done[0].result.dice == 1


def test_bad_content_marks_the_case_and_spares_the_others(cohort: Path) -> None:
    save(cohort / "pred" / "a.nii.gz", lesion((0, 3)) * 2)
    whole = (cohort / "pred" / "b.nii.gz").read_bytes()
    (cohort / "pred" / "b.nii.gz").write_bytes(whole[: len(whole) // 2])
    run(cohort / "pred", cohort / "gt", cohort / "out", figures=False)
    cases = rows(cohort / "out" / "cases.csv")
    assert "case a" in cases[0]["error"]
    assert "not binary, it contains label 2" in cases[0]["error"]
    assert "case b" in cases[1]["error"]
    assert (cases[0]["dice"], cases[2]["error"], cases[2]["fpv_ml"]) == ("", "", "1.0")
    summary = json.loads((cohort / "out" / "summary.json").read_text())
    assert summary["cases"]["evaluated"] == 1
    assert set(summary["cases"]["failed"]) == {"a", "b"}


def test_probability_maps_give_froc_and_must_be_there_for_every_case(cohort: Path) -> None:
    common = (cohort / "pred", cohort / "gt", cohort / "out")
    summary = run(*common, probabilities=cohort / "probability", figures=False)
    # Two true lesions of three are hit, one false alarm in three cases, all at the one confidence of 0.8.
    froc = summary["froc"]
    assert froc["sensitivity_at_false_alarms_per_case"] == {
        "0.125": 0,
        "0.25": 0,
        **dict.fromkeys(("0.5", "1", "2", "4", "8"), pytest.approx(2 / 3)),
    }
    assert froc["average_precision"] == pytest.approx(2 / 3 * 2 / 3)
    assert froc["case_auroc"] == 0.5
    assert "froc" not in run(*common, figures=False)

    (cohort / "probability" / "a.nii.gz").rename(cohort / "probability" / "z.nii.gz")
    with pytest.raises(InputError, match=r"case a: no probability map in .*; .*z\.nii\.gz does not belong to any case"):
        run(*common, probabilities=cohort / "probability")


def test_other_peoples_rules_become_columns_and_statistics(cohort: Path) -> None:
    common = (cohort / "pred", cohort / "gt", cohort / "out", cohort / "pet")
    summary = run(*common, compat=("l1dfl", "autopet"), figures=False)
    cases = rows(cohort / "out" / "cases.csv")
    assert list(cases[0])[: 3 + len(METRICS)] == ["case", "patient", "error", *METRICS]
    assert [case["autopet_fpv_ml"] for case in cases] == ["0.0", "0.0", "1.0"]
    assert [case["l1dfl_tp_c3"] for case in cases] == ["1.0", "1.0", "0.0"]
    assert list(summary["compat"]) == ["l1dfl", "autopet"]
    assert summary["compat"]["autopet"]["metrics"]["autopet_dice"]["n"] == 2
    assert "arXiv" in summary["compat"]["l1dfl"]["source"]
    with pytest.raises(InputError, match="unknown scoring rule 'autopot'"):
        run(*common, compat=("autopot",))


def test_instance_maps_keep_touching_lesions_apart(cohort: Path) -> None:
    maps = np.zeros((12, 4, 4), np.uint8)
    maps[0:2, 1, 1], maps[2:4, 1, 1] = 7, 3
    save(cohort / "gt" / "a.nii.gz", maps)
    save(cohort / "pred" / "a.nii.gz", maps)
    run(cohort / "pred", cohort / "gt", cohort / "out", instances=True, figures=False)
    assert rows(cohort / "out" / "cases.csv")[0]["truth_lesions"] == "2"
    assert [row["lesion_id"] for row in rows(cohort / "out" / "lesions.csv")[:2]] == ["3", "7"]
    with pytest.raises(InputError, match="contradicts"):
        run(cohort / "pred", cohort / "gt", cohort / "out", instances=True, foreground=1)


def test_agreement_of_quantities_is_in_the_summary(cohort: Path) -> None:
    of = run(cohort / "pred", cohort / "gt", cohort / "out", figures=False)["agreement"]["quantities"]
    # TMTV: 4 and 4, 6 and 2, 0 and 1 ml.
    volume = of["volume_ml"]
    assert (volume["n"], volume["n_ratio"]) == (3, 2)
    assert volume["difference"]["bias"] == pytest.approx(-1)
    assert volume["ratio"]["bias"] == pytest.approx((1 / 3) ** 0.5)
    assert (of["suv_max"]["n"], of["suv_max"]["not_defined"], of["suv_max"]["truth_mean"]) == (0, 3, None)


@pytest.mark.parametrize(("foreground", "dice"), [("any", 2 * 3 / (4 + 3)), (2, 2 * 2 / (4 + 2)), (7, 0.0)])
def test_foreground_rule_says_which_labels_are_lesion(tmp_path: Path, foreground: object, dice: float) -> None:
    pred = lesion((0, 2))
    pred[1:3][pred[1:3] > 0] = 2
    truth = lesion((0, 3))
    truth[truth > 0] = foreground if isinstance(foreground, int) else 5
    save(tmp_path / "gt" / "a.nii.gz", truth)
    save(tmp_path / "pred" / "a.nii.gz", pred)
    pairs = pair_folders(tmp_path / "pred", tmp_path / "gt")
    done = evaluate_pairs(pairs, foreground=foreground)  # type: ignore[arg-type]
    assert done[0].result is not None
    assert done[0].result.dice == pytest.approx(dice)


def test_the_command_tells_of_a_label_that_no_prediction_holds(tmp_path: Path) -> None:
    truth = lesion((0, 3))
    truth[truth > 0] = 3
    save(tmp_path / "gt" / "a.nii.gz", truth)
    save(tmp_path / "pred" / "a.nii.gz", lesion((0, 3)))
    words = ("--pred", tmp_path / "pred", "--gt", tmp_path / "gt", "--out", tmp_path / "out", "--foreground", 3)
    told = command("evaluate", *words)
    assert "every prediction is empty, but the ground truth is not; only label 3 counts as lesion" in told


def test_the_background_is_no_foreground(cohort: Path) -> None:
    with pytest.raises(InputError, match="foreground 0: expected a lesion label of at least 1"):
        run(cohort / "pred", cohort / "gt", cohort / "out", foreground=0, figures=False)


def test_manifest_gives_labels_pet_split_and_patients(cohort: Path) -> None:
    def case(name: str, split: str, label: bool = True) -> Case:
        images = {"PT": cohort / "pet" / f"{name}_0001.nii.gz"}
        return Case(name, images, cohort / "gt" / f"{name}.nii.gz" if label else None, split, "patient 1")

    manifest = cohort / "manifest.json"
    write_manifest(manifest, [case("a", "test"), case("b", "test"), case("c", "train")])
    with pytest.raises(InputError, match=r"c\.nii\.gz does not belong to any case"):
        run(cohort / "pred", manifest, cohort / "out", split="test")
    (cohort / "pred" / "c.nii.gz").unlink()
    summary = run(cohort / "pred", manifest, cohort / "out", split="test", figures=True)
    assert summary["agreement"]["quantities"]["suv_max"]["n"] == 1  # of one patient's two cases
    figures = sorted((cohort / "out" / "figures").iterdir())
    assert [path.name for path in figures] == ["a.png", "b.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in figures)
    assert summary["cases"] == {"evaluated": 2, "patients": 1, "failed": {}}
    assert [row["patient"] for row in rows(cohort / "out" / "cases.csv")] == ["patient 1", "patient 1"]
    assert float(rows(cohort / "out" / "cases.csv")[0]["truth_suv_max"]) == 3
    assert summary["metrics"]["dice"]["ci_low"] is None  # one patient gives no variance between patients
    with pytest.raises(InputError, match="no cases of split 'val'"):
        run(cohort / "pred", manifest, cohort / "out", split="val")
    write_manifest(manifest, [case("a", "test"), case("b", "test", label=False)])
    with pytest.raises(InputError, match="case b has no label"):
        run(cohort / "pred", manifest, cohort / "out")


def test_bootstrap_draws_whole_patients() -> None:
    # Two patients with 40 cases each: 0 for one, 1 for the other. Half of the draws hold one of them only,
    # so the interval is everything; cases drawn one by one would give a narrow interval round 0.5.
    values = [0.0] * 40 + [1.0] * 40
    patients = ["x"] * 40 + ["y"] * 40
    summary = summarise({"m": values}, patients)["m"]
    assert (summary.mean, summary.ci_low, summary.ci_high) == (0.5, 0.0, 1.0)
    apart = summarise({"m": values}, [str(i) for i in range(80)])["m"]
    assert apart.ci_low == pytest.approx(0.5 - 1.96 * 0.5 / 80**0.5, abs=0.015)
    assert apart.ci_high == pytest.approx(0.5 + 1.96 * 0.5 / 80**0.5, abs=0.015)


def test_bootstrap_equals_a_plain_one_in_distribution() -> None:
    rng = np.random.default_rng(7)
    values = rng.gamma(2.0, 1.0, 25)
    values[[3, 9]] = np.nan
    summary = summarise({"m": values.tolist()}, [str(i) for i in range(25)])["m"]
    draws = values[rng.integers(0, 25, (40_000, 25))]
    low, high = np.percentile(np.nanmean(draws, axis=1), [2.5, 97.5])
    assert (summary.ci_low, summary.ci_high) == (pytest.approx(low, abs=0.03), pytest.approx(high, abs=0.03))
    assert (summary.n, summary.not_defined) == (23, 2)
    assert summarise({"m": values.tolist()}, [str(i) for i in range(25)])["m"] == summary  # seeded


def test_summary_of_nothing_and_of_one_case() -> None:
    nothing = summarise({"m": [float("nan")] * 2}, ["x", "y"])["m"]
    assert (nothing.n, nothing.not_defined) == (0, 2)
    assert all(np.isnan([nothing.mean, nothing.sd, nothing.median, nothing.q1, nothing.ci_low]))
    assert summarise({"m": []}, [])["m"].n == 0
    one = summarise({"m": [0.4]}, ["x"])["m"]
    assert (one.mean, one.median) == (0.4, 0.4)
    assert np.isnan([one.sd, one.ci_low, one.ci_high]).all()


def test_command_prints_every_convention_and_exit_codes(cohort: Path) -> None:
    common = ("evaluate", "--pred", cohort / "pred", "--gt", cohort / "gt", "--out", cohort / "out")
    told = command(*common, "--pet", cohort / "pet", columns=250)
    assert "3 cases of 3 patients, 18-connectivity" in told
    for name, metric in METRICS.items():
        if metric.headline:
            assert name in told
            assert metric.convention in told
    save(cohort / "pred" / "a.nii.gz", lesion((0, 3)) * 2)
    assert "--foreground any" in command(*common, code=3, columns=250)
    command(*common, "--foreground", 2)
    for wrong in (("--connectivity", 8), ("--foreground", "all"), ("--foreground", 0)):
        with pytest.raises(InputError, match=wrong[0]):
            command(*common, *wrong)


def test_single_files_of_any_name(cohort: Path) -> None:
    summary = run(cohort / "pred" / "b.nii.gz", cohort / "gt" / "a.nii.gz", cohort / "out")
    assert list(summary["files"]) == ["a"]
    assert summary["metrics"]["dice"]["mean"] == pytest.approx(2 * 2 / 6)
    for pred, gt in (
        (cohort / "pred", cohort / "gt" / "a.nii.gz"),
        (cohort / "pred" / "a.nii.gz", cohort / "gt"),
    ):
        with pytest.raises(InputError, match="give two folders, two files"):
            run(pred, gt, cohort / "out")
    with pytest.raises(InputError, match="no such file or folder"):
        run(cohort / "nowhere", cohort / "gt", cohort / "out")
    with pytest.raises(InputError, match="needs a manifest"):
        run(cohort / "pred", cohort / "gt", cohort / "out", split="test")
