"""The HTML report: its content, and that it is self-contained."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sammed3d_ft.evaluation import html_report as page_module
from sammed3d_ft.evaluation.metrics import METRICS
from sammed3d_ft.files import without_nan
from sammed3d_ft.recipes.evaluate import run
from tests.support.cohort_files import lesion, save, write_cohort
from tests.support.parsed_page import parsed


def text_of(path: Path) -> str:
    html = path.read_text(encoding="utf-8")
    return re.sub(r"\s+", " ", re.sub(r"<style.*?</style>|<[^>]*>", " ", html, flags=re.DOTALL))


def test_page_holds_numbers_conventions_figures_and_failures(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path)
    save(cohort / "gt" / "d.nii.gz", lesion((0, 3)))
    save(cohort / "pred" / "d.nii.gz", lesion((0, 3)) * 2)
    for name in ("pet", "probability"):
        save(cohort / name / "d.nii.gz", np.ones((12, 4, 4), np.float32))
    arguments = (cohort / "pred", cohort / "gt", cohort / "out", cohort / "pet")
    summary = run(*arguments, probabilities=cohort / "probability", compat=("autopet",))
    page = cohort / "out" / "report.html"
    text = text_of(page)
    assert "Cases evaluated: 3; patients: 3; failed cases: 1." in text
    assert "not binary, it contains label 2" in text
    for metric in METRICS.values():
        if metric.headline:
            assert re.sub(r"\s+", " ", metric.convention).replace(">", "&gt;").replace("'", "&#x27;") in text
    assert "0.4444 0.5 0 0 0.6667" in text  # average precision, AUROC, sensitivity at 1/8, 1/4, 1/2 false positives
    assert "TMTV (ml) 3 3.333 2.333" in text
    assert "autopet_fpv_ml 0.3333" in text
    assert f"numpy {summary['versions']['numpy']}" in text
    # Detection, sizes, the quantities of more than one patient, and three cases.
    several = sum(of["n"] > 1 for of in summary["agreement"]["quantities"].values())
    images = [address for address in parsed(page).addresses if address.startswith("data:")]
    assert len(images) == 2 + several + 3
    assert not [address for address in parsed(page).addresses if not address.startswith(("data:", "#"))]


def test_the_worst_cases_are_shown_and_all_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "FIGURES_SHOWN", 2)
    cohort = write_cohort(tmp_path)
    run(cohort / "pred", cohort / "gt", cohort / "out")
    text = text_of(cohort / "out" / "report.html")
    assert "The 2 cases with the lowest Dice" in text
    shown = re.findall(r"(\w): Dice (\S+), ", text)
    assert shown == [("b", "0.500"), ("a", "1.000")]  # c has no Dice: it comes last


def test_page_of_nothing_but_failures_and_of_empty_masks(tmp_path: Path) -> None:
    save(tmp_path / "gt" / "a.nii.gz", lesion())
    save(tmp_path / "pred" / "a.nii.gz", lesion())
    run(tmp_path / "pred", tmp_path / "gt", tmp_path / "out")
    assert "Lesion-free cases" in text_of(tmp_path / "out" / "report.html")
    save(tmp_path / "pred" / "a.nii.gz", lesion((0, 3)) * 2)
    run(tmp_path / "pred", tmp_path / "gt", tmp_path / "out")
    assert "Cases evaluated: 0" in text_of(tmp_path / "out" / "report.html")


def test_json_has_no_nan() -> None:
    assert without_nan({"a": {"b": float("nan")}, "c": 1.5}) == {"a": {"b": None}, "c": 1.5}
