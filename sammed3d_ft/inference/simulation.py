"""A simulated user on the scan's own grid: clicks each lesion, sees the predicted mask, corrects it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from prompts import Click, first_click, lesions_from_mask, next_click
from prompts.errors import InputError
from sammed3d_ft.data.images import Volume, read_image, read_label
from sammed3d_ft.data.manifest import Case
from sammed3d_ft.inference.predictor import Predictor


@dataclass(frozen=True)
class LesionScore:
    """One lesion's Dice after k clicks."""

    lesion: int
    volume_ml: float
    dice: dict[int, float]
    predicted_iou: dict[int, float]


@dataclass(frozen=True)
class CaseScore:
    """One case's Dice after k clicks on each of its lesions; None where the label is empty."""

    case: str
    dice: dict[int, float] | None
    lesions: tuple[LesionScore, ...]
    clicks: tuple[Click, ...]


def simulate_case(
    predictor: Predictor,
    images: Mapping[str, Volume],
    label: Volume,
    clicks_at: Sequence[int],
    *,
    case: str,
    connectivity: int = 18,
    targets: str = "each",
    key: tuple[int, ...] = (0,),
) -> CaseScore:
    """Dice after k clicks, on the grid of the images.

    The first click is the lesion's deepest point; each further one the deepest point of the error between
    mask and truth. A perfect mask gets no further click and keeps its score. All is deterministic.

    Args:
        predictor: used from scratch; its image is replaced.
        images: by modality.
        label: truth on the first modality's grid.
        clicks_at: numbers of clicks per lesion at which to score.
        case: the case's id.
        connectivity: of lesions.
        targets: "each" lesion clicked by itself, or "all" as one.
        key: of the click draws (the strategies used draw nothing, but need one).
    """
    predictor.set_image(images)
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
        click = first_click(
            torch.from_numpy(truth)[None], strategy="deepest", keys=[key], spacing_mm=label.spacing_mm
        )
        position, sign = click.coords_vox[0].double().numpy(), 1
        dice: dict[int, float] = {}
        iou: dict[int, float] = {}
        current, current_iou, done = None, 0.0, False
        for k in range(1, rounds + 1):
            if not done:
                clicks.append(Click(_triple(label.to_mm(position)), sign, number))
                prediction = predictor.add_click(position, label=sign, lesion=number)
                region, current_iou = prediction.region, prediction.predicted_iou
                current = prediction.logits > 0
                inside = truth[region.slices]
                correction = next_click(
                    torch.from_numpy(current)[None],
                    torch.from_numpy(np.ascontiguousarray(inside))[None],
                    strategy="error_deepest",
                    keys=[(*key, k)],
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
    whole = lesions > 0
    case_dice = None
    if count:
        case_dice = {
            k: 2 * int((mask & whole).sum()) / (int(mask.sum()) + int(whole.sum()))
            for k, mask in union.items()
        }
    return CaseScore(case, case_dice, tuple(scores), tuple(clicks))


def simulate_files(
    predictor: Predictor, case: Case, clicks_at: Sequence[int], *, connectivity: int = 18, targets: str = "each"
) -> CaseScore:
    """`simulate_case` of a manifest's case: its images, as far as the model sees them, and its label.

    Raises:
        InputError: no label, or a file that cannot be read.
    """
    if case.label is None:
        raise InputError(f"case {case.id}: scoring needs a label, the manifest names none")
    images = {name: read_image(case.images[name], case=case.id) for name in predictor.preprocessing.modalities}
    label = read_label(case.label, case=case.id)
    return simulate_case(
        predictor, images, label, clicks_at, case=case.id, connectivity=connectivity, targets=targets
    )


def _triple(position: np.ndarray) -> tuple[float, float, float]:
    x, y, z = (float(p) for p in position)
    return x, y, z
