"""Agreement against published examples, statsmodels and hand-computed values."""

from __future__ import annotations

import math

import numpy as np
import pytest
from statsmodels.stats.weightstats import DescrStatsW, ttost_paired

from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.agreement import (
    EQUIVALENCE_RATIOS,
    agreement,
    concordance,
    equivalence,
    limits_of_agreement,
    patient_means,
)

# Bland and Altman, Lancet 1986;1:307, table 1: peak expiratory flow (l/min), first reading of each meter.
WRIGHT = np.array([494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427.0])
MINI = np.array([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451.0])

# Data set "reps" of the R package SimplyAgree (cardiac output by two methods), its 18 complete pairs.
RV = np.array(
    [7.83, 7.42, 7.89, 7.12, 6.16, 7.26, 6.71, 4.75, 5.24, 4.86, 4.78, 6.05, 5.42, 4.21, 3.61, 3.72, 3.87, 3.92]
)
IC = np.array([6.57, 5.62, 6.9, 6.57, 4.06, 4.29, 4.26, 4.71, 5.5, 5.08, 5.02, 6.01, 5.67, 4.14, 4.2, 4.61, 4.68, 5.04])


def test_concordance_equals_a_published_example() -> None:
    """Vignette "Agreement Tests" of SimplyAgree: CCC 0.4791, 95 % interval 0.1276 to 0.7237; bias 0.4383."""
    found = concordance(RV, IC)
    assert (found.ccc, found.ci_low, found.ci_high) == (
        pytest.approx(0.4791, abs=5e-5),
        pytest.approx(0.1276, abs=5e-5),
        pytest.approx(0.7237, abs=5e-5),
    )
    assert limits_of_agreement(RV - IC).bias == pytest.approx(0.4383, abs=5e-5)


def test_limits_equal_the_published_example() -> None:
    """Bland and Altman 1986: mean difference -2.1, SD 38.8, and with 2 SD limits -79.7 and 75.5; with 1.96 here."""
    found = limits_of_agreement(WRIGHT - MINI)
    assert found.bias == pytest.approx(-2.1, abs=0.05)
    assert found.sd == pytest.approx(38.8, abs=0.05)
    assert found.bias - 2 * found.sd == pytest.approx(-79.7, abs=0.1)
    assert found.low == pytest.approx(found.bias - 1.959964 * found.sd)
    assert found.high == pytest.approx(found.bias + 1.959964 * found.sd)


def test_concordance_by_hand() -> None:
    """x 1 2 3, y 2 3 4: variances 2/3, covariance 2/3, means 1 apart: 2 * 2/3 / (4/3 + 1) = 4/7."""
    assert concordance(np.array([1.0, 2, 3]), np.array([2.0, 3, 4])).ccc == pytest.approx(4 / 7)
    equal = concordance(WRIGHT, WRIGHT)
    assert equal.ccc == 1
    assert math.isnan(equal.ci_low)
    flat = concordance(np.ones(5), np.ones(5))
    assert math.isnan(flat.ccc)
    assert concordance(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])).ccc == pytest.approx(-1)


@pytest.mark.parametrize("shift", [0.0, 0.05, -0.12, 0.4])
@pytest.mark.parametrize("n", [2, 3, 20])
def test_equivalence_equals_statsmodels(shift: float, n: int) -> None:
    rng = np.random.default_rng(n)
    truth = rng.gamma(2.0, 10.0, n) + 0.1
    pred = truth * np.exp(rng.normal(shift, 0.15, n))
    p, *_ = ttost_paired(pred, truth, *EQUIVALENCE_RATIOS, transform=np.log)
    found = equivalence(np.log(pred / truth))
    assert found.p == pytest.approx(float(p), rel=1e-9)
    ends = DescrStatsW(np.log(pred / truth)).tconfint_mean(alpha=0.1)
    assert [found.ratio_low, found.ratio_high] == pytest.approx(np.exp(ends).tolist(), rel=1e-9)
    inside = EQUIVALENCE_RATIOS[0] < found.ratio_low and found.ratio_high < EQUIVALENCE_RATIOS[1]
    assert inside == (found.p < 0.05)


def test_equal_ratios_leave_no_doubt() -> None:
    assert equivalence(np.zeros(4)).p == 0
    assert equivalence(np.full(4, math.log(2.0))).p == 1
    assert math.isnan(equivalence(np.zeros(1)).p)


def test_patients_are_the_unit_and_what_is_not_defined_is_counted() -> None:
    """Patient a has two scans, one of them without a prediction's SUV; b one; c none; d a volume of zero."""
    nan = float("nan")
    truth, pred = [10.0, 30.0, 8.0, 5.0, 0.0], [12.0, 32.0, nan, nan, 1.0]
    patients = ["a", "a", "a", "c", "d"]
    x, y = patient_means(truth, pred, patients)
    assert x.tolist() == [20, 0]
    assert y.tolist() == [22, 1]
    found = agreement(truth, pred, patients)
    assert (found.n, found.not_defined, found.n_ratio) == (2, 1, 1)
    assert (found.truth_mean, found.pred_mean) == (10, 11.5)
    assert found.difference.bias == 1.5
    assert found.ratio.bias == pytest.approx(1.1)
    assert math.isnan(found.ratio.low)
    with pytest.raises(InputError, match="2 and 1 values for 2 cases"):
        agreement([1.0, 2.0], [1.0], ["a", "b"])


def test_nothing_defined() -> None:
    found = agreement([float("nan")], [1.0], ["a"])
    assert (found.n, found.not_defined) == (0, 1)
    assert math.isnan(found.truth_mean)
    assert math.isnan(found.ratio.bias)
