"""Collects the scores of all runs by method, level, seed and case, and averages them per patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sammed3d_ft.benchmark.config import METRICS, BenchmarkConfig
from sammed3d_ft.benchmark.folds import patient_of
from sammed3d_ft.benchmark.scoring import scores_in
from sammed3d_ft.benchmark.units import accumulates, levels_of, scores_folder, units_of
from sammed3d_ft.dataset.manifest import Case
from sammed3d_ft.evaluation.click_curves import click_curve_area
from sammed3d_ft.evaluation.results import LesionResult
from sammed3d_ft.lesions.table import SizeClass

AREA = "auc_"
"""Prefix of a metric's area under the curve over the steps of the autoPET IV protocol."""

Level = int | None
"""Clicks per lesion (protocol `autopet4`: click pairs per scan); None for masks made without clicks."""


@dataclass(frozen=True)
class ScoredLesion:
    """A ground-truth lesion of a case that was scored with every seed."""

    patient: str
    size_class: SizeClass
    found: float
    """1 if matched; mean over seeds."""
    dice: float
    """With the match, 0 if missed; mean over seeds."""


@dataclass
class Scores:
    """All scores of a benchmark.

    Arrays are (seeds, cases). Values are NaN where a metric is not defined, and where there is no result; ``failed`` is
    true only in the latter case.
    """

    cases: Sequence[Case]
    values: dict[tuple[str, Level], dict[str, np.ndarray]] = field(default_factory=dict)
    failed: dict[tuple[str, Level], np.ndarray] = field(default_factory=dict)
    lesions: dict[tuple[str, Level], list[ScoredLesion]] = field(default_factory=dict)
    accumulate: dict[str, bool | None] = field(default_factory=dict)
    """By method, see `accumulates`."""
    lines: list[dict[str, object]] = field(default_factory=list)
    """Every scored case of every run, for ``cases.csv``."""

    @property
    def patients(self) -> list[str]:
        """All patients, sorted; the unit of every statistic."""
        return sorted({patient_of(case) for case in self.cases})

    def by_patient(self, row: str, level: Level, metric: str) -> list[float]:
        """A metric's value for each of `patients`, averaged over seeds, then over the patient's scans.

        NaN unless it is defined with every seed on every scan where any method defines it, so that all methods are
        averaged over the same scans and all their seeds.
        """
        own = self.values[row, level][metric].mean(axis=0)
        defined = self._defined_anywhere(metric)
        of = np.array([patient_of(case) for case in self.cases])
        chosen = [(of == patient) & defined for patient in self.patients]
        return [float(own[scans].mean()) if scans.any() else float("nan") for scans in chosen]

    def mode(self, row: str, level: Level) -> str:
        """``true``: the decoder is given all clicks so far; ``false``: only the newest; empty: no such choice."""
        accumulate = None if level is None else self.accumulate[row]
        return "" if accumulate is None else str(accumulate).lower()

    def failed_patients(self, row: str, level: Level) -> int:
        """Number of patients with a scan for which a run, a mask or its scoring is missing."""
        missing: list[int] = np.flatnonzero(self.failed[row, level].any(axis=0)).tolist()
        return len({patient_of(self.cases[number]) for number in missing})

    def _defined_anywhere(self, metric: str) -> np.ndarray:
        """(cases,) whether the metric has a value for any method, level and seed."""
        known = [of[metric] for of in self.values.values() if metric in of]
        return np.any([~np.isnan(values).all(axis=0) for values in known], axis=0)


def read_scores(config: BenchmarkConfig, folds: dict[str, Path], cases: Sequence[Case]) -> Scores:
    """Read all scores so far; missing ones count as failed."""
    scores = Scores(cases)
    for name in config.rows:
        scores.accumulate[name] = accumulates(config, name)
        for level in levels_of(config, name):
            _read(config, folds, scores, name, level)
    if config.protocol == "autopet4":
        _add_areas(config, scores)
    return scores


def _read(config: BenchmarkConfig, folds: dict[str, Path], scores: Scores, name: str, level: Level) -> None:
    place = {case.id: number for number, case in enumerate(scores.cases)}
    seeds = config.seeds_of(name)
    shape = (len(seeds), len(place))
    values = {metric: np.full(shape, np.nan) for metric in METRICS}
    failed = np.ones(shape, bool)
    lesions: dict[tuple[str, int], list[LesionResult]] = {}
    for unit in units_of(config, name, folds):
        seed = seeds.index(unit.seed)
        for case, found in scores_in(scores_folder(config, unit, level)).items():
            if case not in place:
                continue
            line: dict[str, object] = {"row": name, "clicks": level, "fold": unit.fold, "seed": unit.seed, "case": case}
            line["accumulate_clicks"] = scores.mode(name, level)
            line["patient"] = patient_of(scores.cases[place[case]])
            if isinstance(found, str):
                scores.lines.append({**line, "error": found})
                continue
            failed[seed, place[case]] = False
            of = {metric: definition.of(found) for metric, definition in METRICS.items()}
            scores.lines.append(line | of)
            for metric, value in of.items():
                values[metric][seed, place[case]] = value
            for lesion in found.lesions:
                if lesion.source == "truth":
                    lesions.setdefault((case, lesion.lesion.lesion_id), []).append(lesion)
    scores.values[name, level], scores.failed[name, level] = values, failed
    scores.lesions[name, level] = [
        ScoredLesion(
            patient_of(scores.cases[place[case]]),
            found[0].lesion.size_class,
            float(np.mean([lesion.fate == "matched" for lesion in found])),
            float(np.mean([lesion.dice for lesion in found])),
        )
        for (case, _), found in lesions.items()
        if len(found) == len(seeds)
    ]


def _add_areas(config: BenchmarkConfig, scores: Scores) -> None:
    """Add the area under each shown metric over the protocol's steps, stored with the metrics of the last step.

    A method without clicks has the same value at every step.
    """
    steps = config.click_counts
    for name, level in list(scores.values):
        if level not in (None, steps[-1]):
            continue
        for metric in config.shown_metrics:
            curve = np.stack([scores.values[name, None if level is None else k][metric] for k in steps])
            flat = curve.reshape(len(steps), -1).T
            areas = [click_curve_area(steps, values) for values in flat.tolist()]
            scores.values[name, level][f"{AREA}{metric}"] = np.reshape(areas, curve.shape[1:])
