"""`sammed3d-ft predict`: segments a scan by clicks, or with an automatic network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

# Options that `predict` and `predict-cohort` share.
Checkpoint = Annotated[
    Path,
    typer.Option(
        help="Export, published checkpoint, folder of a LoRA adapter, a name (mini, or one of `weights fetch`), or "
        "hub:OWNER/NAME."
    ),
]
Base = Annotated[Path | None, typer.Option(help="For a LoRA adapter: the weights it was trained on.")]
Flips = Annotated[
    bool,
    typer.Option("--flips", help="Test-time augmentation: average over eight mirrored crops, at eight times the cost."),
]
Spacing = Annotated[float | None, typer.Option(help="Spacing of the crops (default: that of the training).")]
Obey = Annotated[
    bool, typer.Option("--obey/--no-obey", help="Enforce the clicks, or return the network's own prediction.")
]
Accumulate = Annotated[
    bool | None,
    typer.Option(
        "--accumulate-clicks/--newest-click-only",
        help="Give the decoder all clicks so far, or only the newest (default: as the model was trained).",
    ),
]


def predict(
    image: Annotated[
        Path, typer.Option(help="PET in SUV (.nii, .nii.gz, .nrrd, .mha, .mhd); for a CT-only model, the CT.")
    ],
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="Mask to write, on the image's own grid (.nii, .nii.gz, .nrrd or .mha).")],
    clicks: Annotated[
        Path | None,
        typer.Option(help="Click file: our JSON, autoPET, Grand Challenge or 3D Slicer (.mrk.json, .fcsv)."),
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Mask or instance map to correct by clicks, such as a CNN's.")
    ] = None,
    ct: Annotated[Path | None, typer.Option(help="CT in HU, for a model with PET and CT.")] = None,
    instances: Annotated[
        Path | None, typer.Option(help="Instance map to write; where lesions overlap, the higher probability wins.")
    ] = None,
    probability: Annotated[
        Path | None, typer.Option(help="Probability map to write: the highest of all lesions, 0 outside all crops.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Lesion table to write (.csv): position, volume, SUVs, predicted IoU.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Figure to write (.png): the PET's projections with the mask outlined.")
    ] = None,
    seg: Annotated[
        Path | None, typer.Option(help="DICOM SEG to write, with one segment per lesion; needs --source.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="For --seg: folder of the DICOM series from which the image was imported.")
    ] = None,
    series: Annotated[
        str | None,
        typer.Option(help="Series Instance UID in --source (default: the PET, or the CT if there is no PET)."),
    ] = None,
    flips: Flips = False,
    spacing_mm: Spacing = None,
    obey: Obey = True,
    accumulate: Accumulate = None,
    base: Base = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps (default: cuda if available, else cpu).")
    ] = None,
) -> None:
    """Segment the clicked lesions of a scan, or with an automatic network all lesions. No ground truth is needed.

    Clicks with the same lesion ID refine one lesion, in order. Each foreground click WITHOUT an ID is a separate
    lesion. Background clicks without an ID apply to every lesion whose crop contains them.

    With --start, clicks on a lesion of that mask correct it, and the other lesions are unchanged. Without --clicks,
    every lesion is segmented again from its deepest point.

    Automatic networks (exports of unet, attention_unet, segresnet, unetr, unetr_sammed3d) take no clicks.

    Versions, hashes, settings and lesions are recorded beside the mask in NAME.predict.json. Not for clinical use.
    """
    from sammed3d_ft.recipes.predict import Outputs, run

    outputs = Outputs(out, instances, probability, table, figure, seg)
    record = run(
        image, clicks, checkpoint, outputs,
        ct=ct, start=start, base=base, device=device, flips=flips, spacing_mm=spacing_mm, obey=obey,
        accumulate=accumulate, source=source, series=series,
    )  # fmt: skip
    _print(record)


def _print(record: dict[str, Any]) -> None:
    """Print the lesions (only their number for an automatic network, which may find many) and the files written."""
    from rich.console import Console
    from rich.markup import escape

    console, rows = Console(), record["lesions"]
    where = f"in {record['seconds']:g} s on {record['device']}"
    if "metadata" in record:
        total_ml = sum(row["volume_ml"] for row in rows)
        console.print(f"{len(rows)} lesions, {total_ml:.2f} ml in total, {where}", soft_wrap=True)
    else:
        from sammed3d_ft.model.published import click_mode

        _print_clicked(console, rows, f"{len(rows)} lesions {where}")
        preset = "" if record["preset"] is None else f", preset {record['preset']}"
        console.print(f"{click_mode(record['accumulate_clicks'])}{preset}", soft_wrap=True)
    for name, path in record["outputs"].items():
        console.print(f"{name}: {escape(path)}", soft_wrap=True)


def _print_clicked(console: Console, rows: list[dict[str, Any]], title: str) -> None:
    from rich.markup import escape
    from rich.table import Table

    shown = Table(title=title)
    for name in ("lesion", "volume (ml)", "SUVmax", "predicted IoU", "clicks"):
        shown.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        own_name = "" if row["name"] in (None, row["lesion_id"]) else f" ({escape(str(row['name']))})"
        shown.add_row(
            f"{row['lesion_id']}{own_name}",
            f"{row['volume_ml']:.2f}",
            _number(row.get("suv_max")),
            _number(row["predicted_iou"]),
            f"{row['foreground_clicks']} + {row['background_clicks']}",
        )
    console.print(shown)
    empty = [str(row["lesion_id"]) for row in rows if row["voxels"] == 0]
    if empty:
        console.print(f"The mask of lesion {', '.join(empty)} is empty.", soft_wrap=True)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"
