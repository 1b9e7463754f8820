"""`sammed3d-ft evaluate`: scores predicted masks against the ground truth, and states every definition used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    pred: Annotated[Path, typer.Option(help="Folder of predicted masks named by case ID, or one mask.")],
    gt: Annotated[Path, typer.Option(help="Folder of ground-truth masks, one mask, or a manifest (.json).")],
    out: Annotated[Path, typer.Option(help="Folder for report.html, cases.csv, lesions.csv and summary.json.")],
    pet: Annotated[
        Path | None, typer.Option(help="Folder of PET images in SUV, or one image; a manifest names its own.")
    ] = None,
    probabilities: Annotated[
        Path | None,
        typer.Option(
            help="Folder of probability maps named by case ID, or one map: adds FROC, average precision and AUROC."
        ),
    ] = None,
    split: Annotated[str | None, typer.Option(help="With a manifest: only the cases of this split.")] = None,
    connectivity: Annotated[int, typer.Option(help="6, 18 or 26: which touching voxels belong to one lesion.")] = 18,
    foreground: Annotated[
        str,
        typer.Option(
            help="Which labels are lesion, in ground truth and prediction: binary (only 0 and 1 allowed), any, or one "
            "label."
        ),
    ] = "binary",
    instances: Annotated[
        bool, typer.Option("--instances", help="Both masks are instance maps: each label is one lesion.")
    ] = False,
    compat: Annotated[
        list[str] | None,
        typer.Option(help="Also score by this published rule: l1dfl, autopet, deep-psma or brats-mets. Repeatable."),
    ] = None,
    figures: Annotated[
        bool, typer.Option(help="Draw figures/CASE.png, projections with both masks, and show them in the report.")
    ] = True,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Number of processes; by default up to 8, chosen automatically.")
    ] = None,
) -> None:
    """Score predicted lesion masks by voxel, surface, detection, lesion and PET metrics, per case and cohort.

    Finished cases are kept in OUT/cases. If interrupted, re-run the same command: only missing or changed cases are
    evaluated. To share the cases among machines: accelerate launch -m sammed3d_ft.cli.main evaluate ...

    Exit code 2 if the input files do not match, 3 if some cases failed (they are marked in cases.csv).
    """
    import os

    from sammed3d_ft.errors import InputError
    from sammed3d_ft.recipes.evaluate import run

    if foreground not in ("binary", "any") and not (foreground.isdecimal() and int(foreground) > 0):
        raise InputError(f"--foreground {foreground}: expected binary, any, or a label such as 1")
    if connectivity not in (6, 18, 26):
        raise InputError(f"--connectivity {connectivity}: expected 6, 18 or 26")
    rule: Any = int(foreground) if foreground.isdecimal() else foreground
    summary = run(
        pred,
        gt,
        out,
        pet,
        split,
        connectivity,
        rule,
        figures,
        instances=instances,
        probabilities=probabilities,
        compat=compat or (),
        workers=workers,
    )
    if os.environ.get("RANK", "0") != "0":
        return  # only the first process prints; a failing exit code from another one would end it too early
    _print(summary, out)
    if summary["cases"]["failed"]:
        raise typer.Exit(3)


def _print(summary: dict[str, Any], out: Path) -> None:
    """Print the headline metrics, their definitions, failed cases, and where the tables are."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sammed3d_ft.evaluation.metrics import METRICS

    console = Console()
    cases = summary["cases"]
    configuration = summary["configuration"]
    lesions = "instance maps" if configuration["instances"] else f"{configuration['connectivity']}-connectivity"
    values = Table(title=f"{_count(cases['evaluated'], 'case')} of {_count(cases['patients'], 'patient')}, {lesions}")
    values.add_column("metric", no_wrap=True)
    for name in ("mean", "95 % CI", "median", "n", "n/a"):
        values.add_column(name, justify="right", no_wrap=True)
    # The definitions go below the numbers, where they are readable at any terminal width.
    conventions = Table.grid(padding=(0, 2))
    for metric in METRICS.values():
        of = summary["metrics"][metric.name]
        if metric.headline:
            interval = f"{_number(of['ci_low'])} to {_number(of['ci_high'])}"
            values.add_row(
                metric.name,
                _number(of["mean"]),
                "n/a" if of["ci_low"] is None else interval,
                _number(of["median"]),
                str(of["n"]),
                str(of["not_defined"]),
            )
            conventions.add_row(metric.name, f"{metric.convention}; {metric.empties}")
    conventions.add_row("statistics", summary["statistics"])
    console.print(values)
    console.print(conventions)
    found, there = (summary["metrics"][name]["mean"] for name in ("pred_volume_ml", "truth_volume_ml"))
    if found == 0 and there:
        label = configuration["foreground"]
        asked = f"; only label {label} counts as lesion" if isinstance(label, int) else ""
        console.print(f"[yellow]every prediction is empty[/yellow], but the ground truth is not{asked}", soft_wrap=True)
    for case, error in cases["failed"].items():
        console.print(f"[red]failed[/red] {escape(case)}: {escape(error)}", soft_wrap=True)
    console.print(
        f"Report: {escape(str(out))}/report.html; tables with all metrics: cases.csv, lesions.csv, summary.json",
        soft_wrap=True,
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.3f}"
