"""A scan with a file of clicks, a mask to start from, or both: read, checked, and grouped by lesion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prompts.click_files import read_clicks
from prompts.clicks import Click, clicks_to_vox
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.images import Volume, read_image
from sammed3d_ft.prompted.predictor import MOST_LESION_NUMBER
from sammed3d_ft.prompted.start_lesions import StartLesions


@dataclass
class ClickedLesion:
    """The clicks of one lesion, in the file's order; none for a lesion of the starting mask that stays as it is."""

    number: int
    """In the instance image and the table, from 1."""
    name: int | str | None
    """What the click file calls it."""
    positions_vox: list[np.ndarray] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    start: int | None = None
    """The lesion of `StartLesions` that it starts from."""


def group_clicks(
    clicks: Sequence[Click], coords_vox: np.ndarray, source: Path, start: StartLesions | None = None
) -> tuple[list[ClickedLesion], list[np.ndarray]]:
    """The lesions of a click file, in the order of their first clicks, and the clicks that belong to all.

    A lesion whose id is a whole number from 1 to 2147483647 keeps it; other ids, and foreground clicks without one
    (each is a lesion of its own), get the lowest free numbers. Background clicks without an id belong to all lesions.

    With a mask to start from, a click without an id that lies in one of its lesions refines that lesion, and so
    does one whose id is the lesion's number in an instance map. A lesion with another id starts from the one that
    its first click lies in, if any. Lesions of the mask that no click refines come last, without clicks.

    Args:
        clicks: the clicks; at least one, unless there is a mask.
        coords_vox: (N, 3) of the clicks, canonical voxels.
        source: the click file, for messages.
        start: the lesions of a mask.

    Raises:
        InputError: no foreground click at all and no mask; a lesion whose first click is background and that has
            no mask to take it away from; or one that is a lesion of the mask by its id and another by its place.
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
        """The lesion that is one of the mask's own, with its number where it has one."""
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
                    f"{source}: point {number} is foreground of lesion {name}, but lies in lesion {there} of the mask "
                    "to start from; give it that number, or leave its id out"
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
                f"{source}: point {number} is the first of lesion {name!r} and background; "
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
        raise InputError(f"{source}: holds no foreground click; each lesion needs at least one")
    return lesions, background


@dataclass(frozen=True)
class ClickedScan:
    """What is to be segmented: an image, where it was clicked, and what to start from."""

    image: Path
    volume: Volume
    lesions: list[ClickedLesion]
    background_vox: list[np.ndarray]
    """Clicks that count for every lesion whose crop holds them, canonical voxels."""
    start: StartLesions | None
    files: dict[str, Path]
    """What it was read from, by kind: image, clicks, start."""

    @classmethod
    def read(cls, image: Path, clicks: Path | None, start: Path | None = None) -> ClickedScan:
        """Reads them; without clicks the deepest point of each lesion of the mask is its click.

        Raises:
            InputError: whatever is wrong with one of them, or if they do not belong together; neither clicks nor mask.
        """
        if clicks is None and start is None:
            raise InputError(f"{image}: nothing says where its lesions are; give --clicks, or a mask by --start")
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
