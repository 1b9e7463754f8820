"""Agreement of a quantity between ground truth and prediction: concordance, limits of agreement, equivalence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from sammed3d_ft.errors import InputError

EQUIVALENCE_RATIOS = (0.8, 1.25)
"""Equivalence bounds of the mean ratio: symmetric on the log scale, since 1.25 = 1 / 0.8."""

QUANTITIES = {
    "suv_max": "SUVmax",
    "suv_mean": "SUVmean",
    "suv_peak": "SUVpeak",
    "volume_ml": "TMTV (ml)",
    "tla": "TLA (SUV ml)",
    "dmax_cm": "Dmax (cm)",
    "lesions": "lesion count",
}
"""Labels of the quantities compared, keyed by column name without ``truth_`` or ``pred_``."""

CONVENTIONS = {
    "unit": "the patient: a quantity is averaged over the patient's cases where ground truth and prediction define it",
    "ccc": "Lin's concordance correlation coefficient, moments with 1/n; 95 % interval by the z-transform "
    "(Lin 1989, variance as corrected in 2000); n/a without variance, the interval also below three patients",
    "bland_altman": "prediction minus ground truth: mean (bias) and bias +- 1.96 SD (limits of agreement)",
    "log_ratio": "the same for ln(prediction / ground truth), reported as ratios; patients with a zero in either mask "
    "are excluded (n of ratio counts the others)",
    "tost": "two one-sided paired t tests on the logarithms, for a mean ratio within "
    f"{EQUIVALENCE_RATIOS[0]:g} to {EQUIVALENCE_RATIOS[1]:g}; p is the larger of the two, and is below 0.05 exactly "
    "when the 90 % interval of the ratio lies within these bounds",
}
_NAN = float("nan")


@dataclass(frozen=True)
class Concordance:
    """Lin's coefficient with its 95 % confidence interval; NaN where not defined."""

    ccc: float
    ci_low: float
    ci_high: float


@dataclass(frozen=True)
class LimitsOfAgreement:
    """Bland-Altman bias and limits; NaN where not defined (the limits need two pairs)."""

    bias: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class Equivalence:
    """Two one-sided tests; NaN below two pairs."""

    p: float
    ratio_low: float
    """90 % confidence interval of the mean ratio."""
    ratio_high: float


@dataclass(frozen=True)
class Agreement:
    """One quantity in ground truth and prediction over a cohort."""

    n: int
    """Patients for whom both masks define the quantity."""
    not_defined: int
    """All other patients."""
    truth_mean: float
    pred_mean: float
    concordance: Concordance
    difference: LimitsOfAgreement
    """Of prediction minus ground truth, in the quantity's unit."""
    n_ratio: int
    """Patients with a positive quantity in both."""
    ratio: LimitsOfAgreement
    """Of prediction / ground truth: bias and limits are ratios, ``sd`` is that of the logarithms."""
    equivalence: Equivalence
    """Of the ratios."""


def agreement(truth: Sequence[float], pred: Sequence[float], patients: Sequence[str]) -> Agreement:
    """Agreement of one quantity over cases; `CONVENTIONS` defines each number.

    Args:
        truth: (n,) the quantity in each case's ground truth, NaN where not defined.
        pred: (n,) the same in its predicted mask.
        patients: (n,) the patient of each case.
    """
    x, y = patient_means(truth, pred, patients)
    positive = (x > 0) & (y > 0)
    log_ratio = np.log(y[positive]) - np.log(x[positive])
    of_logs = limits_of_agreement(log_ratio)
    return Agreement(
        n=len(x),
        not_defined=len(set(patients)) - len(x),
        truth_mean=float(x.mean()) if len(x) else _NAN,
        pred_mean=float(y.mean()) if len(y) else _NAN,
        concordance=concordance(x, y),
        difference=limits_of_agreement(y - x),
        n_ratio=len(log_ratio),
        ratio=LimitsOfAgreement(math.exp(of_logs.bias), of_logs.sd, math.exp(of_logs.low), math.exp(of_logs.high)),
        equivalence=equivalence(log_ratio),
    )


def patient_means(
    truth: Sequence[float], pred: Sequence[float], patients: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Patient means of ground truth and prediction, each (k,), over the cases where both are defined.

    The k patients with at least one such case come in sorted order.
    """
    if not len(truth) == len(pred) == len(patients):
        raise InputError(f"agreement: got {len(truth)} and {len(pred)} values for {len(patients)} cases")
    x, y = np.asarray(truth, np.float64), np.asarray(pred, np.float64)
    both = ~(np.isnan(x) | np.isnan(y))
    _, of = np.unique(np.asarray(patients, dtype=str)[both], return_inverse=True)
    cases = np.bincount(of)
    return np.bincount(of, x[both]) / cases, np.bincount(of, y[both]) / cases


def concordance(x: np.ndarray, y: np.ndarray) -> Concordance:
    """Lin's concordance correlation coefficient (Biometrics 1989;45:255, corrected 2000;56:324).

    Args:
        x, y: (n,) pairs without NaN.
    """
    n = len(x)
    spread = float(x.var() + y.var() + (x.mean() - y.mean()) ** 2) if n > 1 else 0.0
    if spread == 0:
        return Concordance(_NAN, _NAN, _NAN)
    covariance = float(((x - x.mean()) * (y - y.mean())).mean())
    ccc = 2 * covariance / spread
    sd_product = float(x.std() * y.std())
    if n < 3 or covariance == 0 or abs(ccc) > 1 - 1e-12:
        return Concordance(ccc, _NAN, _NAN)
    r, u2 = covariance / sd_product, float(x.mean() - y.mean()) ** 2 / sd_product
    left = 1 - ccc**2
    variance = (
        (1 - r**2) * ccc**2 / (left * r**2)
        + 2 * ccc**3 * (1 - ccc) * u2 / (r * left**2)
        - ccc**4 * u2**2 / (2 * r**2 * left**2)
    ) / (n - 2)
    half = norm.ppf(0.975) * math.sqrt(max(variance, 0.0))
    z = math.atanh(ccc)
    return Concordance(ccc, math.tanh(z - half), math.tanh(z + half))


def limits_of_agreement(differences: np.ndarray) -> LimitsOfAgreement:
    """Mean difference and mean +- 1.96 SD (Bland and Altman, Lancet 1986;1:307).

    Args:
        differences: (n,) of pairs, without NaN.
    """
    if len(differences) == 0:
        return LimitsOfAgreement(_NAN, _NAN, _NAN, _NAN)
    bias = float(differences.mean())
    sd = float(differences.std(ddof=1)) if len(differences) > 1 else _NAN
    half = norm.ppf(0.975) * sd
    return LimitsOfAgreement(bias, sd, bias - half, bias + half)


def equivalence(log_ratios: np.ndarray) -> Equivalence:
    """Two one-sided t tests of the mean log ratio against `EQUIVALENCE_RATIOS` (Schuirmann 1987).

    Args:
        log_ratios: (n,) logarithms of the pairs' ratios.
    """
    n = len(log_ratios)
    if n < 2:
        return Equivalence(_NAN, _NAN, _NAN)
    mean, error = float(log_ratios.mean()), float(log_ratios.std(ddof=1)) / math.sqrt(n)
    low, high = (math.log(bound) for bound in EQUIVALENCE_RATIOS)
    half = t.ppf(0.95, n - 1) * error
    if error == 0:  # all ratios are equal, so the mean ratio is known exactly
        p = 0.0 if low < mean < high else 1.0
    else:
        p = float(max(t.sf((mean - low) / error, n - 1), t.cdf((mean - high) / error, n - 1)))
    return Equivalence(p, math.exp(mean - half), math.exp(mean + half))
