"""Reads the images and the label of a case, as training and scoring need them."""

from __future__ import annotations

from collections.abc import Sequence

from sammed3d_ft.dataset.manifest import Case
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume, grid_difference
from sammed3d_ft.images.images import read_image, read_label


def read_case(case: Case, modalities: Sequence[str]) -> tuple[dict[str, Volume], Volume]:
    """Read a case's images of the given modalities, in this order, and its label.

    Raises:
        InputError: no label, a missing modality, an unreadable file, or a label on another grid than the first
            modality.
    """
    if case.label is None:
        raise InputError(f"case {case.id}: training and scoring need a label, but the manifest has none")
    missing = [name for name in modalities if name not in case.images]
    if missing:
        raise InputError(f"case {case.id}: the manifest has no {' and no '.join(missing)} image")
    images = {name: read_image(case.images[name], case=case.id) for name in modalities}
    label = read_label(case.label, case=case.id)
    if difference := grid_difference(label, images[modalities[0]]):
        raise InputError(f"case {case.id}: its label is on another grid than its {modalities[0]} ({difference})")
    return images, label
