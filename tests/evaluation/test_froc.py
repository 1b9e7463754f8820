"""FROC, average precision and AUROC against picai_eval as recorded, and by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sammed3d_ft.evaluation import evaluate_case
from sammed3d_ft.evaluation.froc import ScoredLesions, average_precision, case_auroc, froc
from sammed3d_ft.evaluation.results import CaseResult
from tests.support.ellipsoids import painted

PICAI: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "picai.json").read_text())
"""Recorded by scripts/make_panoptica_golden.py with picai_eval 1.4.13."""


@pytest.fixture(scope="module")
def results() -> list[CaseResult]:
    """The recorded cases by our evaluator, with picai_eval's connectivity."""
    found = []
    for case in PICAI["cases"]:
        truth, confidence = (painted(PICAI["shape"], case[name]) for name in ("truth", "pred"))
        found.append(
            evaluate_case(truth > 0, confidence > 0, PICAI["spacing_mm"], connectivity=26, probability=confidence)
        )
    return found


def scored(results: list[CaseResult]) -> list[ScoredLesions]:
    return [result.scored for result in results if result.scored is not None]


def test_lesions_of_each_case_equal_picai_eval(results: list[CaseResult]) -> None:
    ignored = 0
    for result, case in zip(results, PICAI["cases"], strict=True):
        own = result.scored
        assert own is not None
        truths = [row for row in case["lesions"] if row[0]]
        assert sorted(own.hits) == [confidence for _, confidence, _ in truths if confidence > 0]
        assert sorted(own.false_alarms) == [confidence for lesion, confidence, _ in case["lesions"] if not lesion]
        assert (own.truths, own.case_confidence) == (len(truths), case["confidence"])
        ious = sorted(row.iou for row in result.lesions if row.fate == "matched")
        assert ious == pytest.approx(sorted(iou for _, _, iou in truths if iou > 0), abs=1e-6)
        ignored += own.ignored
    assert ignored > 0  # or the recorded cases would not show how duplicates count


def test_curve_and_areas_equal_picai_eval(results: list[CaseResult]) -> None:
    curve = froc(scored(results))
    truths = sum(result.truth.lesions for result in results)
    np.testing.assert_array_equal(curve.thresholds, PICAI["thresholds"])
    np.testing.assert_allclose(curve.sensitivity * truths, PICAI["true_positives"], atol=1e-9)
    np.testing.assert_allclose(curve.false_alarms_per_case * len(results), PICAI["false_positives"], atol=1e-9)
    assert average_precision(scored(results)) == pytest.approx(PICAI["average_precision"], abs=1e-12)
    assert case_auroc(scored(results)) == pytest.approx(PICAI["auroc"], abs=1e-12)


def case(hits: tuple[float, ...], false_alarms: tuple[float, ...], truths: int) -> ScoredLesions:
    return ScoredLesions(hits, false_alarms, 0, truths, max((*hits, *false_alarms), default=0.0))


def test_by_hand() -> None:
    # Falling: hit 0.9; hit and false alarm 0.5 together; false alarm 0.4; hit 0.2. Of 4 lesions one is never found.
    cases = [case((0.9, 0.2), (0.5,), 3), case((0.5,), (), 1), case((), (0.4,), 0), case((), (), 0)]
    curve = froc(cases)
    assert curve.thresholds.tolist() == [0.9, 0.5, 0.4, 0.2]
    assert curve.sensitivity.tolist() == [0.25, 0.5, 0.5, 0.75]
    assert curve.false_alarms_per_case.tolist() == [0, 0.25, 0.5, 0.5]
    assert [curve.sensitivity_at(rate) for rate in (0, 0.25, 0.4, 8)] == [0.25, 0.5, 0.5, 0.75]
    assert average_precision(cases) == pytest.approx(0.25 * 1 + 0.25 * 2 / 3 + 0.25 * 3 / 5)
    assert case_auroc(cases) == 1.0
    assert case_auroc([*cases, case((), (0.5,), 0)]) == pytest.approx((2 + 2 + 1.5) / 6)


def test_edges() -> None:
    nothing_found = froc([case((), (), 2)])
    assert (len(nothing_found.thresholds), nothing_found.sensitivity_at(8)) == (0, 0.0)
    assert average_precision([case((), (), 2)]) == 0
    no_truth = [case((), (0.3,), 0)]
    assert math.isnan(average_precision(no_truth))
    assert math.isnan(case_auroc(no_truth))
    assert np.isnan(froc(no_truth).sensitivity).all()
    for cases in (no_truth, [case((), (), 0)]):
        assert all(math.isnan(froc(cases).sensitivity_at(rate)) for rate in (0, 8))  # n/a, never 0
    assert froc([case((0.5,), (0.9,), 1)]).sensitivity_at(0) == 0  # the first point already has a false alarm
