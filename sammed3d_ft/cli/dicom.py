"""`sammed3d-ft import` and `export-seg`: convert a DICOM folder to NIfTI, and a mask back to DICOM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_dicom(
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM files, subfolders included.")],
    out: Annotated[Path, typer.Option(help="Folder to write PT.nii.gz, CT.nii.gz, masks and import.json to.")],
    series: Annotated[
        list[str] | None,
        typer.Option(help="Series Instance UID to use if there are several series; repeat it for PET and CT."),
    ] = None,
    ct: Annotated[bool, typer.Option("--ct", help="Import the CT as well, in HU, on its own grid.")] = False,
    roi: Annotated[
        list[str] | None,
        typer.Option(help="Region of an RTSTRUCT or SEG to write as mask_NAME.nii.gz. Repeatable."),
    ] = None,
) -> None:
    """Convert a DICOM PET to NIfTI in SUV by body weight, with its CT and contoured regions.

    SUV follows the vendor-neutral definition of QIBA; the import is refused if a required value is missing.
    import.json lists the values the factor was computed from, including UIDs, times and weight: treat it as patient
    data.
    """
    from sammed3d_ft.recipes.import_dicom import run

    record = run(folder, out, series or (), ct, roi or ())
    for name, written in record["outputs"].items():
        detail = ""
        if name in record["images"]:
            facts = record["images"][name]
            unit = "SUV" if name == "PT" else "HU"
            shape = " x ".join(str(n) for n in facts["shape"])
            detail = f": {shape} voxels, {facts['lowest']:.4g} to {facts['highest']:.4g} {unit}"
        else:
            facts = record["regions"][name.removeprefix("mask ")]
            detail = f": {facts['voxels']} voxels, {facts['volume_ml']:.2f} ml"
        typer.echo(f"{written['path']}{detail}")
    typer.echo(f"SUV factor {record['suv']['factor']:.9g}: {record['suv']['how']}")
    left = [name for name in record["regions_available"] if name not in record["regions"]]
    if left:
        typer.echo(f"regions not imported (--roi): {', '.join(left)}")
    for text in record["warnings"]:
        typer.echo(f"warning: {text}", err=True)


def export_seg(
    mask: Annotated[Path, typer.Argument(help="Mask or instance map on the series' grid, in any image format.")],
    source: Annotated[Path, typer.Option(help="Folder of the DICOM series that the mask was made from.")],
    out: Annotated[Path, typer.Option(help="DICOM SEG file to write.")],
    series: Annotated[
        str | None, typer.Option(help="Series Instance UID; by default the PET, or the CT if there is no PET.")
    ] = None,
    made: Annotated[
        str, typer.Option(help="How the mask was made: MANUAL, SEMIAUTOMATIC or AUTOMATIC.")
    ] = "SEMIAUTOMATIC",
) -> None:
    """Write a mask as a DICOM SEG that references its source series, for a PACS or viewer.

    Each label of an instance map becomes a segment. The file copies patient and study from the source.
    """
    from sammed3d_ft.recipes.export_seg import run

    record = run(mask, source, out, series, made)
    typer.echo(f"{out}: {record['segments']} segments, {record['voxels']} voxels, on series {record['series']}")
