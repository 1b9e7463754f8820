"""A scan with a file of clicks, read and checked, its clicks grouped by lesion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from prompts.click_files import read_clicks
from prompts.clicks import Click, clicks_to_vox
from prompts.errors import InputError
from sammed3d_ft.data.images import Volume, read_image


@dataclass
class ClickedLesion:
    """The clicks of one lesion, in the file's order."""

    number: int
    """In the instance image and the table, from 1."""
    name: int | str | None
    """What the click file calls it."""
    positions_vox: list[np.ndarray] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def group_clicks(
    clicks: Sequence[Click], coords_vox: np.ndarray, source: Path
) -> tuple[list[ClickedLesion], list[np.ndarray]]:
    """The lesions of a click file, in the order of their first clicks, and the clicks that belong to all.

    A lesion whose id is a whole number from 1 keeps it; other ids, and foreground clicks without one (each is
    a lesion of its own), get the lowest free numbers. Background clicks without an id belong to all lesions.

    Args:
        clicks: at least one.
        coords_vox: (N, 3) of the clicks, canonical voxels.
        source: the click file, for messages.

    Raises:
        InputError: no foreground click at all, or a lesion whose first click is background.
    """
    taken = {click.lesion for click in clicks if isinstance(click.lesion, int) and click.lesion >= 1}
    free = (number for number in range(1, len(clicks) + len(taken) + 1) if number not in taken)
    lesions: list[ClickedLesion] = []
    by_name: dict[int | str, ClickedLesion] = {}
    background: list[np.ndarray] = []
    for number, (click, position) in enumerate(zip(clicks, coords_vox, strict=True), start=1):
        name = click.lesion
        if name is None and click.label == 0:
            background.append(position)
            continue
        lesion = None if name is None else by_name.get(name)
        if lesion is None:
            if click.label == 0:
                raise InputError(
                    f"{source}: point {number} is the first of lesion {name!r} and background; "
                    "start each lesion with a foreground click"
                )
            lesion = ClickedLesion(name if isinstance(name, int) and name in taken else next(free), name)
            lesions.append(lesion)
            if name is not None:
                by_name[name] = lesion
        lesion.positions_vox.append(position)
        lesion.labels.append(click.label)
    if not lesions:
        raise InputError(f"{source}: holds no foreground click; each lesion needs at least one")
    return lesions, background


@dataclass(frozen=True)
class ClickedScan:
    """What is to be segmented: an image and where it was clicked."""

    image: Path
    clicks: Path
    volume: Volume
    lesions: list[ClickedLesion]
    background_vox: list[np.ndarray]
    """Clicks that count for every lesion whose crop holds them, canonical voxels."""

    @classmethod
    def read(cls, image: Path, clicks: Path) -> ClickedScan:
        """Reads both; `InputError` for whatever is wrong with either, or if they do not belong together."""
        volume = read_image(image)
        points = read_clicks(clicks, affine=volume.source.affine, shape=volume.source.shape)
        lesions, background = group_clicks(points, clicks_to_vox(points, volume.affine), clicks)
        return cls(image, clicks, volume, lesions, background)
