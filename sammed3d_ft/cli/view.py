"""`sammed3d-ft view`: click lesions in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sammed3d_ft.cli.predict import Base, Checkpoint


def view(
    image: Annotated[
        Path | None,
        typer.Argument(help="PET in SUV or CT in HU (.nii, .nii.gz, .nrrd, .mha, .mhd), or a DICOM folder."),
    ] = None,
    ct: Annotated[
        Path | None, typer.Option(help="CT in HU, on any grid: shown, and used by models with CT input.")
    ] = None,
    checkpoint: Checkpoint = Path("mini"),
    out: Annotated[
        Path | None, typer.Option(help="Folder for clicks and results (default: NAME_view beside the image).")
    ] = None,
    clicks: Annotated[
        Path | None, typer.Option(help="Clicks to start with, in any format; with --manifest, a folder of ID.json.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(help="Mask or instance map to correct, such as a CNN's; with --manifest, a folder of ID.nii.gz."),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(help="Open the cases of a manifest one by one; saved cases are listed in OUT/manifest.json."),
    ] = None,
    series: Annotated[
        list[str] | None, typer.Option(help="Series Instance UID, if the DICOM folder contains several. Repeatable.")
    ] = None,
    base: Base = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, cuda:1 or mps (default: cuda if available, else cpu).")
    ] = None,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the browser, or only print its link.")
    ] = True,
) -> None:
    """Open a scan in the browser and click on its lesions.

    The first click segments a lesion; further clicks correct it. Saving writes mask, instance map, lesion table, figure
    and, for a DICOM folder, DICOM SEG, as `predict` does. Clicks are saved at once; re-run the command to continue.

    The server accepts connections only from this machine, and only with the link that it prints. Press ? in the page
    for help. Not for clinical use.
    """
    from sammed3d_ft.errors import InputError

    try:
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError:
        raise InputError("the viewer needs two more packages: pip install 'sammed3d-ft[view]'") from None
    from sammed3d_ft.view.cases import cohort_cases, single_case
    from sammed3d_ft.view.server import serve

    if (image is None) == (manifest is None):
        raise InputError("give either a scan or --manifest")
    if manifest is not None:
        if ct is not None or series:
            raise InputError("--ct and --series apply to a single scan; a manifest lists its own images")
        folder = out or manifest.resolve().parent / f"{manifest.stem}_view"
        cases = cohort_cases(manifest, folder, clicks, start)
        annotated = folder / "manifest.json"
    else:
        assert image is not None
        cases, annotated = [single_case(image, out, ct, clicks, start, series or ())], None
        folder = cases[0].folder
        cases[0].check()

    def load():
        from sammed3d_ft.recipes.predict import load_model

        return load_model(checkpoint, device, base)

    serve(cases, load, folder, annotated, browser)
