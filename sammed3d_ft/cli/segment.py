"""`sammed3d-ft segment`: segments a scan with a baseline, without clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def segment(
    image: Annotated[Path, typer.Option(help="PET in SUV (.nii, .nii.gz); the CT for a network trained on CT alone.")],
    checkpoint: Annotated[Path, typer.Option(help="Export of a baseline: export/model.safetensors of its run.")],
    out: Annotated[Path, typer.Option(help="Mask to write, on the image's own grid (.nii, .nii.gz).")],
    ct: Annotated[Path | None, typer.Option(help="CT in HU, for a network trained on PET and CT.")] = None,
    probability: Annotated[Path | None, typer.Option(help="Image of lesion probabilities to write.")] = None,
    table: Annotated[
        Path | None, typer.Option(help="CSV of lesions to write: position, volume and SUVs of each.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; by default cuda if available, else cpu.")
    ] = None,
) -> None:
    """Segment the lesions of a scan with a baseline (unet, attention_unet, segresnet, unetr, unetr_sammed3d).

    No clicks are used; for models prompted by clicks, use `predict`. A record of the run (versions, hashes, lesions) is
    written beside the mask as NAME.segment.json. Not for clinical use.
    """
    from sammed3d_ft.recipes.segment import run

    record = run(image, checkpoint, out, ct, probability, table, device)
    total = sum(row["volume_ml"] for row in record["lesions"])
    typer.echo(
        f"{len(record['lesions'])} lesions, {total:.2f} ml in all, in {record['seconds']:g} s on {record['device']}"
    )
    for name, path in record["outputs"].items():
        typer.echo(f"{name}: {path}")
