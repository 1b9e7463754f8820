"""Evaluates one case: a predicted mask against the true one, with the PET where there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prompts.errors import InputError
from prompts.lesions import CONNECTIVITIES, lesions_from_mask
from sammed3d_ft.evaluation.detection import NOT_DEFINED, Detection
from sammed3d_ft.evaluation.matching import Components, Fates, Matching, fates, match, overlaps
from sammed3d_ft.evaluation.metrics import HEADLINE_IOU, IOU_THRESHOLDS, NSD_TOLERANCES_MM
from sammed3d_ft.evaluation.surface import hd95_mm, nsd, surface_distances
from sammed3d_ft.lesions.diameter import dmax_cm
from sammed3d_ft.lesions.peak import sphere_margin_vox
from sammed3d_ft.lesions.table import Lesion, lesion_table


@dataclass(frozen=True)
class MaskQuantities:
    """What one mask says of the patient. SUV quantities are NaN for an empty mask and without PET."""

    lesions: int
    volume_ml: float
    dmax_cm: float
    suv_max: float
    suv_mean: float
    suv_peak: float
    tla: float


@dataclass(frozen=True)
class LesionResult:
    """A true lesion with what became of it, or a predicted lesion that no true one was matched with."""

    source: str
    """``truth`` or ``prediction``."""
    lesion: Lesion
    fate: str
    """truth: matched, merged, low_iou, missed; prediction: fragment, low_iou, isolated; see `fates`."""
    partner_id: int | None
    """Number of the lesion on the other side that it is matched with, or that explains the fate."""
    iou: float
    """With the match; 0 for a truth without one, NaN for a prediction."""
    dice: float
    """With the match; 0 for a truth without one, NaN for a prediction."""
    volume_error_ml: float
    """Matched prediction minus truth; NaN without a match."""

    def as_row(self) -> dict[str, Any]:
        return {
            "source": self.source,
            **self.lesion.as_row(),
            "fate": self.fate,
            "partner_id": self.partner_id,
            "iou": self.iou,
            "dice": self.dice,
            "volume_error_ml": self.volume_error_ml,
        }


@dataclass(frozen=True)
class CaseResult:
    """All metrics of one case. NaN means not defined (n/a); `metrics.METRICS` states each convention."""

    dice: float
    iou: float
    nsd: dict[float, float]
    """By tolerance in mm."""
    hd95_mm: float
    fpv_ml: float
    fnv_ml: float
    detection: dict[float, Detection]
    """By IoU threshold."""
    lesion_dice: float
    splits: int
    merges: int
    suvmax_hit_recall: float
    truth: MaskQuantities
    pred: MaskQuantities
    lesions: tuple[LesionResult, ...]
    """Every true lesion, then every unmatched prediction, at the headline IoU threshold."""

    def as_row(self) -> dict[str, Any]:
        """Flat columns, in the order of `metrics.METRICS`."""
        row: dict[str, Any] = {"dice": self.dice, "iou": self.iou}
        row |= {f"nsd_{tolerance:g}mm": value for tolerance, value in self.nsd.items()}
        row |= {"hd95_mm": self.hd95_mm, "fpv_ml": self.fpv_ml, "fnv_ml": self.fnv_ml}
        for threshold, counts in self.detection.items():
            for name in ("f1", "precision", "recall", "tp", "fp", "fn"):
                row[f"{name}_iou{threshold:g}"] = getattr(counts, name)
        row |= {"pq_iou0.5": self.detection[0.5].pq, "lesion_dice": self.lesion_dice}
        row |= {"splits": self.splits, "merges": self.merges, "suvmax_hit_recall": self.suvmax_hit_recall}
        for mask, of in (("truth", self.truth), ("pred", self.pred)):
            for name in ("lesions", "volume_ml", "dmax_cm", "suv_max", "suv_mean", "suv_peak", "tla"):
                row[f"{mask}_{name}"] = getattr(of, name)
        return row


def evaluate_case(
    gt: np.ndarray,
    pred: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    pet: np.ndarray | None = None,
    connectivity: int = 18,
    affine: np.ndarray | None = None,
) -> CaseResult:
    """Compare a predicted mask with the true one.

    Args:
        gt: (x, y, z) true mask, bool or 0/1.
        pred: (x, y, z) predicted mask, bool or 0/1.
        spacing_mm: (3,) voxel size along x, y, z in mm.
        pet: (x, y, z) PET in SUV on the same grid, if there is one.
        connectivity: 6, 18 or 26: which voxels that touch belong to one lesion. No lesion is too small to
            count.
        affine: (4, 4) voxel index to world mm, so that lesion centroids are in world mm; without it voxel
            (0, 0, 0) is at the origin.

    Returns:
        The metrics; each definition and its value for empty masks is in `sammed3d_ft.evaluation.METRICS`.

    Raises:
        InputError: shapes that differ, masks that hold other values than 0 and 1, PET that is not finite, an
            impossible spacing or connectivity, or an affine of another voxel size.
    """
    spacing, affine = _geometry(spacing_mm, affine)
    if connectivity not in CONNECTIVITIES:
        raise InputError(f"connectivity is {connectivity}; it must be one of 6, 18 or 26")
    truth_mask, pred_mask = _binary(gt, "truth"), _binary(pred, "prediction")
    for name, array in (("prediction", pred), ("PET", pet)):
        if array is not None and array.shape != gt.shape:
            raise InputError(
                f"{name} has shape {array.shape}, the truth {gt.shape}: bring both onto one grid"
            )

    # All work happens in the box of both masks; the margin keeps every sphere of SUVpeak whole.
    box = _box(truth_mask, pred_mask, sphere_margin_vox(affine) if pet is not None else np.zeros(3, np.int64))
    truth_mask, pred_mask = truth_mask[box], pred_mask[box]
    pet = None if pet is None else pet[box]
    if pet is not None and not np.isfinite(pet.sum(dtype=np.float64)):
        raise InputError("PET holds NaN or infinite values in or near the lesions: repair the image")
    affine = affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array([side.start for side in box])

    truth, truth_lesions = _lesions(truth_mask, connectivity, affine, pet)
    prediction, pred_lesions = _lesions(pred_mask, connectivity, affine, pet)
    pairs = overlaps(truth, prediction)
    matchings = {threshold: match(pairs, threshold) for threshold in IOU_THRESHOLDS}
    headline = matchings[HEADLINE_IOU]
    named = fates(pairs, headline)
    lesions = _lesion_results(truth_lesions, pred_lesions, headline, named)

    n_truth, n_pred, n_shared = len(truth.voxels), len(prediction.voxels), int(pairs.shared_voxels.sum())
    surfaces = surface_distances(truth_mask, pred_mask, spacing)
    return CaseResult(
        dice=2 * n_shared / (n_truth + n_pred) if n_truth else NOT_DEFINED,
        iou=n_shared / (n_truth + n_pred - n_shared) if n_truth else NOT_DEFINED,
        nsd={tolerance: nsd(surfaces, tolerance) for tolerance in NSD_TOLERANCES_MM},
        hd95_mm=hd95_mm(surfaces),
        fpv_ml=_untouched_ml(pred_lesions, pairs.pred),
        fnv_ml=_untouched_ml(truth_lesions, pairs.truth) if n_truth else NOT_DEFINED,
        detection={t: Detection(m.tp, m.fp, m.fn, float(m.iou.sum())) for t, m in matchings.items()},
        lesion_dice=_mean([row.dice for row in lesions if row.source == "truth"]),
        splits=named.splits,
        merges=named.merges,
        suvmax_hit_recall=_mean(
            [float(pred_mask[v]) for v in (lesion.suv_max_vox for lesion in truth_lesions) if v]
        ),
        truth=_quantities(truth, truth_lesions, truth_mask.shape, affine, pet is not None),
        pred=_quantities(prediction, pred_lesions, truth_mask.shape, affine, pet is not None),
        lesions=lesions,
    )


def _geometry(
    spacing_mm: Sequence[float] | np.ndarray, affine: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,) or not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise InputError(f"spacing_mm is {spacing.tolist()}; expected three positive lengths in mm")
    if affine is None:
        return spacing, np.diag([*spacing, 1.0])
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.allclose(np.linalg.norm(affine[:3, :3], axis=0), spacing, rtol=1e-4):
        raise InputError(f"affine {affine.tolist()} does not have voxels of {spacing.tolist()} mm")
    return spacing, affine


def _binary(mask: np.ndarray, name: str) -> np.ndarray:
    """The mask as bool; anything but 0 and 1 is refused, since which label is the lesion would be a guess."""
    if mask.ndim != 3:
        raise InputError(f"{name} has shape {mask.shape}; expected three axes")
    if mask.dtype == bool:
        return mask
    foreground = mask == 1
    if np.count_nonzero(mask) != np.count_nonzero(foreground):
        other = mask[(mask != 0) & ~foreground][0]
        raise InputError(
            f"{name} is not binary: it holds {other}; say which values are lesion (for example mask > 0)"
        )
    return foreground


def _box(a: np.ndarray, b: np.ndarray, margin: np.ndarray) -> tuple[slice, slice, slice]:
    """Bounding box of both masks, widened by the margin as far as the volume goes; never without voxels."""
    sides = []
    for axis in range(3):
        others = tuple(other for other in range(3) if other != axis)
        used = np.flatnonzero(a.any(axis=others) | b.any(axis=others))
        first, last = (used[0], used[-1]) if len(used) else (0, 0)
        sides.append(slice(max(int(first - margin[axis]), 0), int(last + margin[axis]) + 1))
    return sides[0], sides[1], sides[2]


def _lesions(
    mask: np.ndarray, connectivity: int, affine: np.ndarray, pet: np.ndarray | None
) -> tuple[Components, list[Lesion]]:
    # The instance map is freed on return: only its foreground is kept.
    instances, count = lesions_from_mask(mask, connectivity)
    return Components.of(instances, count), lesion_table(instances, affine, pet)


def _untouched_ml(lesions: list[Lesion], touched: np.ndarray) -> float:
    """Volume of the lesions that are in no overlapping pair."""
    alone = np.setdiff1d(np.arange(len(lesions)), touched)
    return math.fsum(lesions[index].volume_ml for index in alone)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else NOT_DEFINED


def _lesion_results(
    truths: list[Lesion], predictions: list[Lesion], matching: Matching, named: Fates
) -> tuple[LesionResult, ...]:
    rows = []
    for index, lesion in enumerate(truths):
        partner, iou = int(named.truth_partner[index]), float(matching.iou[index])
        matched = named.truth[index] == "matched"
        rows.append(
            LesionResult(
                source="truth",
                lesion=lesion,
                fate=named.truth[index],
                partner_id=partner + 1 if partner >= 0 else None,
                iou=iou,
                dice=2 * iou / (1 + iou),
                volume_error_ml=predictions[partner].volume_ml - lesion.volume_ml if matched else NOT_DEFINED,
            )
        )
    for index, lesion in enumerate(predictions):
        if named.pred[index] == "matched":
            continue
        partner = int(named.pred_partner[index])
        rows.append(
            LesionResult(
                source="prediction",
                lesion=lesion,
                fate=named.pred[index],
                partner_id=partner + 1 if partner >= 0 else None,
                iou=NOT_DEFINED,
                dice=NOT_DEFINED,
                volume_error_ml=NOT_DEFINED,
            )
        )
    return tuple(rows)


def _quantities(
    components: Components, lesions: list[Lesion], shape: tuple[int, ...], affine: np.ndarray, has_pet: bool
) -> MaskQuantities:
    coords_vox = np.stack(np.unravel_index(components.voxels, shape), axis=1)
    volume_ml = math.fsum(lesion.volume_ml for lesion in lesions)
    tla = math.fsum(lesion.tla for lesion in lesions) if has_pet else NOT_DEFINED
    return MaskQuantities(
        lesions=components.count,
        volume_ml=volume_ml,
        dmax_cm=dmax_cm(coords_vox @ affine[:3, :3].T),
        suv_max=max((lesion.suv_max for lesion in lesions), default=NOT_DEFINED),
        suv_mean=tla / volume_ml if lesions else NOT_DEFINED,
        suv_peak=max((lesion.suv_peak for lesion in lesions), default=NOT_DEFINED),
        tla=tla,
    )
