"""Writes the tables of an evaluation: cases.csv, lesions.csv and summary.json."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sammed3d_ft.evaluation.agreement import CONVENTIONS, QUANTITIES, agreement
from sammed3d_ft.evaluation.compat import COMPAT
from sammed3d_ft.evaluation.froc import ScoredLesions, average_precision, case_auroc, froc
from sammed3d_ft.evaluation.kept_cases import EVALUATION_FORMAT, EVALUATION_PACKAGES, CaseEvaluation
from sammed3d_ft.evaluation.metrics import HEADLINE_IOU, IOU_THRESHOLDS, METRICS
from sammed3d_ft.evaluation.results import LESION_COLUMNS, CaseResult, Detection
from sammed3d_ft.evaluation.statistics import RESAMPLES, summarise
from sammed3d_ft.files import without_nan, write_csv, write_whole
from sammed3d_ft.lesions.table import SIZE_CLASSES
from sammed3d_ft.provenance import package_versions

BOOTSTRAP_SEED = 0
FROC_FALSE_ALARMS = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Mean false positives per case at which the FROC curve is read, as in LUNA16 (Setio et al., 2017)."""


def write_report(
    evaluations: Sequence[CaseEvaluation], out_dir: Path | None, configuration: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the three tables and return the content of summary.json. An empty cell or a null means n/a.

    With ``out_dir`` None nothing is written (for all processes but the first).

    - ``cases.csv``: a row per case; a failed case has only its ``error``. Columns of published rules come last.
    - ``lesions.csv``: a row per ground-truth lesion and per unmatched prediction.
    - ``summary.json``: statistics of each metric, pooled detection, lesion sizes, agreement of quantities, lesion-free
      cases, conventions, configuration, versions and file hashes; FROC if there are probabilities.

    Raises:
        InputError: the folder cannot be written to.
    """
    done = [(case, case.result) for case in evaluations if case.result is not None]
    case_rows = [
        {"case": case.paths.id, "patient": case.paths.patient, "error": case.error}
        | (case.result.as_row() if case.result else {})
        | case.compat
        for case in evaluations
    ]
    case_columns = ["case", "patient", "error", *METRICS, *_compat_columns(evaluations)]
    lesion_rows = [{"case": case.paths.id} | lesion.as_row() for case, result in done for lesion in result.lesions]
    summary = _summary(evaluations, configuration)
    if out_dir is None:
        return summary
    write_csv(out_dir / "cases.csv", case_columns, case_rows)
    write_csv(out_dir / "lesions.csv", ["case", *LESION_COLUMNS], lesion_rows)
    write_whole(out_dir / "summary.json", json.dumps(summary, indent=1, allow_nan=False) + "\n")
    return summary


def _summary(evaluations: Sequence[CaseEvaluation], configuration: Mapping[str, Any]) -> dict[str, Any]:
    results = [case.result for case in evaluations if case.result is not None]
    rows = [result.as_row() for result in results]
    patients = [case.paths.patient for case in evaluations if case.result is not None]
    statistics = summarise({name: [row[name] for row in rows] for name in METRICS}, patients, RESAMPLES, BOOTSTRAP_SEED)
    content: dict[str, Any] = {
        "cases": {
            "evaluated": len(results),
            "patients": len(set(patients)),
            "failed": {case.paths.id: case.error for case in evaluations if case.error},
        },
        "metrics": {name: asdict(summary) for name, summary in statistics.items()},
        "pooled_detection": {
            f"iou{threshold:g}": _pooled(result.detection[threshold] for result in results)
            for threshold in IOU_THRESHOLDS
        },
        "by_size": _by_size(results),
        "agreement": {
            "conventions": CONVENTIONS,
            "quantities": {
                name: asdict(
                    agreement([row[f"truth_{name}"] for row in rows], [row[f"pred_{name}"] for row in rows], patients)
                )
                for name in QUANTITIES
            },
        },
        "lesion_free": _lesion_free(results),
        "conventions": {name: f"{m.convention}; {m.empties}" for name, m in METRICS.items()},
        "statistics": (
            "n: cases where the metric is defined (n/a is excluded); 95 % CI of the mean: percentile bootstrap "
            f"over patients, {RESAMPLES} resamples, seed {BOOTSTRAP_SEED}"
        ),
        "configuration": dict(configuration),
        "versions": {**package_versions(*EVALUATION_PACKAGES), "evaluation_format": EVALUATION_FORMAT},
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "files": {
            case.paths.id: {
                name: {"path": str(path), "sha256": case.sha256.get(name)} for name, path in case.paths.files.items()
            }
            for case in evaluations
        },
    }
    scored = [result.scored for result in results if result.scored is not None]
    if results and len(scored) == len(results):
        content["froc"] = _froc(scored)
    compat = _compat(evaluations, patients)
    if compat:
        content["compat"] = compat
    return without_nan(content)


def _compat_columns(evaluations: Sequence[CaseEvaluation]) -> list[str]:
    """Columns of published rules, taken from the first case that has them: all cases have the same ones."""
    return next((list(case.compat) for case in evaluations if case.compat), [])


def _compat(evaluations: Sequence[CaseEvaluation], patients: Sequence[str]) -> dict[str, Any]:
    """For each published rule its convention, source, and the statistics of its columns over cases."""
    rows = [case.compat for case in evaluations if case.result is not None]
    columns = {name: [row[name] for row in rows] for name in _compat_columns(evaluations)}
    statistics = summarise(columns, patients, RESAMPLES, BOOTSTRAP_SEED)
    rules = {}
    for name, rule in COMPAT.items():
        prefix = name.replace("-", "_") + "_"
        mine = {column: asdict(of) for column, of in statistics.items() if column.startswith(prefix)}
        if mine:
            rules[name] = {"convention": rule.convention, "source": rule.source, "metrics": mine}
    return rules


def _froc(cases: Sequence[ScoredLesions]) -> dict[str, Any]:
    curve = froc(cases)
    return {
        "sensitivity_at_false_alarms_per_case": {
            f"{allowed:g}": curve.sensitivity_at(allowed) for allowed in FROC_FALSE_ALARMS
        },
        "average_precision": average_precision(cases),
        "case_auroc": case_auroc(cases),
        "convention": "confidence of a predicted lesion: its highest probability; matched one to one at IoU >= "
        f"{HEADLINE_IOU:g}; a prediction that reaches this IoU but whose lesion is matched to a better one is ignored",
    }


def _pooled(counts: Iterable[Detection]) -> dict[str, Any]:
    """Scores from the summed counts of all cases, lesion-free cases included."""
    total = sum(counts, start=Detection(0, 0, 0))
    return {name: getattr(total, name) for name in ("tp", "fp", "fn", "precision", "recall", "f1", "pq")}


def _by_size(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Ground-truth lesions of all cases by size class, at the headline IoU threshold."""
    classes: dict[str, Any] = {}
    for name in SIZE_CLASSES:
        rows = [row for result in results for row in result.lesions if row.lesion.size_class == name]
        truths = [row for row in rows if row.source == "truth"]
        detected = sum(row.fate == "matched" for row in truths)
        classes[name] = {
            "lesions": len(truths),
            "detected": detected,
            "recall": detected / len(truths) if truths else None,
            "lesion_dice": math.fsum(row.dice for row in truths) / len(truths) if truths else None,
            "unmatched_predictions": len(rows) - len(truths),
        }
    return classes


def _lesion_free(results: Sequence[CaseResult]) -> dict[str, Any]:
    """Cases without ground-truth lesions: most metrics are n/a, so only the predictions are scored."""
    free = [result for result in results if result.truth.lesions == 0]
    clean = sum(result.pred.lesions == 0 for result in free)
    return {
        "cases": len(free),
        "specificity": clean / len(free) if free else None,
        "mean_fpv_ml": math.fsum(result.fpv_ml for result in free) / len(free) if free else None,
        "false_positive_lesions": sum(result.detection[HEADLINE_IOU].fp for result in free),
    }
