"""`sammed3d-ft predict`: a scan to a mask on its own grid and a table of lesions, by clicks or automatically."""

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
Base = Annotated[Path | None, typer.Option(help="The weights that a LoRA adapter was trained on.")]
Flips = Annotated[
    bool, typer.Option("--flips", help="Mean over the eight mirrorings of each crop: eight times the work.")
]
Spacing = Annotated[
    float | None, typer.Option(help="Of the crops, finer for small lesions; left out: as the model was trained.")
]
Obey = Annotated[
    bool, typer.Option("--obey/--no-obey", help="Let the clicks have the last word, or leave it to the network.")
]
Accumulate = Annotated[
    bool | None,
    typer.Option(
        "--accumulate-clicks/--newest-click-only",
        help="Give the decoder all clicks so far, or only the newest; left out: as the model was trained.",
    ),
]


def predict(
    image: Annotated[
        Path, typer.Option(help="PET in SUV (.nii, .nii.gz, .nrrd, .mha, .mhd); the CT for a model that sees CT alone.")
    ],
    checkpoint: Checkpoint,
    out: Annotated[Path, typer.Option(help="Mask to write, on the image's own grid (.nii, .nii.gz, .nrrd or .mha).")],
    clicks: Annotated[
        Path | None, typer.Option(help="Click file: ours, autoPET, Grand Challenge or 3D Slicer (.mrk.json, .fcsv).")
    ] = None,
    start: Annotated[
        Path | None, typer.Option(help="Mask or instance map to start from, such as a CNN's; clicks correct it.")
    ] = None,
    ct: Annotated[Path | None, typer.Option(help="CT in HU, for a model that sees PET and CT.")] = None,
    instances: Annotated[
        Path | None, typer.Option(help="Write lesion numbers here; overlaps go to the higher probability.")
    ] = None,
    probability: Annotated[
        Path | None, typer.Option(help="Write the highest lesion probability here; 0 outside all crops.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="Write a CSV here: place, volume, SUVs, predicted IoU per lesion.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Write a PNG here: the PET's projections with the mask outlined.")
    ] = None,
    seg: Annotated[
        Path | None, typer.Option(help="Write a DICOM SEG here, a segment per lesion; needs --source.")
    ] = None,
    source: Annotated[
        Path | None, typer.Option(help="Folder of the DICOM series that the image was imported from, for --seg.")
    ] = None,
    series: Annotated[
        str | None, typer.Option(help="Series Instance UID in --source; left out: the PET, or the CT without a PET.")
    ] = None,
    flips: Flips = False,
    spacing_mm: Spacing = None,
    obey: Obey = True,
    accumulate: Accumulate = None,
    base: Base = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps; left out: cuda if there, else cpu.")
    ] = None,
) -> None:
    """Segment the lesions that were clicked on a scan, or all that an automatic network finds. No true mask is needed.

    Clicks with the same lesion id refine one lesion, one after the other. Each foreground click WITHOUT an id
    is a lesion of its own. Background clicks without an id count for every lesion whose crop holds them.

    With --start, clicks on a lesion of that mask correct it and the others stay as they are; without --clicks each
    is segmented anew from its deepest point.

    The export of an automatic network (unet, attention_unet, segresnet, unetr, unetr_sammed3d) takes no clicks.

    A record of the run (versions, hashes, settings, lesions) is written beside the mask as NAME.predict.json.
    Not for clinical use.
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
    """The lesions (of an automatic network, which may find many, only their number), then where all was written."""
    from rich.console import Console
    from rich.markup import escape

    console, rows = Console(), record["lesions"]
    where = f"in {record['seconds']:g} s on {record['device']}"
    if "metadata" in record:
        total_ml = sum(row["volume_ml"] for row in rows)
        console.print(f"{len(rows)} lesions, {total_ml:.2f} ml in all, {where}", soft_wrap=True)
    else:
        from sammed3d_ft.prompted.pretrained import click_mode

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
        console.print(f"Nothing was found at lesion {', '.join(empty)}: its mask is empty.", soft_wrap=True)


def _number(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.2f}"
