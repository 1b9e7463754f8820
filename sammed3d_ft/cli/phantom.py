"""`sammed3d-ft phantom`: a folder of PET/CT phantoms with known lesions, and its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def phantom(
    out: Annotated[Path, typer.Option(help="Folder to write; it must not hold phantoms yet.")],
    cases: Annotated[int, typer.Option(help="Number of patients.")] = 12,
    seed: Annotated[int, typer.Option(help="The same seed gives the same patients.")] = 0,
    tracer: Annotated[str, typer.Option(help="psma, psma-1007 or fdg; both: psma and fdg in turn.")] = "psma",
    field: Annotated[str, typer.Option(help="whole-body, head-neck, chest, abdomen or pelvis.")] = "whole-body",
    scanner: Annotated[
        str, typer.Option(help="usual, older (blurred and noisy) or digital (sharp, fine voxels).")
    ] = "usual",
    lesion_ml: Annotated[float, typer.Option(help="Median lesion volume in ml.")] = 1.0,
    outline: Annotated[
        str, typer.Option(help="What the labels show: extent, the true one, or a share of each lesion's maximum: 41%.")
    ] = "extent",
    val: Annotated[int, typer.Option(help="How many of the cases are for validation.")] = 2,
    test: Annotated[int, typer.Option(help="How many of the cases are for the test.")] = 2,
) -> None:
    """Make PET/CT phantoms as an nnU-Net raw folder (channel 0 CT, 1 PET) with manifest.json and lesions.csv.

    They serve to try the software, and to measure small lesions against a known truth; they replace no
    patients.
    """
    from sammed3d_ft.phantom import write_cohort

    manifest = write_cohort(out, cases, seed, tracer, field, val, test, scanner, lesion_ml, outline)
    typer.echo(f"{manifest}: {cases - val - test} train, {val} val, {test} test cases")
