"""`sammed3d-ft prompts`: make clicks from a mask, propose them from a PET, convert click files between forms."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import numpy as np

app = typer.Typer(
    help="Clicks: simulate them on a mask, propose them from a PET, convert files of them.", no_args_is_help=True
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
        typer.Option(help="6, 18 or 26: which touching voxels are one lesion; left out: 18, for autopet 26."),
    ] = None,
    clicks_per_lesion: Annotated[int, typer.Option(help="Foreground clicks in each lesion.")] = 1,
    negatives: Annotated[
        int, typer.Option(help="Background clicks: per lesion (near_miss) or per scan (hot_background).")
    ] = 0,
    negative_strategy: Annotated[str, typer.Option(help="near_miss or hot_background.")] = "near_miss",
    seed: Annotated[
        int, typer.Option(help="Seed of random strategies; 42 is that of the autoPET IV challenge.")
    ] = 42,
    to: Annotated[
        str | None,
        typer.Option(help=f"Form: {_FORMS}; left out: by the name of --out, else world-ras."),
    ] = None,
) -> None:
    """Simulate clicks on the lesions of a mask, as a person would place them."""
    from prompts.click_files import write_clicks
    from prompts.errors import InputError
    from prompts.scan import clicks_from_mask
    from sammed3d_ft.data.images import grid_difference, read_image, read_label

    label = read_label(mask)
    uptake = None
    if pet is not None:
        image = read_image(pet)
        difference = grid_difference(image, label)
        if difference:
            raise InputError(
                f"{pet} does not lie on the grid of {mask}: {difference}; resample one to the other"
            )
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
        raise InputError(f"{mask} holds no lesion, so there is nothing to click on")
    write_clicks(out, clicks.to_world(affine), form=to, affine=label.source.affine, shape=label.source.shape)
    foreground = int(clicks.labels.sum())
    typer.echo(f"{out}: {foreground} foreground and {len(clicks.labels) - foreground} background clicks")


@app.command()
def propose(
    pet: Annotated[Path, typer.Argument(help="PET in SUV (.nii, .nii.gz, .nrrd, .mha, .mhd).")],
    out: Annotated[Path, typer.Option(help="Click file to write, a lesion per proposal.")],
    suv: Annotated[float, typer.Option(help="Maxima at or above this SUV.")] = 4.0,
    min_ml: Annotated[float, typer.Option(help="Leave out smaller regions above that SUV: noise.")] = 0.1,
    max_ml: Annotated[float, typer.Option(help="Leave out larger ones: liver, bladder, brain.")] = 150.0,
    separation_mm: Annotated[float, typer.Option(help="Least distance of two proposals.")] = 20.0,
    grid_mm: Annotated[
        float | None, typer.Option(help="Instead: the highest voxel of each cube of this edge, in the body.")
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="PNG of the PET's projections with the proposals' numbers.")
    ] = None,
) -> None:
    """Propose clicks where PET uptake is high, for scans that nobody has clicked on.

    They find uptake, not disease: kidneys, bladder and glands are proposed like lesions. Look at them (--figure), and
    keep what is a lesion by `prompts select`. A mask (of another model, say) gives clicks by `prompts make`.
    """
    from prompts.click_files import write_clicks
    from prompts.errors import InputError
    from prompts.proposals import clicks_of, proposals_from_pet, proposals_on_grid
    from sammed3d_ft.data.images import read_image
    from sammed3d_ft.data.plausibility import check_suv

    image = read_image(pet)
    check_suv(image.array, str(pet))
    if grid_mm is not None:
        found = proposals_on_grid(image.array, image.spacing_mm, every_mm=grid_mm)
    else:
        limits = {"suv": suv, "min_ml": min_ml, "max_ml": max_ml, "separation_mm": separation_mm}
        found = proposals_from_pet(image.array, image.spacing_mm, **limits)
    if not found:
        raise InputError(f"{pet}: nothing to propose; its highest SUV is {image.array.max():.2f}")
    write_clicks(out, clicks_of(found, image.affine), affine=image.source.affine, shape=image.source.shape)
    scores = f"SUV {found[0].score:.1f} to {found[-1].score:.1f}"
    typer.echo(f"{out}: {len(found)} proposals, {scores}. They find uptake, not disease: look at each.")
    if figure is not None:
        from sammed3d_ft.figures import draw_mip

        places = {str(number): proposal.coords_vox for number, proposal in enumerate(found, start=1)}
        draw_mip(image.array, image.spacing_mm, figure, title=f"{len(found)} proposals", places_vox=places)
        typer.echo(f"{figure}: their numbers, to choose from by `prompts select`")


@app.command()
def select(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Click file with lesion numbers, of any known form.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Click file to write.")],
    lesions: Annotated[str, typer.Option(help="Those to keep, such as 3,7,12.")],
    background: Annotated[
        str, typer.Option(help="Those that are none, such as 15: their clicks become background clicks for all.")
    ] = "",
    image: Annotated[
        Path | None, typer.Option(help="Image the clicks were made on; forms in voxels need it.")
    ] = None,
) -> None:
    """Keep the clicks of some lesions, after looking at `prompts propose --figure`; they keep their numbers.

    Background clicks that belong to no lesion stay.
    """
    from prompts import Click
    from prompts.click_files import read_clicks, write_clicks
    from prompts.errors import InputError

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
            what = f"{', '.join(both)} cannot be both kept and background" if both else "no lesion is to be kept"
        there = ", ".join(sorted(known, key=_natural)) or "clicks without lesion numbers alone"
        raise InputError(f"{source}: {what}; it holds {there}")
    kept = [click for click in clicks if str(click.lesion) in keep or (click.lesion is None and click.label == 0)]
    kept += [Click(click.position_mm, 0) for click in clicks if str(click.lesion) in turn and click.label == 1]
    write_clicks(out, kept, affine=affine, shape=shape)
    foreground = sum(click.label for click in kept)
    typer.echo(f"{out}: {foreground} foreground and {len(kept) - foreground} background clicks")


def _grid_of(clicks: Path, image: Path | None) -> tuple[np.ndarray | None, tuple[int, int, int] | None]:
    """Affine and shape, as stored, of the image given, or else of the one that the click file names."""
    from prompts.click_files import image_named_in
    from sammed3d_ft.data.images import read_grid

    grid = image_named_in(clicks) if image is None else read_grid(image).source
    return (None, None) if grid is None else (grid.affine, grid.shape)


def _natural(name: str) -> tuple[int, str]:
    return (int(name), "") if name.isdecimal() else (10**9, name)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Click file of any known form.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Click file to write.")],
    image: Annotated[
        Path | None,
        typer.Option(
            help="Image the clicks were made on; forms in voxels need it, others are checked with it."
        ),
    ] = None,
    to: Annotated[
        str | None, typer.Option(help=f"Form: {_FORMS}; left out: by the name of OUT, else world-ras.")
    ] = None,
) -> None:
    """Convert a click file; the form of IN is recognised by its content."""
    from prompts.click_files import read_clicks, write_clicks

    affine, shape = _grid_of(source, image)
    clicks = read_clicks(source, affine=affine, shape=shape)
    write_clicks(out, clicks, form=to, affine=affine, shape=shape)
    typer.echo(f"{out}: {len(clicks)} clicks")
    if to in ("autopet", "grand-challenge") and any(click.lesion is not None for click in clicks):
        typer.echo(f"note: the form {to} has no place for lesions; theirs were left out", err=True)
