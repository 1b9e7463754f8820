"""`sammed3d-ft phantom`: makes PET/CT phantoms with known lesions."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def phantom(
    out: Annotated[Path, typer.Option(help="Output folder; it must not contain phantoms yet.")],
    cases: Annotated[int, typer.Option(help="Number of patients.")] = 12,
    seed: Annotated[int, typer.Option(help="Random seed; the same seed gives the same patients.")] = 0,
    tracer: Annotated[str, typer.Option(help="psma, psma-1007, fdg, or both (psma and fdg in turn).")] = "psma",
    field: Annotated[str, typer.Option(help="whole-body, head-neck, chest, abdomen or pelvis.")] = "whole-body",
    scanner: Annotated[
        str, typer.Option(help="usual, older (blurred and noisy) or digital (sharp, fine voxels).")
    ] = "usual",
    lesion_ml: Annotated[float, typer.Option(help="Median lesion volume in ml.")] = 1.0,
    outline: Annotated[
        str, typer.Option(help="Labels: extent (the true extent), or an isocontour of each lesion, such as 41%.")
    ] = "extent",
    val: Annotated[int, typer.Option(help="Number of validation cases.")] = 2,
    test: Annotated[int, typer.Option(help="Number of test cases.")] = 2,
) -> None:
    """Make PET/CT phantoms with known lesions, as an nnU-Net raw folder with manifest.json and lesions.csv.

    For trying the software and for measuring small lesions against an exact ground truth. Phantoms are not patients.
    """
    from sammed3d_ft.phantom.cohort import write_cohort

    manifest = write_cohort(out, cases, seed, tracer, field, val, test, scanner, lesion_ml, outline)
    typer.echo(f"{manifest}: {cases - val - test} train, {val} val, {test} test cases")
