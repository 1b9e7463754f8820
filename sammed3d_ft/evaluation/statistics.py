"""Cohort statistics of the case metrics: mean, spread, and a bootstrap interval over patients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
_AT_ONCE = 1_000  # resamples drawn together: bounds memory to 1000 x patients


@dataclass(frozen=True)
class Summary:
    """One metric over a cohort; NaN where a number is not defined."""

    n: int
    """Cases where the metric is defined."""
    not_defined: int
    """Cases where it is n/a, excluded from all other numbers."""
    mean: float
    sd: float
    """With n - 1; NaN below two cases."""
    median: float
    q1: float
    q3: float
    """The interquartile range is q3 - q1; quartiles by linear interpolation."""
    ci_low: float
    ci_high: float
    """95 % percentile bootstrap interval of the mean over patients; NaN below two patients."""


def summarise(
    columns: Mapping[str, Sequence[float]],
    patients: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Summary]:
    """Statistics of each column over cases.

    Args:
        columns: by metric name, (n,) one value per case, NaN where it is not defined.
        patients: (n,) the patient of each case. Patients are resampled with replacement, each with all of their cases.
        resamples: number of bootstrap resamples; all metrics share the same ones.
        seed: random seed of the resampling.
    """
    names = list(columns)
    values = np.array([columns[name] for name in names], dtype=np.float64).reshape(len(names), len(patients)).T
    defined = ~np.isnan(values)
    # Sum and count of the defined cases per patient: a resample's mean is the ratio of their totals.
    _, patient_of_case = np.unique(np.asarray(patients, dtype=str), return_inverse=True)
    n_patients = int(patient_of_case.max(initial=-1)) + 1
    sums, counts = np.zeros((n_patients, len(names))), np.zeros((n_patients, len(names)))
    np.add.at(sums, patient_of_case, np.where(defined, values, 0.0))
    np.add.at(counts, patient_of_case, defined)
    means = _bootstrap_means(sums, counts, resamples, seed)

    summaries = {}
    for column, name in enumerate(names):
        known = values[defined[:, column], column]
        interval = means[~np.isnan(means[:, column]), column]
        enough = np.count_nonzero(counts[:, column]) >= 2
        low, high = np.percentile(interval, [2.5, 97.5]) if enough else (np.nan, np.nan)
        q1, median, q3 = np.percentile(known, [25, 50, 75]) if len(known) else (np.nan, np.nan, np.nan)
        summaries[name] = Summary(
            n=len(known),
            not_defined=len(patients) - len(known),
            mean=float(known.mean()) if len(known) else float("nan"),
            sd=float(known.std(ddof=1)) if len(known) > 1 else float("nan"),
            median=float(median),
            q1=float(q1),
            q3=float(q3),
            ci_low=float(low),
            ci_high=float(high),
        )
    return summaries


def _bootstrap_means(sums: np.ndarray, counts: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """(resamples, metrics) mean over the cases of the drawn patients; NaN if none of them defines the metric."""
    patients = len(sums)
    if patients == 0:
        return np.full((resamples, sums.shape[1]), np.nan)
    generator = np.random.default_rng(seed)
    means = []
    for start in range(0, resamples, _AT_ONCE):
        size = min(_AT_ONCE, resamples - start)
        drawn = generator.multinomial(patients, np.full(patients, 1 / patients), size).astype(np.float64)
        total, number = drawn @ sums, drawn @ counts
        means.append(np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0))
    return np.concatenate(means)
