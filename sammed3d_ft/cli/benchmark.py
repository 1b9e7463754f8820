"""`sammed3d-ft benchmark`: trains and compares what a config lists, over folds and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def benchmark(
    config: Annotated[Path, typer.Argument(help="YAML of rows, folds and seeds, such as configs/benchmark/mini.yaml.")],
    limit: Annotated[
        int | None, typer.Option(help="At most so many trainings now; the rest waits for the next call.")
    ] = None,
) -> None:
    """Train and compare models over folds and seeds; what is done already is not done again.

    Writes table.md, table.csv and cases.csv. Exit code 3 when runs failed: they are marked, and tried again by
    the next call.
    """
    from sammed3d_ft.recipes.benchmark import run

    table, failures = run(config, limit)
    typer.echo(table)
    for failure in failures:
        typer.echo(f"failed: {failure.run}: {failure.reason}", err=True)
    if failures:
        raise typer.Exit(3)
