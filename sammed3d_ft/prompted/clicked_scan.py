"""Reads a scan with a click file, a start mask, or both, and groups the clicks by lesion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prompts.click_files import read_clicks
from prompts.clicks import Click, clicks_to_vox
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume
from sammed3d_ft.images.images import read_image
from sammed3d_ft.prompted.predictor import MOST_LESION_NUMBER
from sammed3d_ft.prompted.start_lesions import StartLesions


@dataclass
class ClickedLesion:
    """The clicks of one lesion, in the file's order; no clicks for an unchanged lesion of the start mask."""

    number: int
    """Number in the instance map and the table, from 1."""
    name: int | str | None
    """The lesion's id in the click file."""
    positions_vox: list[np.ndarray] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    start: int | None = None
    """Index (from 1) of the lesion of `StartLesions` that it starts from."""


def group_clicks(
    clicks: Sequence[Click], coords_vox: np.ndarray, source: Path, start: StartLesions | None = None
) -> tuple[list[ClickedLesion], list[np.ndarray]]:
    """Group clicks into lesions, in the order of their first clicks; also return the clicks that apply to all lesions.

    A lesion whose id is a whole number from 1 to 2147483647 keeps it. Lesions with other ids get the lowest free
    numbers, and so does each foreground click without an id, which is a separate lesion. Background clicks without an
    id apply to all lesions.

    With a start mask, a click refines the lesion of the mask in which it lies, if it has no id, or the one whose number
    in the instance map is its id. A lesion with another id starts from the lesion of the mask in which its first click
    lies, if any. Lesions of the mask without clicks come last.

    Args:
        clicks: the clicks; at least one, unless there is a start mask.
        coords_vox: (N, 3) canonical voxels of the clicks.
        source: the click file, for error messages.
        start: the lesions of the start mask.

    Raises:
        InputError: no foreground click and no start mask; a lesion without a start mask whose first click is
            background; a foreground click whose id and position belong to different lesions of the start mask.
    """
    whole = {click.lesion for click in clicks if isinstance(click.lesion, int)}
    taken = {number for number in whole if 1 <= number <= MOST_LESION_NUMBER}
    taken |= set(start.numbers or ()) if start else set()
    most = len(clicks) + len(taken) + (start.count if start else 0)
    free = (number for number in range(1, most + 1) if number not in taken)
    lesions: list[ClickedLesion] = []
    by_name: dict[int | str, ClickedLesion] = {}
    by_start: dict[int, ClickedLesion] = {}
    background: list[np.ndarray] = []

    def of_mask(which: int) -> ClickedLesion:
        """The lesion for one of the start mask's lesions, with the mask's number if it has one."""
        if which not in by_start:
            number = next(free) if start is None or start.numbers is None else start.numbers[which - 1]
            by_start[which] = ClickedLesion(number, None, start=which)
            lesions.append(by_start[which])
        return by_start[which]

    for number, (click, position) in enumerate(zip(clicks, coords_vox, strict=True), start=1):
        name = click.lesion
        hit, named = (start.at(position), start.named(name)) if start else (None, None)
        if name is not None and name in by_name:
            lesion = by_name[name]
        elif name is not None and named is not None:
            if click.label == 1 and hit not in (None, named):
                there = hit if start is None or start.numbers is None else start.numbers[hit - 1]
                raise InputError(
                    f"{source}: point {number} is a foreground click of lesion {name}, but lies in lesion {there} of "
                    "the start mask; give it that lesion ID, or none"
                )
            lesion = by_name[name] = of_mask(named)
            lesion.name = name
        elif name is None and hit is not None:
            lesion = of_mask(hit)
        elif name is None and click.label == 0:
            background.append(position)
            continue
        elif click.label == 0 and hit is None:
            raise InputError(
                f"{source}: point {number}, the first click of lesion {name!r}, is background; "
                "start each lesion with a foreground click"
            )
        else:
            lesion = ClickedLesion(name if isinstance(name, int) and name in taken else next(free), name, start=hit)
            lesions.append(lesion)
            if name is not None:
                by_name[name] = lesion
        lesion.positions_vox.append(position)
        lesion.labels.append(click.label)
    if start is not None:
        started = {lesion.start for lesion in lesions}
        for which in range(1, start.count + 1):
            if which not in started:
                of_mask(which)
    elif not lesions:
        raise InputError(f"{source}: contains no foreground click; each lesion needs at least one")
    return lesions, background


@dataclass(frozen=True)
class ClickedScan:
    """An image, its clicks, and its start mask."""

    image: Path
    volume: Volume
    lesions: list[ClickedLesion]
    background_vox: list[np.ndarray]
    """Background clicks, canonical voxels, that apply to every lesion whose crop contains them."""
    start: StartLesions | None
    files: dict[str, Path]
    """The files read, keyed by image, clicks, start."""

    @classmethod
    def read(cls, image: Path, clicks: Path | None, start: Path | None = None) -> ClickedScan:
        """Read the files; without clicks, each lesion of the start mask is clicked at its deepest point.

        Raises:
            InputError: an invalid file, files that do not belong together, or neither clicks nor start mask.
        """
        if clicks is None and start is None:
            raise InputError(f"{image}: no clicks and no start mask; give --clicks or --start")
        volume = read_image(image)
        lesions_of_mask = None if start is None else StartLesions.read(start, image, volume)
        points: list[Click] = []
        if clicks is not None:
            points = read_clicks(clicks, affine=volume.source.affine, shape=volume.source.shape)
        coords_vox = clicks_to_vox(points, volume.affine)
        lesions, background = group_clicks(points, coords_vox, clicks or image, lesions_of_mask)
        if clicks is None and lesions_of_mask is not None:
            for lesion in lesions:
                assert lesion.start is not None  # all are the mask's
                lesion.positions_vox.append(lesions_of_mask.deepest_vox(lesion.start, volume.spacing_mm))
                lesion.labels.append(1)
        given = {"image": image, "clicks": clicks, "start": start}
        files = {kind: path for kind, path in given.items() if path is not None}
        return cls(image, volume, lesions, background, lesions_of_mask, files)
