"""`sammed3d-ft prompts`: simulate clicks on a mask, propose them from a PET, convert click files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np

app = typer.Typer(
    help="Clicks: simulate them on a mask, propose them from a PET, convert click files.", no_args_is_help=True
)

_FORMS = "world-ras, world-lps, voxel, autopet, grand-challenge, slicer-json or slicer-fcsv"


@app.command()
def make(
    mask: Annotated[Path, typer.Argument(help="Lesion mask (.nii, .nii.gz, .nrrd, .mha, .mhd).")],
    out: Annotated[Path, typer.Option(help="Click file to write.")],
    strategy: Annotated[
        str,
        typer.Option(help="deepest, uniform, suvmax, boundary, jittered, or autopet (10 + 10 per scan)."),
    ] = "deepest",
    pet: Annotated[
        Path | None,
        typer.Option(help="PET on the mask's grid, for suvmax, autopet and hot_background."),
    ] = None,
    connectivity: Annotated[
        int | None,
        typer.Option(help="Connectivity of lesions: 6, 18 or 26 (default: 18; autopet: 26)."),
    ] = None,
    clicks_per_lesion: Annotated[int, typer.Option(help="Foreground clicks in each lesion.")] = 1,
    negatives: Annotated[
        int, typer.Option(help="Background clicks: per lesion (near_miss) or per scan (hot_background).")
    ] = 0,
    negative_strategy: Annotated[str, typer.Option(help="near_miss or hot_background.")] = "near_miss",
    seed: Annotated[
        int, typer.Option(help="Seed of random strategies; 42 is the seed of the autoPET IV challenge.")
    ] = 42,
    to: Annotated[
        str | None,
        typer.Option(help=f"Format: {_FORMS} (default: by the name of --out, else world-ras)."),
    ] = None,
) -> None:
    """Simulate clicks on the lesions of a mask."""
    from prompts.click_files import write_clicks
    from prompts.scan import clicks_from_mask
    from sammed3d_ft.errors import InputError
    from sammed3d_ft.images.grids import grid_difference
    from sammed3d_ft.images.images import read_image, read_label

    label = read_label(mask)
    uptake = None
    if pet is not None:
        image = read_image(pet)
        difference = grid_difference(image, label)
        if difference:
            raise InputError(f"{pet} is not on the grid of {mask}: {difference}; resample one to the other")
        uptake = image.array
    array, affine, spacing_mm = label.array, label.affine, label.spacing_mm
    if strategy == "autopet":
        # The protocol numbers components in the file's own axis order.
        array, affine = label.source.from_canonical(array), label.source.affine
        uptake = None if uptake is None else label.source.from_canonical(uptake)
    clicks = clicks_from_mask(
        array,
        strategy=strategy,
        key=(seed,),
        spacing_mm=spacing_mm,
        pet=uptake,
        connectivity=connectivity,
        clicks_per_lesion=clicks_per_lesion,
        negatives=negatives,
        negative_strategy=negative_strategy,
    )
    if not len(clicks.labels):
        raise InputError(f"{mask} contains no lesions, so there is nothing to click on")
    write_clicks(out, clicks.to_world(affine), form=to, affine=label.source.affine, shape=label.source.shape)
    foreground = int(clicks.labels.sum())
    typer.echo(f"{out}: {foreground} foreground and {len(clicks.labels) - foreground} background clicks")


@app.command()
def propose(
    pet: Annotated[Path, typer.Argument(help="PET in SUV (.nii, .nii.gz, .nrrd, .mha, .mhd).")],
    out: Annotated[Path, typer.Option(help="Click file to write, one lesion per proposal.")],
    suv: Annotated[float, typer.Option(help="Propose maxima at or above this SUV.")] = 4.0,
    min_ml: Annotated[float, typer.Option(help="Exclude smaller regions above that SUV: noise.")] = 0.1,
    max_ml: Annotated[float, typer.Option(help="Exclude larger regions: liver, bladder, brain.")] = 150.0,
    separation_mm: Annotated[float, typer.Option(help="Minimum distance between two proposals.")] = 20.0,
    grid_mm: Annotated[
        float | None,
        typer.Option(help="Instead, propose the hottest voxel of each cube with this edge length over the body."),
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="PNG of the PET's projections with the proposal numbers.")] = None,
) -> None:
    """Propose clicks where PET uptake is high, for scans without clicks.

    Proposals find uptake, not disease: kidneys, bladder and glands are proposed like lesions. Review them with --figure
    and keep the lesions with `prompts select`. To get clicks from an existing mask, use `prompts make`.
    """
    from prompts.click_files import write_clicks
    from prompts.proposals import clicks_of, proposals_from_pet, proposals_on_grid
    from sammed3d_ft.dataset.plausibility import check_suv
    from sammed3d_ft.errors import InputError
    from sammed3d_ft.images.images import read_image

    image = read_image(pet)
    check_suv(image.array, str(pet))
    if grid_mm is not None:
        found = proposals_on_grid(image.array, image.spacing_mm, every_mm=grid_mm)
    else:
        limits = {"suv": suv, "min_ml": min_ml, "max_ml": max_ml, "separation_mm": separation_mm}
        found = proposals_from_pet(image.array, image.spacing_mm, **limits)
    if not found:
        raise InputError(f"{pet}: nothing to propose; the highest SUV is {image.array.max():.2f}")
    write_clicks(out, clicks_of(found, image.affine), affine=image.source.affine, shape=image.source.shape)
    scores = f"SUV {found[0].score:.1f} to {found[-1].score:.1f}"
    typer.echo(f"{out}: {len(found)} proposals, {scores}. They show uptake, not disease: review each one.")
    if figure is not None:
        from sammed3d_ft.figures.mip import draw_mip

        places = {str(number): proposal.coords_vox for number, proposal in enumerate(found, start=1)}
        draw_mip(image.array, image.spacing_mm, figure, title=f"{len(found)} proposals", places_vox=places)
        typer.echo(f"{figure}: the proposal numbers, for `prompts select`")


@app.command()
def select(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Click file with lesion numbers, in any known format.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Click file to write.")],
    lesions: Annotated[str, typer.Option(help="Lesions to keep, such as 3,7,12.")],
    background: Annotated[
        str, typer.Option(help="Proposals that are not lesions, such as 15: used as background clicks for all lesions.")
    ] = "",
    image: Annotated[
        Path | None, typer.Option(help="Image on which the clicks were made; needed for voxel formats.")
    ] = None,
) -> None:
    """Keep the clicks of chosen lesions, for example after reviewing `prompts propose --figure`.

    Lesion numbers are unchanged. Background clicks without a lesion are kept.
    """
    from prompts.click_files import read_clicks, write_clicks
    from prompts.clicks import Click
    from sammed3d_ft.errors import InputError

    affine, shape = _grid_of(source, image)
    clicks = read_clicks(source, affine=affine, shape=shape)
    keep, turn = ([name.strip() for name in names.split(",") if name.strip()] for names in (lesions, background))
    known = {str(click.lesion) for click in clicks if click.lesion is not None}
    unknown = [name for name in (*keep, *turn) if name not in known]
    both = [name for name in keep if name in turn]
    if unknown or both or not keep:
        if unknown:
            what = f"no lesion {', '.join(unknown)}"
        else:
            what = f"{', '.join(both)} cannot be both kept and background" if both else "no lesion to keep"
        numbers = ", ".join(sorted(known, key=_natural))
        there = f"lesions {numbers}" if numbers else "only clicks without lesion numbers"
        raise InputError(f"{source}: {what}; the file has {there}")
    kept = [click for click in clicks if str(click.lesion) in keep or (click.lesion is None and click.label == 0)]
    kept += [Click(click.position_mm, 0) for click in clicks if str(click.lesion) in turn and click.label == 1]
    write_clicks(out, kept, affine=affine, shape=shape)
    foreground = sum(click.label for click in kept)
    typer.echo(f"{out}: {foreground} foreground and {len(kept) - foreground} background clicks")


def _grid_of(clicks: Path, image: Path | None) -> tuple[np.ndarray | None, tuple[int, int, int] | None]:
    """Affine and shape, as stored, of the given image, or else of the image recorded in the click file."""
    from prompts.click_files import image_named_in
    from sammed3d_ft.images.images import read_grid

    grid = image_named_in(clicks) if image is None else read_grid(image).source
    return (None, None) if grid is None else (grid.affine, grid.shape)


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (10**9, name)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Click file in any known format.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Click file to write.")],
    image: Annotated[
        Path | None,
        typer.Option(help="Image on which the clicks were made; needed for voxel formats, used as a check for others."),
    ] = None,
    to: Annotated[
        str | None, typer.Option(help=f"Format: {_FORMS} (default: by the name of OUT, else world-ras).")
    ] = None,
) -> None:
    """Convert a click file; the format of IN is recognised from its content."""
    from prompts.click_files import read_clicks, write_clicks

    affine, shape = _grid_of(source, image)
    clicks = read_clicks(source, affine=affine, shape=shape)
    write_clicks(out, clicks, form=to, affine=affine, shape=shape)
    typer.echo(f"{out}: {len(clicks)} clicks")
    if to in ("autopet", "grand-challenge") and any(click.lesion is not None for click in clicks):
        typer.echo(f"note: the format {to} cannot store lesions; lesion IDs were dropped", err=True)
