"""Collects the scores of all runs by method, level, seed and case, and averages them per patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sammed3d_ft.data.manifest import Case
from sammed3d_ft.evaluation.click_curves import click_curve_area
from sammed3d_ft.evaluation.metrics import METRICS
from sammed3d_ft.lesions.size import SIZE_CLASSES
from sammed3d_ft.recipes.benchmark.config import TMTV_ERROR, BenchmarkConfig
from sammed3d_ft.recipes.benchmark.folds import patient_of
from sammed3d_ft.recipes.benchmark.scoring import read_csv
from sammed3d_ft.recipes.benchmark.units import levels_of, scores_folder, units_of

AREA = "auc_"
"""Prefix of a metric's area under the curve over the steps of the autoPET IV protocol."""

Level = int | None
"""Clicks per lesion (protocol `autopet4`: click pairs per scan); None for masks made without clicks."""


@dataclass(frozen=True)
class LesionScores:
    """The ground-truth lesions of a method at one level, limited to cases scored with every seed."""

    patients: list[str]
    size_classes: list[str]
    found: list[float]
    """1 if matched; mean over seeds."""
    dice: list[float]
    """With the match, 0 if missed; mean over seeds."""

    def of_class(self, name: str) -> list[int]:
        return [index for index, size in enumerate(self.size_classes) if size == name]


@dataclass
class Scores:
    """All scores of a benchmark.

    Arrays are (seeds, cases). Values are NaN where a metric is not defined, and where there is no result; ``failed`` is
    true only in the latter case.
    """

    cases: Sequence[Case]
    values: dict[tuple[str, Level], dict[str, np.ndarray]] = field(default_factory=dict)
    failed: dict[tuple[str, Level], np.ndarray] = field(default_factory=dict)
    lesions: dict[tuple[str, Level], LesionScores] = field(default_factory=dict)
    lines: list[dict[str, object]] = field(default_factory=list)
    """Every scored case of every run, for ``cases.csv``."""

    @property
    def patients(self) -> list[str]:
        """All patients, sorted; the unit of every statistic."""
        return sorted({patient_of(case) for case in self.cases})

    def levels(self, row: str) -> list[Level]:
        """The levels at which a method has masks."""
        return [level for name, level in self.values if name == row]

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
        for level in levels_of(config, name):
            _read(config, folds, scores, name, level)
    if config.protocol == "autopet4":
        _add_areas(config, scores)
    return scores


def _read(config: BenchmarkConfig, folds: dict[str, Path], scores: Scores, name: str, level: Level) -> None:
    place = {case.id: number for number, case in enumerate(scores.cases)}
    seeds = config.seeds_of(name)
    shape = (len(seeds), len(place))
    columns = [*METRICS, TMTV_ERROR]
    values = {metric: np.full(shape, np.nan) for metric in columns}
    failed = np.ones(shape, bool)
    lesions: dict[tuple[str, str], list[tuple[str, float, float]]] = {}
    for unit in units_of(config, name, folds):
        folder, seed = scores_folder(config, unit, level), seeds.index(unit.seed)
        for line in read_csv(folder / "cases.csv"):
            if line["case"] not in place:
                continue
            at = seed, place[line["case"]]
            failed[at] = bool(line["error"])
            for metric in METRICS:
                values[metric][at] = float(line.get(metric) or "nan")
            error_ml = float(abs(values["pred_volume_ml"][at] - values["truth_volume_ml"][at]))
            values[TMTV_ERROR][at] = error_ml
            shown = "" if level is None else level
            head = {"row": name, "clicks": shown, "fold": unit.fold, "seed": unit.seed}
            scores.lines.append({**head, **line, TMTV_ERROR: "" if error_ml != error_ml else error_ml})
        for line in read_csv(folder / "lesions.csv"):
            if line["source"] == "truth" and line["case"] in place:
                hit = float(line["fate"] == "matched")
                key = line["case"], line["lesion_id"]
                lesions.setdefault(key, []).append((line["size_class"], hit, float(line["dice"])))
    scores.values[name, level], scores.failed[name, level] = values, failed
    whole = {key: found for key, found in lesions.items() if len(found) == len(seeds)}
    scores.lesions[name, level] = LesionScores(
        [patient_of(scores.cases[place[case]]) for case, _ in whole],
        [found[0][0] for found in whole.values()],
        [float(np.mean([hit for _, hit, _ in found])) for found in whole.values()],
        [float(np.mean([dice for _, _, dice in found])) for found in whole.values()],
    )
    assert set(scores.lesions[name, level].size_classes) <= set(SIZE_CLASSES)


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
            areas = [click_curve_area(steps, values, normalised=False) for values in flat.tolist()]
            scores.values[name, level][f"{AREA}{metric}"] = np.reshape(areas, curve.shape[1:])
