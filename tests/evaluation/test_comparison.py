"""Comparison of evaluations: pairs by patient, Holm over all headline tests, refusals."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.comparison import compare, read_evaluations
from sammed3d_ft.evaluation.metrics import METRICS
from sammed3d_ft.evaluation.paired import holm
from sammed3d_ft.recipes import compare as recipe
from sammed3d_ft.recipes.evaluate import run as evaluate
from tests.support.cohort_files import lesion, save
from tests.support.command import command

NAN = float("nan")


def written(folder: Path, values: Mapping[str, Sequence[float]], patients: Sequence[str] | None = None) -> Path:
    """An evaluation as `write_report` leaves it, with the metrics given and all others not defined."""
    n = len(next(iter(values.values())))
    names = [f"case{number}" for number in range(n)]
    text = io.StringIO()
    writer = csv.DictWriter(text, ["case", "patient", "error", *METRICS])
    writer.writeheader()
    for number, name in enumerate(names):
        row = {metric: "" if math.isnan(column[number]) else column[number] for metric, column in values.items()}
        writer.writerow({"case": name, "patient": patients[number] if patients else name, **row})
    folder.mkdir(parents=True)
    (folder / "cases.csv").write_text(text.getvalue())
    summary = {
        "cases": {"failed": {}},
        "configuration": {"connectivity": 18, "foreground": "binary", "instances": False, "pred": "somewhere"},
        "conventions": {name: metric.convention for name, metric in METRICS.items()},
        "versions": {},
        "files": {name: {"truth": {"sha256": f"truth of {name}"}} for name in names},
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def changed(folder: Path, key: str, name: str, value: object) -> None:
    summary = json.loads((folder / "summary.json").read_text())
    summary[key][name] = value
    (folder / "summary.json").write_text(json.dumps(summary))


def test_numbers_by_hand(tmp_path: Path) -> None:
    """Seven patients; the last has no Dice in B. Six differences of B - A: 1 to 6 hundredths, all of one sign."""
    a = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9]
    b = [0.51, 0.52, 0.53, 0.54, 0.55, 0.56, NAN]
    folders = [written(tmp_path / "A", {"dice": a}), written(tmp_path / "B", {"dice": b})]
    row = compare(read_evaluations(folders), "A")["metrics"]["dice"]["B"]
    assert row["pairs"] == 6
    assert (row["mean"], row["reference_mean"]) == (pytest.approx(0.535), pytest.approx(0.5))
    assert (row["mean_difference"], row["hodges_lehmann"]) == (pytest.approx(0.035), pytest.approx(0.035))
    assert (row["ci_low"], row["ci_high"]) == (pytest.approx(0.01), pytest.approx(0.06))
    assert row["p"] == pytest.approx(2 / 2**6)
    assert row["p_holm"] == pytest.approx(2 / 2**6)  # the only test that is possible
    swapped = compare(read_evaluations(folders), "B")["metrics"]["dice"]["A"]
    assert swapped["hodges_lehmann"] == pytest.approx(-0.035)
    assert (swapped["mean"], swapped["reference_mean"]) == (pytest.approx(0.5), pytest.approx(0.535))


def test_holm_counts_all_headline_metrics_and_evaluations(tmp_path: Path) -> None:
    base = {"dice": [0.5] * 8, "hd95_mm": [10.0] * 8, "splits": [1.0] * 8}
    b = {"dice": [0.5 + k / 100 for k in range(1, 9)], "hd95_mm": [10.0 + (-1) ** k * k for k in range(8)]}
    c = {"dice": [0.5 - k / 100 for k in (1, 2, 3, 4, -5, 6, 7, 8)], "hd95_mm": [9.0 - k for k in range(8)]}
    splits = {"splits": [float(k) for k in range(2, 10)]}
    folders = [written(tmp_path / name, values) for name, values in (("A", base), ("B", b | splits), ("C", c | splits))]
    content = recipe.run(folders, tmp_path / "out")
    assert content["reference"] == "A"
    family = [content["metrics"][metric][name] for metric in ("dice", "hd95_mm") for name in ("B", "C")]
    assert [row["p_holm"] for row in family] == pytest.approx(holm([row["p"] for row in family]))
    assert family[0]["p_holm"] == pytest.approx(4 * 2 / 2**8)
    assert family[0]["p_bonferroni"] == pytest.approx(4 * 2 / 2**8)
    assert "p_holm" not in content["metrics"]["splits"]["B"]
    assert "truth_lesions" not in content["metrics"]
    text = (tmp_path / "out" / "compare.md").read_text()
    assert "| dice | B | 8 | 0.545 | 0.5 | 0.045 | 0.02 to 0.07 |" in text
    assert "Holm's correction over 4 tests" in text
    assert json.loads((tmp_path / "out" / "compare.json").read_text()) == content


def test_the_patient_is_the_unit_and_only_common_scans_count(tmp_path: Path) -> None:
    """p has three scans, one of them without a Dice in B: its means are over the other two."""
    patients = ["p", "p", "p", "q"]
    a = written(tmp_path / "A", {"dice": [0.2, 0.4, 0.9, 0.5]}, patients)
    b = written(tmp_path / "B", {"dice": [0.4, 0.8, NAN, 0.5]}, patients)
    row = compare(read_evaluations([a, b]), "A")["metrics"]["dice"]["B"]
    assert row["pairs"] == 2
    assert row["reference_mean"] == pytest.approx((0.3 + 0.5) / 2)
    assert row["mean"] == pytest.approx((0.6 + 0.5) / 2)


def test_one_case_is_no_test_and_few_can_prove_nothing(tmp_path: Path) -> None:
    one = [written(tmp_path / "1" / name, {"dice": [0.5 + number / 10]}) for number, name in enumerate("AB")]
    content = recipe.run(one, tmp_path / "out")
    row = content["metrics"]["dice"]["B"]
    assert (row["p"], row["p_holm"], row["ci_low"]) == (None, None, None)
    assert row["hodges_lehmann"] == pytest.approx(0.1)
    assert "only one patient, so no test is possible" in (tmp_path / "out" / "compare.md").read_text()
    few = [written(tmp_path / "5" / name, {"dice": [0.1 * number] * 5}) for number, name in enumerate("AB")]
    assert "With 5 patients, no difference" in compare(read_evaluations(few), "A")["statistics"]


def test_evaluations_that_cannot_be_compared_are_refused_with_every_reason(tmp_path: Path) -> None:
    a = written(tmp_path / "A", {"dice": [0.1, 0.2]})
    b = written(tmp_path / "B", {"dice": [0.1, 0.2, 0.3]})
    changed(b, "files", "case0", {"truth": {"sha256": "another"}})
    changed(b, "configuration", "connectivity", 26)
    changed(b, "conventions", "iou", "the same in other words")
    changed(b, "versions", "evaluation_format", 2)
    with pytest.raises(InputError) as caught:
        read_evaluations([a, b])
    message = str(caught.value)
    for reason in (
        "case case2 is in B but not in A",
        "case case0: A and B have different truth files",
        "A and B differ in connectivity (18 and 26)",
        "A and B define metrics differently (evaluation format 1 and 2)",
    ):
        assert reason in message
    assert message.startswith("4 differences")
    with pytest.raises(InputError, match="is given twice"):
        read_evaluations([a, a])
    with pytest.raises(InputError, match="at least two folders"):
        read_evaluations([a])
    with pytest.raises(InputError, match=r"summary\.json is missing"):
        read_evaluations([a, tmp_path])


def test_names_tell_folders_of_the_same_name_apart(tmp_path: Path) -> None:
    folders = [written(tmp_path / when / "scores", {"dice": [0.1]}) for when in ("before", "after")]
    assert [found.name for found in read_evaluations(folders)] == ["before/scores", "after/scores"]
    assert recipe.run(folders, tmp_path / "out", str(folders[1]))["reference"] == "after/scores"
    assert recipe.run(folders, tmp_path / "out", "after/scores")["reference"] == "after/scores"
    with pytest.raises(InputError, match="expected one of before/scores, after/scores"):
        recipe.run(folders, tmp_path / "out", "scores")


def test_command_on_real_evaluations(tmp_path: Path) -> None:
    for number in range(7):
        save(tmp_path / "gt" / f"{number}.nii.gz", lesion((0, 3)))
        save(tmp_path / "good" / f"{number}.nii.gz", lesion((0, 3)))
        save(tmp_path / "bad" / f"{number}.nii.gz", lesion((0, 1 if number % 2 else 0)))
    (tmp_path / "bad" / "3.nii.gz").write_bytes(b"broken")
    for name in ("good", "bad"):
        evaluate(tmp_path / name, tmp_path / "gt", tmp_path / "scores" / name, figures=False)
    scores = tmp_path / "scores"
    told = command("compare", scores / "good", scores / "bad", "--out", tmp_path / "out", "--reference", "good")
    assert "bad compared with good, patients: 7" in told
    assert "…" not in told  # nothing is truncated at the usual width
    row = json.loads((tmp_path / "out" / "compare.json").read_text())["metrics"]["dice"]["bad"]
    assert row["pairs"] == 6  # without the broken one
    assert row["mean"] == pytest.approx((4 * 2 / 5 + 2 * 4 / 6) / 6)
