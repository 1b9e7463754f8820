"""Published scoring rules, to reproduce published numbers: each is a function of two masks that returns flat columns.

These rules follow their sources; our own metrics (`metrics`) differ on purpose. The rules never fail: where a source
divides 0 by 0, the column is NaN (n/a), unless the convention says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.components import Components, foreground
from sammed3d_ft.evaluation.matching import Overlaps, best_overlaps, overlaps
from sammed3d_ft.evaluation.results import NOT_DEFINED

Shape = tuple[int, int, int]
_Columns = Callable[[np.ndarray, np.ndarray, Shape, np.ndarray, np.ndarray | None], dict[str, float]]

_C2_IOU = 0.5
_BRATS_METS_LEAVES_OUT_MM3 = 2.0


@dataclass(frozen=True)
class CompatRule:
    """One published rule for scoring a case."""

    convention: str
    source: str
    columns: _Columns


def compat_columns(
    name: str,
    gt: np.ndarray,
    pred: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    pet: np.ndarray | None = None,
) -> dict[str, float]:
    """Score one case by the rule `COMPAT` lists under ``name``.

    Args:
        name: a key of `COMPAT`.
        gt: (x, y, z) ground-truth mask; every non-zero value is lesion.
        pred: (x, y, z) predicted mask; every non-zero value is lesion.
        spacing_mm: (3,) voxel size in mm.
        pet: (x, y, z) PET in SUV; only C3 of ``l1dfl`` uses it, and is NaN without it.

    Returns:
        Columns, whose names begin with the rule's name.

    Raises:
        InputError: an unknown rule, or shapes that differ.
    """
    if name not in COMPAT:
        raise InputError(f"unknown scoring rule {name!r}; expected one of {', '.join(COMPAT)}")
    for what, array in (("prediction", pred), ("PET", pet)):
        if array is not None and array.shape != gt.shape:
            raise InputError(f"{what} has shape {array.shape}, the ground truth {gt.shape}: resample to one grid")
    x, y, z = gt.shape
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    columns = COMPAT[name].columns(foreground(gt), foreground(pred), (x, y, z), spacing, pet)
    prefix = name.replace("-", "_")
    return {f"{prefix}_{column}": float(value) for column, value in columns.items()}


def _l1dfl(
    truth_voxels: np.ndarray, pred_voxels: np.ndarray, shape: Shape, spacing: np.ndarray, pet: np.ndarray | None
) -> dict[str, float]:
    truth, pred = (Components.connected(voxels, shape, 18) for voxels in (truth_voxels, pred_voxels))
    pairs = overlaps(truth, pred)
    voxel_ml = float(np.prod(spacing)) / 1000
    columns = {
        "dice": _ratio(2 * pairs.shared_voxels.sum(), len(truth_voxels) + len(pred_voxels)),
        "fpv_ml": _untouched(pred, pairs.pred) * voxel_ml,
        "fnv_ml": _untouched(truth, pairs.truth) * voxel_ml,
    }
    columns |= _counts("c1", np.unique(pairs.pred), np.unique(pairs.truth), pairs)
    best = best_overlaps(pairs.pred, pairs.truth, pairs.iou, pairs.n_pred)
    chosen = np.flatnonzero(pairs.truth == best[pairs.pred])  # each prediction with its lesion of highest IoU
    enough = chosen[pairs.iou[chosen] >= _C2_IOU]
    columns |= _counts("c2", pairs.pred[enough], pairs.truth[enough], pairs)
    if pet is None:
        return columns | dict.fromkeys(_count_names("c3"), NOT_DEFINED)
    hottest = np.array([_hottest(voxels, pet) for voxels in truth.by_lesion()], np.int64)
    at = np.searchsorted(pred.voxels, hottest)
    at[at == len(pred.voxels)] = 0
    holder = np.full(truth.count, -1)  # the prediction that contains each lesion's hottest voxel
    if len(pred.voxels):
        held = pred.voxels[at] == hottest
        holder[held] = pred.labels[at[held]] - 1
    hit = chosen[holder[pairs.truth[chosen]] == pairs.pred[chosen]]
    return columns | _counts("c3", pairs.pred[hit], pairs.truth[hit], pairs)


def _hottest(voxels: np.ndarray, pet: np.ndarray) -> int:
    """Flat index of the highest SUV in a lesion; the first one if several are equal."""
    return int(voxels[np.argmax(pet[np.unravel_index(voxels, pet.shape)])])


def _counts(name: str, hits: np.ndarray, found: np.ndarray, pairs: Overlaps) -> dict[str, float]:
    """Columns of one criterion: predictions that meet it (``hits``), and lesions they meet it with (``found``)."""
    tp, fp, fn = len(hits), pairs.n_pred - len(hits), pairs.n_truth - len(np.unique(found))
    values = (tp, fp, fn, _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fp + fn))
    return dict(zip(_count_names(name), values, strict=True))


def _count_names(name: str) -> list[str]:
    return [f"{what}_{name}" for what in ("tp", "fp", "fn", "sensitivity", "f1")]


def _autopet(
    truth_voxels: np.ndarray, pred_voxels: np.ndarray, shape: Shape, spacing: np.ndarray, pet: np.ndarray | None
) -> dict[str, float]:
    truth, pred = (Components.connected(voxels, shape, 18) for voxels in (truth_voxels, pred_voxels))
    pairs = overlaps(truth, pred)
    voxel_ml = float(np.prod(spacing)) / 1000
    has_lesions = len(truth_voxels) > 0
    dice = _ratio(2 * pairs.shared_voxels.sum(), len(truth_voxels) + len(pred_voxels))
    return {
        "dice": dice if has_lesions else NOT_DEFINED,
        "fpv_ml": _untouched(pred, pairs.pred) * voxel_ml,
        "fnv_ml": _untouched(truth, pairs.truth) * voxel_ml if has_lesions else NOT_DEFINED,
    }


def _deep_psma(
    truth_voxels: np.ndarray, pred_voxels: np.ndarray, shape: Shape, spacing: np.ndarray, pet: np.ndarray | None
) -> dict[str, float]:
    truth_contour, pred_contour = (_contour(voxels, shape) for voxels in (truth_voxels, pred_voxels))
    shared = len(np.intersect1d(truth_contour, pred_contour, assume_unique=True))
    surface_dice = _ratio(2 * shared, len(truth_contour) + len(pred_contour))
    columns = _autopet(truth_voxels, pred_voxels, shape, spacing, pet)
    return columns | {"surface_dice_0mm": surface_dice if len(truth_voxels) else NOT_DEFINED}


def _contour(voxels: np.ndarray, shape: Shape) -> np.ndarray:
    """Foreground voxels that share a face with a background voxel; outside the volume does not count as background."""
    coords = np.stack(np.unravel_index(voxels, shape))
    open_face = np.zeros(len(voxels), bool)
    for axis, step in product(range(3), (-1, 1)):
        inside = (coords[axis] + step >= 0) & (coords[axis] + step < shape[axis])
        neighbour = voxels + step * int(np.prod(shape[axis + 1 :]))
        open_face |= inside & ~_among(voxels, neighbour)
    return voxels[open_face]


def _among(sorted_voxels: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """(n,) bool: which of ``wanted`` are among ``sorted_voxels``."""
    if len(sorted_voxels) == 0:
        return np.zeros(len(wanted), bool)
    at = np.minimum(np.searchsorted(sorted_voxels, wanted), len(sorted_voxels) - 1)
    return sorted_voxels[at] == wanted


def _brats_mets(
    truth_voxels: np.ndarray, pred_voxels: np.ndarray, shape: Shape, spacing: np.ndarray, pet: np.ndarray | None
) -> dict[str, float]:
    pred = Components.connected(pred_voxels, shape, 26)
    dilated = Components.connected(_dilated(truth_voxels, shape), shape, 26)
    # Ground-truth lesions whose dilations meet form one lesion, made of their undilated voxels.
    lesion = dilated.labels[np.searchsorted(dilated.voxels, truth_voxels)]
    truth = Components(truth_voxels, lesion, dilated.count)
    pairs, touching = overlaps(truth, pred), overlaps(dilated, pred)
    shared_voxels = np.bincount(pairs.truth, pairs.shared_voxels, minlength=truth.count)
    touched_voxels = np.bincount(touching.truth, pred.sizes[touching.pred], minlength=truth.count)
    dice = 2 * shared_voxels / (truth.sizes + touched_voxels)
    counted = truth.sizes * float(np.prod(spacing)) > _BRATS_METS_LEAVES_OUT_MM3
    found = touched_voxels > 0
    false_positives = pred.count - len(np.unique(touching.pred))
    lesions = int(counted.sum()) + false_positives
    return {
        "lesion_dice": dice[counted].sum() / lesions if lesions else 1.0,
        "tp": (found & counted).sum(),
        "fp": false_positives,
        "fn": (~found & counted).sum(),
    }


def _dilated(voxels: np.ndarray, shape: Shape) -> np.ndarray:
    """Foreground after one dilation by the 18-neighbourhood (shared face or edge), within the volume."""
    coords = np.stack(np.unravel_index(voxels, shape), axis=1)
    grown = [voxels]
    for step in product((-1, 0, 1), repeat=3):
        if 1 <= np.abs(step).sum() <= 2:
            moved = coords + step
            inside = ((moved >= 0) & (moved < shape)).all(axis=1)
            grown.append(np.ravel_multi_index(tuple(moved[inside].T), shape))
    return np.unique(np.concatenate(grown))


def _untouched(components: Components, touched: np.ndarray) -> int:
    """Number of voxels of the lesions that are in no overlapping pair."""
    alone = np.ones(components.count, bool)
    alone[touched] = False
    return int(components.sizes[alone].sum())


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else NOT_DEFINED


COMPAT: dict[str, CompatRule] = {
    "l1dfl": CompatRule(
        convention=(
            "18-connectivity; tp and fp count predictions, each judged separately; fn counts ground-truth lesions that "
            "no prediction found. c1: any shared voxel; c2: IoU >= 0.5 with the lesion of highest IoU; c3: contains "
            "the SUVmax voxel of that lesion. Of the pieces of a split lesion, all count in c1, at most one in c2 and "
            "c3. Empty ground truth: FNV 0, Dice 0 (n/a if both are empty)"
        ),
        source="Dzikunu et al., arXiv 2502.02756; ObedDzik/pca_segment, metrics/metrics.py",
        columns=_l1dfl,
    ),
    "autopet": CompatRule(
        convention=(
            "Dice of the case; FPV and FNV: volume in ml of 18-connected components that share no voxel with the other "
            "mask; with empty ground truth only FPV is defined"
        ),
        source="autoPET I to IV (grand-challenge.org); lab-midas/autoPET, val_script.py",
        columns=_autopet,
    ),
    "deep-psma": CompatRule(
        convention=(
            "as autopet, plus surface Dice at 0 mm: 2 x shared contour voxels / contour voxels of both; a contour "
            "voxel is foreground that shares a face with background (outside the volume does not count)"
        ),
        source="DEEP-PSMA (grand-challenge.org); Peter-MacCallum-Cancer-Centre/DEEP-PSMA, evaluation.py",
        columns=_deep_psma,
    ),
    "brats-mets": CompatRule(
        convention=(
            "26-connectivity; ground-truth lesions whose dilations by one voxel (18 neighbours) meet are merged; each "
            "is compared with all predictions that its dilation touches; fp are predictions that no dilation touches; "
            "lesion Dice = sum of Dice / (lesions + fp), 1 if there are neither; lesions of at most 2 mm^3 are excluded"
        ),
        source="BraTS-METS 2023, Moawad et al., arXiv 2306.00838; rachitsaluja/BraTS-2023-Metrics, eval.py",
        columns=_brats_mets,
    ),
}
"""By the name given to ``--compat``."""
