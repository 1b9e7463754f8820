"""`sammed3d-ft import` and `export-seg`: from a folder of DICOM files to NIfTI, and a mask back to DICOM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def import_dicom(
    folder: Annotated[Path, typer.Argument(help="Folder of DICOM files, sub-folders included.")],
    out: Annotated[Path, typer.Option(help="Folder to write PT.nii.gz, CT.nii.gz, masks and import.json to.")],
    series: Annotated[
        list[str] | None,
        typer.Option(help="Series Instance UID to take where there are several; once each for PET and CT."),
    ] = None,
    ct: Annotated[bool, typer.Option("--ct", help="Import the CT as well, in HU, on its own grid.")] = False,
    roi: Annotated[
        list[str] | None,
        typer.Option(help="Region of an RTSTRUCT or SEG to write as mask_NAME.nii.gz; may be given again."),
    ] = None,
) -> None:
    """Read a DICOM PET as SUV by body weight, with its CT and drawn regions, to NIfTI.

    SUV follows the vendor-neutral definition of QIBA; where something it needs is missing, the import is refused.
    import.json says what the factor was computed from. It holds UIDs, times and weight: treat it as patient data.
    """
    from sammed3d_ft.recipes.dicom_import import run

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
    source: Annotated[Path, typer.Option(help="Folder of the DICOM series that the mask was made on.")],
    out: Annotated[Path, typer.Option(help="DICOM SEG file to write.")],
    series: Annotated[
        str | None, typer.Option(help="Series Instance UID; left out: the PET, or the CT where there is no PET.")
    ] = None,
    made: Annotated[
        str, typer.Option(help="How the mask came about: MANUAL, SEMIAUTOMATIC or AUTOMATIC.")
    ] = "SEMIAUTOMATIC",
) -> None:
    """Write a mask as a DICOM SEG that refers to its source series, for a PACS or viewer.

    The numbers of an instance map become segments of their own. The file repeats the patient and study of the source.
    """
    from sammed3d_ft.recipes.dicom_import import export_segmentation

    record = export_segmentation(mask, source, out, series, made)
    typer.echo(f"{out}: {record['segments']} segments, {record['voxels']} voxels, on series {record['series']}")
