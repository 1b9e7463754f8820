"""A simulated user, on the scan's own grid: clicks each lesion, then corrects the predicted mask."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from scipy import ndimage

from prompts.clicks import Click
from prompts.corrections import next_click
from prompts.first_clicks import first_click
from prompts.lesions import lesions_from_mask
from sammed3d_ft.dataset.case_images import read_case
from sammed3d_ft.dataset.manifest import Case
from sammed3d_ft.images.crops import Region
from sammed3d_ft.images.grids import Volume


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
    def remove(self, lesion: int) -> None: ...  # forgets a lesion that was clicked


@runtime_checkable
class EncodesAhead(Protocol):
    """A method that works faster if it knows the first clicks of all lesions, such as `Predictor` on a GPU."""

    def encode_ahead(self, positions_vox: Iterable[Any]) -> None: ...


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
    # The union of the lesions after each number of clicks, eight of them in the bits of one array.
    unions = np.zeros((-(-len(clicks_at) // 8), *label.array.shape), np.uint8)
    unions_at = {k: (unions[place // 8], np.uint8(1 << place % 8)) for place, k in enumerate(clicks_at)}
    boxes = list(enumerate(ndimage.find_objects(lesions, max_label=count), start=1))
    first_vox = [_deepest_vox(lesions[box] == number, box, label) for number, box in boxes]
    if isinstance(model, EncodesAhead):
        model.encode_ahead(first_vox)
    scores, clicks = [], []
    for (number, box), position in zip(boxes, first_vox, strict=True):
        own = Region.of([side.start for side in box], [side.stop for side in box])
        truth, sign = lesions[box] == number, 1
        size = int(np.count_nonzero(truth))
        dice: dict[int, float] = {}
        iou: dict[int, float] = {}
        done = False
        for k in range(1, rounds + 1):
            if not done:
                clicks.append(Click(_triple(label.to_mm(position)), sign, number))
                prediction = model.add_click(position, label=sign, lesion=number)
                region, current = prediction.region, prediction.mask
                seen = np.zeros(region.shape, bool)
                if (both := own.overlap(region)) is not None:
                    seen[both.within(region)] = truth[both.within(own)]
                current_dice = 2 * int(np.count_nonzero(current & seen)) / (int(np.count_nonzero(current)) + size)
                correction = next_click(
                    torch.from_numpy(np.ascontiguousarray(current))[None],
                    torch.from_numpy(seen)[None],
                    strategy="error_deepest",
                    keys=[(0, k)],  # the strategy draws nothing
                    spacing_mm=label.spacing_mm,
                )
                sign = int(correction.labels[0])
                position = correction.coords_vox[0].double().numpy() + np.array(region.start)
                done = sign < 0
            if k in unions_at:
                dice[k], iou[k] = current_dice, prediction.predicted_iou
                union, bit = unions_at[k][0][region.slices], unions_at[k][1]
                np.bitwise_or(union, bit, out=union, where=current)
        model.remove(number)  # what it keeps for further clicks adds up over the lesions of a scan
        scores.append(LesionScore(number, size * voxel_ml, dice, iou))
    in_truth, case_dice = np.flatnonzero(lesions), {}
    for k, (union, bit) in unions_at.items():
        predicted = union & bit
        overlap = int(np.count_nonzero(predicted.ravel()[in_truth]))
        case_dice[k] = 2 * overlap / max(int(np.count_nonzero(predicted)) + len(in_truth), 1)
        if on_mask is not None:
            on_mask(k, predicted > 0)
    return CaseScore(case, case_dice if count else None, tuple(scores), tuple(clicks))


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


def _deepest_vox(lesion: np.ndarray, box: tuple[slice, ...], label: Volume) -> np.ndarray:
    """The first click on a lesion, given as a bool array in its box: (3,) float64 voxel of the scan."""
    click = first_click(torch.from_numpy(lesion)[None], strategy="deepest", keys=[(0,)], spacing_mm=label.spacing_mm)
    position: np.ndarray = click.coords_vox[0].double().numpy() + [side.start for side in box]
    return position


def _triple(position: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(p) for p in position)
    return x, y, z
