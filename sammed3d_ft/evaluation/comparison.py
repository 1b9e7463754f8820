"""Compares evaluations of several predictions against the same ground truth, patient by patient."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sammed3d_ft import __version__
from sammed3d_ft.dataset.manifest import listing, read_json
from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.metrics import METRICS
from sammed3d_ft.evaluation.paired import bonferroni, holm, paired_test
from sammed3d_ft.files import without_nan, write_whole

_MUST_AGREE = ("connectivity", "foreground", "instances")
_TESTABLE_FROM = 6  # pairs; with fewer, no difference can reach p < 0.05


@dataclass(frozen=True)
class Evaluated:
    """An evaluation as read from its folder."""

    name: str
    folder: Path
    summary: dict[str, Any]
    patients: dict[str, str]
    """By case ID."""
    values: dict[str, dict[str, float]]
    """By metric and case ID; NaN where not defined, and in every metric of a failed case."""


def read_evaluations(folders: Sequence[Path]) -> list[Evaluated]:
    """Read folders written by `write_report`, and check that they can be compared.

    Each evaluation is named after its folder, with as many parent folders as needed to make the names unique.

    Raises:
        InputError: a folder without an evaluation; evaluations that differ in cases, in ground truth or PET files (by
            their hashes), or in rules; every difference is listed.
    """
    if len(folders) < 2:
        raise InputError(f"{len(folders)} evaluation to compare: give at least two folders")
    read = [_read(folder, name) for folder, name in zip(folders, _names(folders), strict=True)]
    problems = [problem for other in read[1:] for problem in _differences(read[0], other)]
    if problems:
        raise InputError(
            listing(problems, "difference", "differences") + "; evaluations can only be compared if they share ground "
            "truth and rules: evaluate again"
        )
    return read


def compare(evaluations: Sequence[Evaluated], reference: str) -> dict[str, Any]:
    """Paired differences to the reference for every metric, with the patient as the unit.

    A patient's value is the mean over the cases where both evaluations define the metric.

    Args:
        evaluations: two or more, see `read_evaluations`.
        reference: the name of one of them.

    Returns:
        The content of compare.json: by metric and evaluation ``pairs``, ``mean``, ``reference_mean``,
        ``hodges_lehmann`` with its 95 % interval, ``p`` (Wilcoxon), and for headline metrics ``p_holm`` and
        ``p_bonferroni`` over all headline metrics and evaluations.

    Raises:
        InputError: no evaluation of that name.
    """
    named = {evaluation.name: evaluation for evaluation in evaluations}
    if reference not in named:
        raise InputError(f"--reference {reference}: expected one of {', '.join(named)}")
    base = named[reference]
    others = [evaluation for evaluation in evaluations if evaluation.name != reference]
    metrics = {
        metric: {other.name: _paired(other, base, metric) for other in others}
        for metric in base.values
        if not metric.startswith("truth_")
    }
    headline = [metric for metric in metrics if METRICS[metric].headline]
    family = [metrics[metric][other.name] for metric in headline for other in others]
    p_values = [row["p"] for row in family]
    for column, correct in (("p_holm", holm), ("p_bonferroni", bonferroni)):
        for row, p in zip(family, correct(p_values), strict=True):
            row[column] = p
    patients = len(set(base.patients.values()))
    tests = sum(not math.isnan(p) for p in p_values)
    content = {
        "reference": reference,
        "evaluations": {
            evaluation.name: {
                "folder": str(evaluation.folder),
                "pred": evaluation.summary["configuration"].get("pred"),
                "versions": evaluation.summary["versions"],
                "failed": evaluation.summary["cases"]["failed"],
            }
            for evaluation in evaluations
        },
        "patients": patients,
        "cases": len(base.patients),
        "headline": headline,
        "metrics": metrics,
        "conventions": {metric: base.summary["conventions"][metric] for metric in metrics},
        "statistics": _statistics(patients, tests),
        "versions": {"sammed3d-ft": __version__, "numpy": np.__version__},
    }
    return without_nan(content)


def write_comparison(content: Mapping[str, Any], out: Path) -> None:
    """Write compare.json and compare.md.

    Raises:
        InputError: the folder cannot be written to.
    """
    write_whole(out / "compare.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    write_whole(out / "compare.md", as_markdown(content))


def as_markdown(content: Mapping[str, Any]) -> str:
    """A table of the headline metrics, a table of all other metrics, then the definitions."""
    reference, metrics = content["reference"], content["metrics"]
    lines = [
        f"# Compared with {reference}",
        "",
        f"Cases: {content['cases']}, patients: {content['patients']}. {content['statistics']}.",
        "",
    ]
    for title, chosen, corrected in (
        ("Headline metrics", content["headline"], True),
        ("Other metrics (p not corrected)", [m for m in metrics if m not in content["headline"]], False),
    ):
        names = ["metric", "evaluation", "pairs", "mean", f"mean of {reference}", "difference", "95 % CI", "p"]
        names += ["p (Holm)"] if corrected else []
        lines += [f"## {title}", "", f"| {' | '.join(names)} |", f"|{'---|' * len(names)}"]
        for metric in chosen:
            for name, row in metrics[metric].items():
                cells = [metric, name, str(row["pairs"]), _text(row["mean"]), _text(row["reference_mean"])]
                cells += [_text(row["hodges_lehmann"]), _interval(row), _text(row["p"])]
                cells += [_text(row["p_holm"])] if corrected else []
                lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
        lines.append("")
    for name, of in content["evaluations"].items():
        lines.append(f"- {name}: `{of['folder']}`, predictions `{of['pred']}`, {len(of['failed'])} failed")
    lines += ["", "## Definitions", ""]
    lines += [f"- `{metric}`: {content['conventions'][metric]}" for metric in content["headline"]]
    return "\n".join(lines) + "\n"


def _statistics(patients: int, tests: int) -> str:
    text = (
        "The patient is the unit: a patient's value is the mean over the cases where both evaluations define the "
        "metric, and patients without such a case are excluded. Difference: Hodges-Lehmann estimate (pseudo-median of "
        "the paired differences, evaluation minus reference) with 95 % CI. p: two-sided Wilcoxon signed-rank test, "
        "zero differences split"
    )
    if tests:
        text += f". Holm's correction over {tests} tests: all headline metrics and evaluations together"
    if patients < 2:
        text = "There is only one patient, so no test is possible and the means are this patient's values. " + text
    elif patients < _TESTABLE_FROM:
        text = f"With {patients} patients, no difference can reach p < 0.05, however large. " + text
    return text


def _read(folder: Path, name: str) -> Evaluated:
    for file in ("summary.json", "cases.csv"):
        if not (folder / file).is_file():
            raise InputError(f"{folder}: {file} is missing; give a folder written by `sammed3d-ft evaluate --out`")
    summary = read_json(folder / "summary.json")
    with (folder / "cases.csv").open(newline="", encoding="utf-8") as text:
        rows = list(csv.DictReader(text))
    try:
        columns = [metric for metric in METRICS if metric in rows[0]]
        values = {metric: {row["case"]: float(row[metric] or "nan") for row in rows} for metric in columns}
        patients = {row["case"]: row["patient"] for row in rows}
        found = Evaluated(name, folder, summary, patients, values)
        _ = summary["configuration"], summary["conventions"], summary["files"], summary["versions"], summary["cases"]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(f"{folder}: not an evaluation of this version ({error!r}); evaluate again") from error
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    parts = [folder.resolve().parts for folder in folders]
    if len(set(parts)) < len(parts):
        raise InputError(f"a folder is given twice: {', '.join(map(str, folders))}")
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def _differences(first: Evaluated, other: Evaluated) -> list[str]:
    pair = f"{first.name} and {other.name}"
    problems = []
    for evaluation, against in ((first, other), (other, first)):
        alone = sorted(evaluation.patients.keys() - against.patients.keys())
        problems += [f"case {case} is in {evaluation.name} but not in {against.name}" for case in alone]
    for case in sorted(first.patients.keys() & other.patients.keys()):
        files = [evaluation.summary["files"][case] for evaluation in (first, other)]
        for what in ("truth", "pet"):
            hashes = [of.get(what, {}).get("sha256") for of in files]
            if None not in hashes and hashes[0] != hashes[1]:
                problems.append(f"case {case}: {pair} have different {what} files")
        if first.patients[case] != other.patients[case]:
            problems.append(f"case {case} is assigned to patients {first.patients[case]} and {other.patients[case]}")
    for key in _MUST_AGREE:
        settings = [evaluation.summary["configuration"].get(key) for evaluation in (first, other)]
        if settings[0] != settings[1]:
            problems.append(f"{pair} differ in {key} ({settings[0]} and {settings[1]})")
    # The format number, not the wording of the definitions; 1 for evaluations from before it was recorded.
    formats = [evaluation.summary["versions"].get("evaluation_format", 1) for evaluation in (first, other)]
    if formats[0] != formats[1]:
        problems.append(f"{pair} define metrics differently (evaluation format {formats[0]} and {formats[1]})")
    return problems


def _paired(other: Evaluated, base: Evaluated, metric: str) -> dict[str, Any]:
    """One metric of one evaluation against the reference."""
    by_patient: dict[str, list[tuple[float, float]]] = {}
    for case, patient in base.patients.items():
        pair = (other.values[metric][case], base.values[metric][case])
        if not (math.isnan(pair[0]) or math.isnan(pair[1])):
            by_patient.setdefault(patient, []).append(pair)
    means = np.array([np.mean(pairs, axis=0) for pairs in by_patient.values()]).reshape(-1, 2)
    mine, theirs = means.T
    test = paired_test(mine.tolist(), theirs.tolist())
    return {
        "pairs": test.n,
        "mean": float(mine.mean()) if test.n else math.nan,
        "reference_mean": float(theirs.mean()) if test.n else math.nan,
        "mean_difference": test.mean_difference,
        "hodges_lehmann": test.hodges_lehmann,
        "ci_low": test.hl_low,
        "ci_high": test.hl_high,
        "p": test.p if test.n > 1 else math.nan,  # one pair allows no test
    }


def _interval(row: Mapping[str, Any]) -> str:
    return "n/a" if row["ci_low"] is None else f"{_text(row['ci_low'])} to {_text(row['ci_high'])}"


def _text(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
