"""`sammed3d-ft benchmark`: trains and compares the methods of a config, over folds and seeds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def benchmark(
    config: Annotated[
        Path, typer.Argument(help="YAML of methods, folds and seeds, such as configs/benchmark/mini_losses.yaml.")
    ],
    limit: Annotated[
        int | None, typer.Option(min=0, help="Maximum number of trainings in this call; the next call continues.")
    ] = None,
) -> None:
    """Train models, segment every test case, score and compare the masks; finished work is not repeated.

    A method is a training, a checkpoint, a threshold rule, a cascade, 2D SAM, or a folder of masks. Writes table.html,
    table.md, table.csv, sizes.csv and cases.csv. Exit code 3 if runs or cases failed: they are marked, and the next
    call retries them. Several calls at the same time share the work.
    """
    from sammed3d_ft.benchmark.runner import run

    table, failures = run(config, limit)
    typer.echo(table)
    for failure in failures:
        what = "left to another process" if failure.held else "failed"
        typer.echo(f"{what}: {failure.run}: {failure.reason}", err=True)
    if any(failure.held for failure in failures):
        typer.echo("the tables lack the other processes' results: re-run the command when they have finished", err=True)
    if not all(failure.held for failure in failures):
        raise typer.Exit(3)
