"""`sammed3d-ft benchmark`: trains and compares what a config lists, over folds and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def benchmark(
    config: Annotated[
        Path, typer.Argument(help="YAML of rows, folds and seeds, such as configs/benchmark/mini_losses.yaml.")
    ],
    limit: Annotated[
        int | None, typer.Option(min=0, help="At most so many trainings now; the rest waits for the next call.")
    ] = None,
) -> None:
    """Train models, make their masks of every test case, score and compare them; what is done is not done again.

    A row is a training, a checkpoint as it is, a threshold rule, a cascade, 2D SAM, or a folder of masks. Writes
    table.html, table.md, table.csv, sizes.csv and cases.csv. Exit code 3 when runs or cases failed: they are marked,
    and tried again by the next call. Started several times at once, the calls share the work.
    """
    from sammed3d_ft.recipes.benchmark import run

    table, failures = run(config, limit)
    typer.echo(table)
    for failure in failures:
        what = "left to another process" if failure.held else "failed"
        typer.echo(f"{what}: {failure.run}: {failure.reason}", err=True)
    if any(failure.held for failure in failures):
        typer.echo("start this once more when the other processes have ended: the tables lack their results", err=True)
    if not all(failure.held for failure in failures):
        raise typer.Exit(3)
