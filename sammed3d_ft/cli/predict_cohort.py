"""`sammed3d-ft predict-cohort`: segments the scans of a manifest, each with its click file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sammed3d_ft.cli.predict import Accumulate, Base, Checkpoint, Flips, Obey, Spacing


def predict_cohort(
    manifest: Annotated[Path, typer.Argument(help="Manifest of the scans; labels are not used.")],
    clicks: Annotated[Path, typer.Option(help="Folder of click files named by case ID, such as case_1.json.")],
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="Folder for masks/, instances/, lesions/ and figures/.")],
    split: Annotated[str | None, typer.Option(help="Only the cases of this split.")] = None,
    figures: Annotated[bool, typer.Option("--figures", help="Draw the PET's projections with the mask.")] = False,
    base: Base = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps (default: that of the process).")] = None,
    flips: Flips = False,
    spacing_mm: Spacing = None,
    obey: Obey = True,
    accumulate: Accumulate = None,
) -> None:
    """Segment the clicked lesions of many scans. Finished cases are skipped; failed cases do not stop the others.

    To share the cases among GPUs: accelerate launch -m sammed3d_ft.cli.main predict-cohort ...

    Exit code 3 if cases failed; they are listed at the end with their errors. Not for clinical use.
    """
    from sammed3d_ft.model.published import click_mode
    from sammed3d_ft.recipes.predict_cohort import run

    outcome = run(manifest, clicks, checkpoint, out, split, figures, base, device, flips, spacing_mm, obey, accumulate)
    if outcome.first_process:
        before, failed = outcome.done_before, len(outcome.failed)
        mode = click_mode(outcome.accumulate)
        typer.echo(f"{outcome.done} predicted, {before} already done, {failed} failed: {out} ({mode})")
        for case, reason in outcome.failed.items():
            typer.echo(f"failed: {case}: {reason}", err=True)
        if failed:  # only in the first process: if another one exited with an error, it would stop this output
            raise typer.Exit(3)
