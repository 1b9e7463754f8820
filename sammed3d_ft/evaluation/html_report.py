"""The HTML report of an evaluation: every number with its definition, and figures, in one file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sammed3d_ft.evaluation.agreement import CONVENTIONS, QUANTITIES, patient_means
from sammed3d_ft.evaluation.froc import froc
from sammed3d_ft.evaluation.kept_cases import CaseEvaluation, file_name
from sammed3d_ft.evaluation.metrics import HEADLINE_IOU, IOU_THRESHOLDS, METRICS
from sammed3d_ft.evaluation.results import CaseResult
from sammed3d_ft.figures.evaluation_plots import agreement_figure, detection_figure, size_figure
from sammed3d_ft.figures.html_page import Page

FIGURES_SHOWN = 20
"""Maximum number of cases with a figure in the report; the folder of figures contains all of them."""


def write_page(
    evaluations: Sequence[CaseEvaluation], summary: Mapping[str, Any], out: Path, figures: Path | None = None
) -> None:
    """Write the report.

    Args:
        evaluations: the cases.
        summary: what `write_report` returned for them.
        out: the HTML file.
        figures: folder with the cases' projections; the report shows those with the lowest Dice.

    Raises:
        InputError: the file cannot be written.
    """
    results = [case.result for case in evaluations if case.result is not None]
    cases = summary["cases"]
    page = Page("Evaluation of predicted lesion masks")
    page.paragraph(
        f"Cases evaluated: {cases['evaluated']}; patients: {cases['patients']}; failed cases: {len(cases['failed'])}. "
        f"{_lesion_rule(summary)} Undefined values (n/a) are excluded and counted, never taken as 0."
    )
    _failed(page, cases["failed"])
    _headline(page, summary)
    _detection(page, summary, results)
    _sizes(page, summary, results)
    _quantities(page, summary, results, [case.paths.patient for case in evaluations if case.result is not None])
    _lesion_free(page, summary["lesion_free"])
    _other_rules(page, summary.get("compat", {}))
    _cases(page, evaluations, figures)
    _all_metrics(page, summary)
    _made_by(page, summary)
    page.write(out)


def _lesion_rule(summary: Mapping[str, Any]) -> str:
    configuration = summary["configuration"]
    if configuration.get("instances"):
        return "Lesions: the labels of instance maps."
    return f"Lesions: connected components ({configuration['connectivity']}-connectivity), without a minimum size."


def _failed(page: Page, failed: Mapping[str, str]) -> None:
    if failed:
        page.heading("Failed cases")
        page.table(["case", "error"], list(failed.items()), "Excluded from all numbers below.")


def _headline(page: Page, summary: Mapping[str, Any]) -> None:
    page.heading("Headline metrics")
    rows = []
    for metric in METRICS.values():
        if metric.headline:
            of = summary["metrics"][metric.name]
            numbers = [of[name] for name in ("mean", "ci_low", "ci_high", "median", "n", "not_defined")]
            rows.append([metric.name, *numbers, f"{metric.convention}; {metric.empties}"])
    columns = ["metric", "mean", "95 % CI low", "95 % CI high", "median", "n", "n/a", "definition"]
    page.table(columns, rows, summary["statistics"])


def _detection(page: Page, summary: Mapping[str, Any], results: Sequence[CaseResult]) -> None:
    page.heading("Detection")
    pooled = summary["pooled_detection"]
    names = ["tp", "fp", "fn", "precision", "recall", "f1", "pq"]
    rows = [[f"{t:g}", *(pooled[f"iou{t:g}"][name] for name in names)] for t in IOU_THRESHOLDS]
    page.table(["IoU threshold", *names], rows, "Lesions of all cases pooled, matched one to one.")
    curve = None
    if "froc" in summary:
        of = summary["froc"]
        sensitivity = of["sensitivity_at_false_alarms_per_case"]
        page.table(
            ["average precision", "case AUROC", *(f"sensitivity at {allowed}" for allowed in sensitivity)],
            [[of["average_precision"], of["case_auroc"], *sensitivity.values()]],
            f"Sensitivity at the given number of false positives per case; {of['convention']}.",
        )
        points = froc([result.scored for result in results if result.scored is not None])
        if len(points.thresholds) and np.isfinite(points.sensitivity).all():
            # The curve starts at the origin, where no prediction is accepted.
            curve = ([0.0, *points.false_alarms_per_case], [0.0, *points.sensitivity])
    scores = {
        label: (IOU_THRESHOLDS, [_number(pooled[f"iou{t:g}"][name]) for t in IOU_THRESHOLDS])
        for name, label in (("f1", "F1"), ("precision", "precision"), ("recall", "recall"))
    }
    if not all(math.isnan(value) for _, values in scores.values() for value in values):
        page.figure(detection_figure(scores, curve), "Detection scores by IoU threshold of a match, lesions pooled.")


def _sizes(page: Page, summary: Mapping[str, Any], results: Sequence[CaseResult]) -> None:
    page.heading("Lesions by size")
    by_size = summary["by_size"]
    columns = ["lesions", "detected", "recall", "lesion_dice", "unmatched_predictions"]
    page.table(
        ["size class", "ground-truth lesions", "detected", "recall", "mean Dice (missed: 0)", "unmatched predictions"],
        [[name, *(of[column] for column in columns)] for name, of in by_size.items()],
        f"Matched at IoU >= {HEADLINE_IOU:g}. Small: below 1.5 ml; medium: 1.5 to below 4 ml; large: 4 ml and above.",
    )
    truths = [row for result in results for row in result.lesions if row.source == "truth"]
    if truths:
        dice = {name: [row.dice for row in truths if row.lesion.size_class == name] for name in by_size}
        page.figure(size_figure(dice), "Dice of each ground-truth lesion with its match, 0 if it has none.")


def _quantities(page: Page, summary: Mapping[str, Any], results: Sequence[CaseResult], patients: Sequence[str]) -> None:
    page.heading("Quantities per patient")
    rows, figures = [], []
    for name, label in QUANTITIES.items():
        of = summary["agreement"]["quantities"][name]
        if of["n"] == 0:
            continue
        difference, ratio, tost, ccc = of["difference"], of["ratio"], of["equivalence"], of["concordance"]
        rows.append(
            [
                *(label, of["n"], of["truth_mean"], of["pred_mean"]),
                *(ccc["ccc"], _span(ccc["ci_low"], ccc["ci_high"])),
                *(difference["bias"], _span(difference["low"], difference["high"])),
                *(ratio["bias"], _span(ratio["low"], ratio["high"])),
                *(of["n_ratio"], _span(tost["ratio_low"], tost["ratio_high"]), tost["p"]),
            ]
        )
        if of["n"] > 1:
            truth = [getattr(result.truth, name) for result in results]
            pred = [getattr(result.pred, name) for result in results]
            points = patient_means(truth, pred, patients)
            figures.append((agreement_figure(*points, label, _lines(difference), _lines(ratio)), label))
    columns = [
        *("quantity", "n", "ground truth", "prediction", "CCC", "95 % CI", "bias", "limits of agreement"),
        *("mean ratio", "limits of ratio", "n of ratio", "90 % CI of ratio", "TOST p"),
    ]
    page.table(columns, rows, "Ground truth and prediction: means over patients. Bias and ratio: definitions below.")
    page.table(["term", "definition"], list(CONVENTIONS.items()))
    for figure, label in figures:
        page.figure(figure, f"{label}, a point per patient. Solid: bias; dashed: limits of agreement; grey: equality.")


def _lesion_free(page: Page, of: Mapping[str, Any]) -> None:
    if of["cases"]:
        page.heading("Lesion-free cases")
        columns = ["cases", "specificity", "mean FPV (ml)", "false-positive lesions"]
        row = [of["cases"], of["specificity"], of["mean_fpv_ml"], of["false_positive_lesions"]]
        page.table(columns, [row], "Cases without ground-truth lesions. Specificity: their share without predictions.")


def _other_rules(page: Page, compat: Mapping[str, Any]) -> None:
    if compat:
        page.heading("Published scoring rules")
    for name, rule in compat.items():
        numbers = ["mean", "ci_low", "ci_high", "median", "n", "not_defined"]
        rows = [[column, *(of[key] for key in numbers)] for column, of in rule["metrics"].items()]
        caption = f"{name} ({rule['source']}): {rule['convention']}."
        page.table(["column", "mean", "95 % CI low", "95 % CI high", "median", "n", "n/a"], rows, caption)


def _cases(page: Page, evaluations: Sequence[CaseEvaluation], figures: Path | None) -> None:
    page.heading("Cases")
    done = sorted(
        ((case.paths.id, case.result) for case in evaluations if case.result is not None),
        key=lambda case: math.inf if math.isnan(case[1].dice) else case[1].dice,
    )
    columns = ["dice", "nsd_2mm", f"f1_iou{HEADLINE_IOU:g}", "fpv_ml", "fnv_ml", "truth_lesions", "pred_lesions"]
    columns += ["truth_volume_ml", "pred_volume_ml"]
    rows = []
    for case, result in done:
        row = result.as_row()
        rows.append([case, *(row[column] for column in columns)])
    page.table(["case", *columns], rows, "Lowest Dice first; cases.csv has all columns.")
    if figures is None:
        return
    if len(done) > FIGURES_SHOWN:
        page.paragraph(f"The {FIGURES_SHOWN} cases with the lowest Dice; the folder {figures.name} contains all cases.")
    for case, result in done[:FIGURES_SHOWN]:
        png = figures / file_name(case, ".png")
        if not png.is_file():  # drawn on another machine
            continue
        counts = result.detection[HEADLINE_IOU]
        page.figure(
            png.read_bytes(),
            f"{case}: Dice {_text(result.dice)}, {counts.tp} of {result.truth.lesions} lesions found, "
            f"{counts.fp} unmatched predictions.",
        )


def _all_metrics(page: Page, summary: Mapping[str, Any]) -> None:
    page.heading("All metrics")
    numbers = ["mean", "sd", "median", "q1", "q3", "ci_low", "ci_high", "n", "not_defined"]
    rows = []
    for name, of in summary["metrics"].items():
        rows.append([name, *(of[key] for key in numbers), summary["conventions"][name]])
    columns = ["metric", "mean", "SD", "median", "Q1", "Q3", "95 % CI low", "95 % CI high", "n", "n/a", "definition"]
    page.table(columns, rows)


def _made_by(page: Page, summary: Mapping[str, Any]) -> None:
    page.heading("Settings and versions")
    page.table(["setting", "value"], [[name, str(value)] for name, value in summary["configuration"].items()])
    page.table(["software", "version"], list(summary["versions"].items()))
    page.paragraph(f"Written {summary['written']}. summary.json lists the SHA-256 of every file read.")


def _lines(of: Mapping[str, Any]) -> tuple[float, float, float]:
    return _number(of["bias"]), _number(of["low"]), _number(of["high"])


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _span(low: float | None, high: float | None) -> str:
    return "n/a" if low is None or high is None else f"{low:.3g} to {high:.3g}"


def _text(value: float) -> str:
    return "n/a" if math.isnan(value) else f"{value:.3f}"
