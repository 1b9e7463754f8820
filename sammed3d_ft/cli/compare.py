"""`sammed3d-ft compare`: compares evaluations of several predictions, patient by patient."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    evaluations: Annotated[
        list[Path], typer.Argument(help="Two or more folders written by `evaluate --out`, with the same ground truth.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for compare.json and compare.md.")],
    reference: Annotated[
        str | None, typer.Option(help="The folder to compare the others with; the first by default.")
    ] = None,
) -> None:
    """Test how much predictions differ: paired differences with intervals, Wilcoxon test, Holm correction.

    Exit code 2 if the evaluations differ in ground truth or rules.
    """
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from sammed3d_ft.recipes.compare import run

    content = run(evaluations, out, reference)
    console = Console()
    for other in (name for name in content["evaluations"] if name != content["reference"]):
        title = f"{escape(other)} compared with {escape(content['reference'])}, patients: {content['patients']}"
        table = Table(title=title)
        table.add_column("metric", no_wrap=True)
        for name in ("pairs", "mean", "ref.", "difference", "p", "p Holm"):
            table.add_column(name, justify="right", no_wrap=True)
        for metric in content["headline"]:
            row = content["metrics"][metric][other]
            numbers = (row[key] for key in ("mean", "reference_mean", "hodges_lehmann", "p", "p_holm"))
            table.add_row(
                metric, str(row["pairs"]), *("n/a" if number is None else f"{number:.3g}" for number in numbers)
            )
        console.print(table)
    console.print(f"{content['statistics']}.")
    console.print(f"All metrics: {escape(str(out))}/compare.md, compare.json", soft_wrap=True)
