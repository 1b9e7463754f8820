"""A simulated user, on the scan's own grid: clicks each lesion, then corrects the predicted mask."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from prompts.clicks import Click
from prompts.corrections import next_click
from prompts.first_clicks import first_click
from prompts.lesions import lesions_from_mask
from sammed3d_ft.dataset.manifest import Case
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.crops import Region
from sammed3d_ft.images.images import Volume, grid_difference, read_image, read_label


class SegmentedLesion(Protocol):
    """The result of a click: the lesion's mask inside a region of the volume."""

    @property
    def region(self) -> Region: ...
    @property
    def mask(self) -> np.ndarray: ...  # region.shape, bool
    @property
    def predicted_iou(self) -> float: ...  # NaN if the method predicts none


class Clickable(Protocol):
    """A method that turns clicks into lesions: `Predictor`, a threshold rule, or a 2D model slice by slice."""

    @property
    def modalities(self) -> tuple[str, ...]: ...  # required images; the case has the grid of the first
    def set_image(self, images: Mapping[str, Volume]) -> None: ...  # removes all lesions
    def add_click(self, position_vox: Any, label: int = 1, lesion: int = 1) -> SegmentedLesion: ...


@dataclass(frozen=True)
class LesionScore:
    """Dice and predicted IoU of one lesion, by number of clicks."""

    lesion: int
    volume_ml: float
    dice: dict[int, float]
    predicted_iou: dict[int, float]


@dataclass(frozen=True)
class CaseScore:
    """Dice of one case, by number of clicks on each of its lesions; None if the label is empty."""

    case: str
    dice: dict[int, float] | None
    lesions: tuple[LesionScore, ...]
    clicks: tuple[Click, ...]


def simulate_case(
    model: Clickable,
    images: Mapping[str, Volume],
    label: Volume,
    clicks_at: Sequence[int],
    *,
    case: str,
    connectivity: int = 18,
    targets: str = "each",
    on_mask: Callable[[int, np.ndarray], None] | None = None,
) -> CaseScore:
    """Dice after k clicks per lesion, on the grid of the images.

    The first click is the lesion's deepest point. Each further click is the deepest point of the error inside the
    region that the model predicted. A perfect mask gets no further click and keeps its score. Deterministic.

    Args:
        model: the method; its image and lesions are replaced.
        images: images by modality.
        label: ground truth on the first modality's grid.
        clicks_at: numbers of clicks per lesion at which to score.
        case: case ID.
        connectivity: connectivity of lesions.
        targets: "each" clicks every lesion separately, "all" treats them as one.
        on_mask: called with k and the union of all lesions after k clicks on each, (X, Y, Z) bool, canonical.
    """
    model.set_image(images)
    lesions, count = lesions_from_mask(label.array, connectivity)
    if targets == "all":
        lesions, count = (lesions > 0).astype(np.int32), min(count, 1)
    voxel_ml = float(label.spacing_mm.prod()) / 1000
    rounds = max(clicks_at)
    union = {k: np.zeros(label.array.shape, bool) for k in clicks_at}
    scores, clicks = [], []
    for number in range(1, count + 1):
        truth = lesions == number
        size = int(truth.sum())
        click = first_click(torch.from_numpy(truth)[None], strategy="deepest", keys=[(0,)], spacing_mm=label.spacing_mm)
        position, sign = click.coords_vox[0].double().numpy(), 1
        dice: dict[int, float] = {}
        iou: dict[int, float] = {}
        current, current_iou, done = None, 0.0, False
        for k in range(1, rounds + 1):
            if not done:
                clicks.append(Click(_triple(label.to_mm(position)), sign, number))
                prediction = model.add_click(position, label=sign, lesion=number)
                region, current_iou = prediction.region, prediction.predicted_iou
                current = prediction.mask
                inside = truth[region.slices]
                correction = next_click(
                    torch.from_numpy(np.ascontiguousarray(current))[None],
                    torch.from_numpy(np.ascontiguousarray(inside))[None],
                    strategy="error_deepest",
                    keys=[(0, k)],  # the strategy draws nothing
                    spacing_mm=label.spacing_mm,
                )
                sign = int(correction.labels[0])
                position = correction.coords_vox[0].double().numpy() + np.array(region.start)
                done = sign < 0
            assert current is not None
            if k in union:
                overlap = int((current & truth[region.slices]).sum())
                dice[k] = 2 * overlap / (int(current.sum()) + size)
                iou[k] = current_iou
                union[k][region.slices] |= current
        scores.append(LesionScore(number, size * voxel_ml, dice, iou))
    if on_mask is not None:
        for k, mask in union.items():
            on_mask(k, mask)
    whole = lesions > 0
    case_dice = None
    if count:
        case_dice = {
            k: 2 * int((mask & whole).sum()) / (int(mask.sum()) + int(whole.sum())) for k, mask in union.items()
        }
    return CaseScore(case, case_dice, tuple(scores), tuple(clicks))


def simulate_files(
    model: Clickable,
    case: Case,
    clicks_at: Sequence[int],
    *,
    connectivity: int = 18,
    targets: str = "each",
) -> CaseScore:
    """`simulate_case` for a case of a manifest.

    Raises:
        InputError: see `read_case`.
    """
    images, label = read_case(case, model.modalities)
    return simulate_case(model, images, label, clicks_at, case=case.id, connectivity=connectivity, targets=targets)


def read_case(case: Case, modalities: Sequence[str]) -> tuple[dict[str, Volume], Volume]:
    """Read a case's images of the given modalities and its label.

    Raises:
        InputError: no label, a missing modality, an unreadable file, or a label on another grid than the first
            modality.
    """
    if case.label is None:
        raise InputError(f"case {case.id}: scoring needs a label, but the manifest has none")
    missing = [name for name in modalities if name not in case.images]
    if missing:
        raise InputError(f"case {case.id}: the manifest has no {' and no '.join(missing)} image")
    images = {name: read_image(case.images[name], case=case.id) for name in modalities}
    label = read_label(case.label, case=case.id)
    if difference := grid_difference(label, images[modalities[0]]):
        raise InputError(f"case {case.id}: its label is on another grid than its {modalities[0]} ({difference})")
    return images, label


def _triple(position: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(p) for p in position)
    return x, y, z
