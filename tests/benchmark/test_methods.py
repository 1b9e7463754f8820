"""The benchmark's methods without training: hand-counted tables, cascades, rules, both protocols."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import yaml

from sammed3d_ft.benchmark import runner
from sammed3d_ft.benchmark.masks import case_facts
from sammed3d_ft.comparators.threshold import ThresholdByClicks
from sammed3d_ft.dataset.builders import from_folders
from sammed3d_ft.dataset.manifest import Case, write_manifest
from sammed3d_ft.errors import InputError
from tests.support.benchmark_cases import current, line_of, made_in, rows_of
from tests.support.command import command
from tests.support.training_runs import ROOT

AFFINE = np.diag([5.0, 5.0, 5.0, 1.0])  # a voxel of 0.125 ml


def cube(start: tuple[int, int, int], size: int) -> np.ndarray:
    mask = np.zeros((16, 16, 16), np.uint8)
    mask[tuple(slice(a, a + size) for a in start)] = 1
    return mask


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)
    return path


def write_benchmark(folder: Path, truths: dict[str, np.ndarray], rows: dict[str, Any], **changes: Any) -> Path:
    """PET is 1, and 9 in the truth."""
    cases = []
    for name, truth in truths.items():
        pet = save(folder / "pet" / f"{name}.nii.gz", (1 + 8 * truth).astype(np.float32))
        cases.append(Case(name, {"PT": pet}, save(folder / "labels" / f"{name}.nii.gz", truth)))
    write_manifest(folder / "manifest.json", cases)
    (folder / "folds.json").write_text(json.dumps([[name] for name in truths]))
    content = {
        "out": str(folder / "out"),
        "manifest": str(folder / "manifest.json"),
        "folds": str(folder / "folds.json"),
        "clicks": [1],
        "reference": next(iter(rows)),
        "rows": rows,
    }
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


ALL_DETECTIONS = {"detector": "found", "prompted": "suv4"}
TRUTHS = {"p1": cube((2, 2, 2), 2), "p2": cube((2, 2, 2), 2), "p3": cube((9, 9, 9), 2), "p4": cube((4, 4, 4), 4)}


def test_a_table_of_two_folders_of_masks_by_hand(tmp_path: Path) -> None:
    spurious = TRUTHS["p4"].copy()
    spurious[12:15, 12, 12] = 1  # three voxels, 0.375 ml
    a = {"p1": TRUTHS["p1"], "p2": cube((3, 2, 2), 2), "p3": np.zeros_like(TRUTHS["p3"]), "p4": spurious}
    for name, mask in a.items():
        save(tmp_path / "a" / f"{name}.nii.gz", mask)
    for name in ("p1", "p2", "p3"):
        save(tmp_path / "b" / f"{name}.nii", TRUTHS[name])  # another suffix
    rows = {"a": {"masks": str(tmp_path / "a")}, "b": {"masks": str(tmp_path / "b")}}
    told = command("benchmark", write_benchmark(tmp_path, TRUTHS, rows), code=3)
    assert "failed: b, fold 3, seed 0: case p4: no prediction" in told

    def of(row: str, metric: str) -> dict[str, Any]:
        line = line_of(tmp_path / "out", row, "automatic", metric)
        assert line["clicks"] == "none"
        return {
            name: value if name == "metric" else float(value or "nan")
            for name, value in line.items()
            if value and name not in ("block", "row", "clicks", "metric")
        }

    dice = of("a", "dice")
    assert dice["mean"] == pytest.approx((1 + 0.5 + 0 + 128 / 131) / 4)
    assert dice["median"] == pytest.approx((0.5 + 128 / 131) / 2)
    assert (dice["patients"], dice["of"], dice["failed"]) == (4, 4, 0)
    assert of("a", "f1_iou0.1")["mean"] == pytest.approx((1 + 1 + 0 + 2 / 3) / 4)
    assert of("a", "lesion_dice")["mean"] == pytest.approx((1 + 0.5 + 0 + 1) / 4)
    assert of("a", "hd95_mm")["patients"] == 3  # p3's prediction is empty
    assert of("a", "fpv_ml")["mean"] == pytest.approx(0.375 / 4)
    assert of("a", "fnv_ml")["mean"] == pytest.approx(1.0 / 4)
    assert of("a", "tmtv_error_ml")["mean"] == pytest.approx((0 + 0 + 1.0 + 0.375) / 4)
    other = of("b", "dice")
    assert (other["mean"], other["patients"], other["failed"], other["pairs"]) == (1, 3, 1, 3)
    assert other["difference"] == pytest.approx(0.5)  # 0, 0.5 and 1
    assert other["hodges_lehmann"] == pytest.approx(0.5)
    assert of("b", "hd95_mm")["pairs"] == 2
    sizes = {(line["row"], line["size_class"]): line for line in rows_of(tmp_path / "out" / "sizes.csv")}
    assert {key: (line["lesions"], line["of"]) for key, line in sizes.items()} == {
        ("a", "small"): ("3", "3"), ("b", "small"): ("3", "3"), ("a", "large"): ("1", "1"), ("b", "large"): ("0", "1")
    }  # fmt: skip
    assert float(sizes["a", "small"]["recall"]) == pytest.approx(2 / 3)
    assert float(sizes["a", "small"]["lesion_dice"]) == pytest.approx(0.5)
    assert float(sizes["a", "large"]["lesion_dice"]) == 1
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| b | none | 1.000 [3/4] |" in table
    assert "| automatic | b | none | 3/4 (1 missing) | 1.000 (1.000 to 1.000) | 1.000 | 0.500 |" in table


def test_a_changed_docstring_keeps_masks_and_scores(tmp_path: Path) -> None:
    config = write_benchmark(tmp_path, TRUTHS, {"suv4": {"rule": {"suv_at_least": 4}}})
    runner.run(config)
    made = made_in(tmp_path / "out")
    assert sum(path.name.endswith(".nii.gz") for path in made) == 4
    for package in ("sammed3d_ft", "prompts"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    for source in [*(tmp_path / "sammed3d_ft").rglob("*.py"), *(tmp_path / "prompts").rglob("*.py")]:
        source.write_text(source.read_text().replace('"""', '"""Reworded: ', 1))
    command = [sys.executable, "-m", "sammed3d_ft.cli.main", "benchmark", str(config)]
    subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=True)
    assert made_in(tmp_path / "out") == made


def test_an_unreadable_stored_score_is_named_and_made_again_once_deleted(tmp_path: Path) -> None:
    config = write_benchmark(tmp_path, TRUTHS, {"suv4": {"rule": {"suv_at_least": 4}}})
    runner.run(config)
    stored = current(tmp_path / "out", "suv4", "0", "evaluation") / "1_clicks" / "cases" / "p1.json"
    stored.write_text("{}")
    with pytest.raises(InputError, match=r"p1.json: not a readable result .*; delete .*1_clicks to score again"):
        runner.run(config)
    shutil.rmtree(stored.parents[1])
    assert runner.run(config)[1] == []


def test_masks_and_scores_of_an_older_layout_are_left_alone(tmp_path: Path) -> None:
    run = tmp_path / "out" / "runs" / "suv4" / "fold0_seed0"
    save(run / "masks" / "1_clicks" / "p1.nii.gz", np.zeros_like(TRUTHS["p1"]))
    (run / "masks" / "made_of.json").write_text('{"made_of": {"code": "a digest of sources"}, "cases": {}}')
    (run / "evaluation" / "1_clicks").mkdir(parents=True)
    (run / "evaluation" / "1_clicks" / "cases.csv").write_text("case,error\np1,\n")
    before = made_in(tmp_path / "out")
    assert len(before) == 3
    runner.run(write_benchmark(tmp_path, TRUTHS, {"suv4": {"rule": {"suv_at_least": 4}}}))
    assert float(line_of(tmp_path / "out", "suv4", "1 click per lesion")["mean"]) == 1  # theirs would have given 0.75
    assert before.items() <= made_in(tmp_path / "out").items()


def test_folders_by_number_of_clicks_are_prompted_rows(tmp_path: Path) -> None:
    for name, truth in TRUTHS.items():
        save(tmp_path / "other" / "1_clicks" / f"{name}.nii.gz", truth)
        save(tmp_path / "other" / "automatic" / f"{name}.nii.gz", np.zeros_like(truth))
    runner.run(write_benchmark(tmp_path, TRUTHS, {"other": {"masks": str(tmp_path / "other")}}))
    found = [(line["block"], line["clicks"], float(line["mean"])) for line in rows_of(tmp_path / "out" / "table.csv")
             if line["metric"] == "dice"]  # fmt: skip
    assert found == [("1 click per lesion", "1 per lesion", 1), ("automatic", "none", 0)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"clicks": [3]}, "has 1_clicks, expected 3_clicks"),
        ({"protocol": "autopet4"}, "has 1_clicks, expected 0_clicks, "),
    ],
)
def test_folders_of_other_numbers_of_clicks_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    for name, truth in TRUTHS.items():
        save(tmp_path / "other" / "1_clicks" / f"{name}.nii.gz", truth)
    with pytest.raises(InputError, match=said):
        runner.run(write_benchmark(tmp_path, TRUTHS, {"other": {"masks": str(tmp_path / "other")}}, **changes))


def test_a_worker_that_dies_is_a_marked_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class DyingPool:
        """Its first unit ends the process; the other one goes well."""

        def __init__(self, *_: Any) -> None:
            self.count = 0

        def __enter__(self) -> DyingPool:
            return self

        def __exit__(self, *_: Any) -> None:
            pass

        def submit(self, work: Any, *given: Any) -> Future[Any]:
            future: Future[Any] = Future()
            if self.count:
                future.set_result(work(*given))
            else:
                future.set_exception(BrokenProcessPool())
            self.count += 1
            return future

    monkeypatch.setattr(runner, "ProcessPoolExecutor", DyingPool)
    rows = {"suv4": {"rule": {"suv_at_least": 4}}}
    table, failures = runner.run(write_benchmark(tmp_path, TRUTHS, rows, workers=2))
    assert [failure.run for failure in failures] == ["suv4, fold 0, seed 0"]
    assert "lower workers" in failures[0].reason
    assert "| suv4 | 1 per lesion | 3/4 (1 missing) |" in table


def test_both_click_modes_of_a_checkpoint_are_named_in_every_output(tmp_path: Path) -> None:
    rows = {"all": {"checkpoint": "mini"}, "newest": {"checkpoint": "mini", "accumulate_clicks": False}}
    rows["clicked"] = {"rule": {"suv_at_least": 4}}
    hollow = cube((2, 2, 2), 12) - cube((5, 5, 5), 6)
    truths = {"p1": cube((3, 2, 4), 10), "p2": hollow, "p3": cube((9, 9, 9), 5)}
    text, failures = runner.run(write_benchmark(tmp_path, truths, rows, clicks=[1, 3]))
    assert failures == []
    out, modes = tmp_path / "out", {"all": "true", "newest": "false", "clicked": ""}
    for name in ("table.csv", "sizes.csv", "cases.csv"):
        assert {line["row"]: line["accumulate_clicks"] for line in rows_of(out / name)} == modes
    for where in (text, (out / "table.md").read_text()):
        assert "| all | 3 per lesion, accumulated |" in where
        assert "| newest | 3 per lesion, newest only |" in where
        assert "| clicked | 3 per lesion |" in where
        assert "Clicks, accumulated: at each step" in where
    assert "<td>3 per lesion, newest only</td>" in (out / "table.html").read_text()
    made_of = {
        name: json.loads((current(out, name, "0") / "made_of.json").read_text())["made_of"]
        for name in ("all", "newest")
    }
    assert "accumulate_clicks" not in made_of["all"]  # as in benchmarks by earlier versions, whose masks are kept
    assert made_of["newest"] == {**made_of["all"], "accumulate_clicks": False}

    def masks(row: str, level: str) -> list[bytes]:
        paths = (current(out, row, str(fold)) / level / f"{case}.nii.gz" for fold, case in enumerate(truths))
        return [np.asarray(nib.load(path).dataobj).tobytes() for path in paths]

    assert masks("all", "1_clicks") == masks("newest", "1_clicks")
    assert masks("all", "3_clicks") != masks("newest", "3_clicks")


def test_a_cascade_is_clicked_once_at_every_detection_and_by_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[tuple[Any, ...]] = []
    real = ThresholdByClicks.add_click

    def watched(self: ThresholdByClicks, position_vox: Any, label: int = 1, lesion: int = 1) -> Any:
        given.append((*np.asarray(position_vox).tolist(), label, lesion))
        return real(self, position_vox, label, lesion)

    detected = {"p1": cube((2, 2, 2), 1) | cube((10, 9, 8), 3), "p2": np.zeros((16, 16, 16), np.uint8)}
    detected |= {"p3": cube((8, 9, 9), 2), "p4": cube((4, 4, 4), 1)}
    for name, mask in detected.items():
        save(tmp_path / "found" / f"{name}.nii.gz", mask)
    rows = {
        "cascade": {"cascade": ALL_DETECTIONS},
        "found": {"masks": str(tmp_path / "found")},
        "suv4": {"rule": {"suv_at_least": 4}},
    }
    config = write_benchmark(tmp_path, TRUTHS, rows)
    with monkeypatch.context() as patched:
        runner.run(config)
        given.clear()
        for path in (tmp_path / "out" / "runs" / "cascade").rglob("*.nii.gz"):
            path.unlink()
        patched.setattr(ThresholdByClicks, "add_click", watched)
        runner.run(config)
    # The second component of p1 is far from any uptake, so it adds nothing; p2 was missed by the detector.
    assert given == [(2, 2, 2, 1, 1), (11, 10, 9, 1, 2), (8, 9, 9, 1, 1), (4, 4, 4, 1, 1)]
    line = line_of(tmp_path / "out", "cascade", "automatic")
    assert (line["clicks"], float(line["mean"])) == ("none", 0.75)
    assert line_of(tmp_path / "out", "suv4", "1 click per lesion")["clicks"] == "1 per lesion"

    # Only p1's second component, 27 voxels of 0.125 ml, and p3's, 8 voxels, are as large as 1 ml.
    rows["cascade"] = {"cascade": {**ALL_DETECTIONS, "min_volume_ml": 1}}
    with monkeypatch.context() as patched:
        given.clear()
        patched.setattr(ThresholdByClicks, "add_click", watched)
        runner.run(write_benchmark(tmp_path, TRUTHS, rows))
    assert given == [(11, 10, 9, 1, 2), (8, 9, 9, 1, 1)]
    runner.run(config := write_benchmark(tmp_path, TRUTHS, {**rows, "cascade": {"cascade": ALL_DETECTIONS}}))

    save(tmp_path / "found" / "p2.nii.gz", TRUTHS["p2"])  # another detection: the cascade of that fold is repeated
    runner.run(config)
    assert float(line_of(tmp_path / "out", "cascade", "automatic")["mean"]) == 1
    (tmp_path / "found" / "p3.nii.gz").unlink()
    _, failures = runner.run(config)
    assert sorted(failure.run for failure in failures) == ["cascade, fold 2, seed 0", "found, fold 2, seed 0"]


@pytest.mark.slow
def test_two_workers_give_the_tables_of_one(tmp_path: Path) -> None:
    rows = {"suv4": {"rule": {"suv_at_least": 4}}, "suv3": {"rule": {"suv_at_least": 3}, "clicks": "none"}}
    rows["cascade"] = {"cascade": {"detector": "suv3", "prompted": "suv4"}}
    runner.run(write_benchmark(tmp_path, TRUTHS, rows))
    runner.run(write_benchmark(tmp_path, TRUTHS, rows, out=str(tmp_path / "two"), workers=2))
    for name in ("table.csv", "sizes.csv", "cases.csv", "table.md"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    assert float(line_of(tmp_path / "two", "cascade", "automatic")["mean"]) == 1


def test_the_autopet_protocol_has_eleven_steps_and_areas(tmp_path: Path) -> None:
    for name, truth in TRUTHS.items():
        for step in range(11):
            save(tmp_path / "other" / f"{step}_clicks" / f"{name}.nii.gz", truth if step >= 4 else np.zeros_like(truth))
    rows = {
        "other": {"masks": str(tmp_path / "other")},
        "suv4": {"rule": {"suv_at_least": 4}},
        "suv3": {"rule": {"suv_at_least": 3}, "clicks": "none"},
    }
    runner.run(write_benchmark(tmp_path, TRUTHS, rows, protocol="autopet4"))
    last, first = "10 + 10 clicks per scan", "step 0, no clicks"
    out = tmp_path / "out"
    # 0 at steps 0 to 3, 1 from 4 to 10: half a step and six.
    assert float(line_of(out, "other", last, "auc_dice")["mean"]) == pytest.approx(6.5)
    assert float(line_of(out, "other", last)["mean"]) == 1
    assert float(line_of(out, "other", first)["mean"]) == 0
    # Proposals find these lesions, which have the highest uptake: correct from step 0 to the last.
    assert float(line_of(out, "suv4", first)["mean"]) == 1
    assert float(line_of(out, "suv4", last, "auc_dice")["mean"]) == pytest.approx(10)
    # Without clicks a mask is unchanged.
    assert float(line_of(out, "suv3", last, "auc_dice")["mean"]) == pytest.approx(10)
    assert float(line_of(out, "suv3", last, "auc_fpv_ml")["mean"]) == 0
    told = {line["clicks"] for line in rows_of(out / "table.csv") if line["block"] == last}
    assert told == {"10 + 10 per scan", "none"}
    assert (out / "table.html").read_text().count("<img") == 4  # curve, two boxes, sizes


def test_the_seeded_rule_has_the_numbers_of_the_script(real_data: Path, tmp_path: Path) -> None:
    folder = real_data / "fdg_pet_sarcoma"
    cases = from_folders(folder, "{id}/PET_image.nii.gz", "{id}/PET_mask.nii.gz", None)
    write_manifest(tmp_path / "manifest.json", cases)
    content = {
        "out": str(tmp_path / "out"),
        "manifest": str(tmp_path / "manifest.json"),
        "folds": str(folder / "splits.json"),
        "folds_key": "folds",
        "clicks": [1],
        "metrics": ["dice"],
        "reference": "rule",
        "rows": {"rule": {"rule": {"fraction_of_max": 0.41}}},
    }
    (tmp_path / "b.yaml").write_text(yaml.safe_dump(content))
    _, failures = runner.run(tmp_path / "b.yaml")
    assert failures == []
    line = line_of(tmp_path / "out", "rule", "1 click per lesion")
    assert (line["patients"], float(line["mean"])) == ("34", pytest.approx(0.6095, abs=1e-4))
    test = json.loads((folder / "splits.json").read_text())["holdout"]["test"]
    dice = [float(case["dice"]) for case in rows_of(tmp_path / "out" / "cases.csv") if case["case"] in test]
    assert len(dice) == 5
    assert np.mean(dice) == pytest.approx(0.6688, abs=1e-4)


def test_a_mhd_label_whose_voxels_changed_is_another_label(tmp_path: Path) -> None:
    facts = []
    for value in (0, 1):
        folder = tmp_path / str(value)
        folder.mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(np.full((3, 4, 5), value, np.uint8)), str(folder / "label.mhd"))
        facts.append(case_facts(Case("a", {}, folder / "label.mhd", "test", None))["label"])
    assert facts[0] != facts[1]
