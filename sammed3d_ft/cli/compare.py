"""`sammed3d-ft compare`: evaluations of several predictions against each other, patient by patient."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def compare(
    evaluations: Annotated[
        list[Path], typer.Argument(help="Two or more folders that `evaluate --out` wrote, of the same truths.")
    ],
    out: Annotated[Path, typer.Option(help="Folder for compare.json and compare.md.")],
    reference: Annotated[
        str | None, typer.Option(help="The folder that the others are compared with; the first by default.")
    ] = None,
) -> None:
    """Say by how much predictions differ, and whether that may be chance: differences with interval, Wilcoxon, Holm.

    Exit code 2 when the evaluations are of other truths or by other rules.
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
    console.print(f"With every other metric: {escape(str(out))}/compare.md, compare.json", soft_wrap=True)
