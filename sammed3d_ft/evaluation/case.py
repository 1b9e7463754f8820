"""Evaluates one case: a predicted mask against the ground truth, with PET metrics if a PET is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from prompts.lesions import CONNECTIVITIES
from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.components import Components, foreground, instance_numbers
from sammed3d_ft.evaluation.froc import ScoredLesions
from sammed3d_ft.evaluation.matching import Fates, Matching, Overlaps, fates, match, overlaps
from sammed3d_ft.evaluation.metrics import HEADLINE_IOU, IOU_THRESHOLDS, NSD_TOLERANCES_MM
from sammed3d_ft.evaluation.results import NOT_DEFINED, CaseResult, Detection, LesionResult, MaskQuantities
from sammed3d_ft.evaluation.surface import SurfaceDistances, hd95_mm, nsd, surface_distances
from sammed3d_ft.evaluation.surface_elements import Surfaces
from sammed3d_ft.lesions.quantities import dmax_cm
from sammed3d_ft.lesions.table import Lesion, lesions_of_voxels


def evaluate_case(
    gt: np.ndarray,
    pred: np.ndarray,
    spacing_mm: Sequence[float] | np.ndarray,
    pet: np.ndarray | None = None,
    connectivity: int = 18,
    affine: np.ndarray | None = None,
    *,
    instances: bool = False,
    probability: np.ndarray | None = None,
) -> CaseResult:
    """Compare a predicted mask with the ground truth.

    Args:
        gt: (x, y, z) ground-truth mask, bool or 0/1; with ``instances`` an instance map.
        pred: (x, y, z) predicted mask, bool or 0/1; with ``instances`` an instance map.
        spacing_mm: (3,) voxel size along x, y, z in mm.
        pet: (x, y, z) PET in SUV on the same grid; None omits SUV metrics.
        connectivity: 6, 18 or 26: which touching voxels belong to one lesion. There is no minimum lesion size.
        affine: (4, 4) voxel index to world mm, for lesion centroids; without it, voxel (0, 0, 0) is the origin.
        instances: both masks contain lesion numbers (0 background, 1.. lesions, gaps allowed). Voxels with the same
            number form one lesion, so touching lesions stay apart, and ``connectivity`` is ignored.
        probability: (x, y, z) predicted probabilities in [0, 1], for FROC and AP. The confidence of a predicted lesion
            is its highest probability (as in picai_eval).

    Returns:
        The metrics; `sammed3d_ft.evaluation.METRICS` defines each one, empty masks included.

    Raises:
        InputError: shapes that differ; masks with values other than 0 and 1 (with ``instances``: negative or
            fractional values); PET that is not finite in or near a lesion; probabilities outside [0, 1], or 0
            everywhere in a predicted lesion; an invalid spacing or connectivity; an affine with another voxel size.
    """
    spacing, affine = _geometry(spacing_mm, affine)
    if connectivity not in CONNECTIVITIES:
        raise InputError(f"connectivity is {connectivity}; expected 6, 18 or 26")
    shape = _one_grid(gt, pred, pet, probability)
    truth = _Side.of(gt, "ground truth", instances, shape, connectivity, affine, pet)
    prediction = _Side.of(pred, "prediction", instances, shape, connectivity, affine, pet)

    pairs = overlaps(truth.components, prediction.components)
    matchings = {threshold: match(pairs, threshold) for threshold in IOU_THRESHOLDS}
    headline = matchings[HEADLINE_IOU]
    named = fates(pairs, headline)
    confidences = None if probability is None else _confidences(prediction, probability)
    # The whole masks are one more pair beside the matched lesions.
    matched = np.flatnonzero(headline.pred_of_truth >= 0)
    surfaces = surface_distances(
        Surfaces.joined([truth.surfaces.pick(matched), truth.surfaces.union()]),
        Surfaces.joined([prediction.surfaces.pick(headline.pred_of_truth[matched]), prediction.surfaces.union()]),
        spacing,
    )
    of_matches = dict(zip(matched.tolist(), surfaces[:-1], strict=True))
    lesions = _lesion_results(truth, prediction, headline, named, confidences, of_matches)
    matches = [row for row in lesions if row.fate == "matched"]

    n_truth, n_pred, n_shared = len(truth.coords_vox), len(prediction.coords_vox), int(pairs.shared_voxels.sum())
    return CaseResult(
        dice=2 * n_shared / (n_truth + n_pred) if n_truth else NOT_DEFINED,
        iou=n_shared / (n_truth + n_pred - n_shared) if n_truth else NOT_DEFINED,
        nsd=_nsd(surfaces[-1]),
        hd95_mm=hd95_mm(surfaces[-1]),
        fpv_ml=_untouched_ml(prediction.lesions, pairs.pred),
        fnv_ml=_untouched_ml(truth.lesions, pairs.truth) if n_truth else NOT_DEFINED,
        detection={t: Detection(m.tp, m.fp, m.fn, float(m.iou.sum())) for t, m in matchings.items()},
        lesion_dice=_mean([row.dice for row in lesions if row.source == "truth"]),
        matched_dice=_mean([row.dice for row in matches]),
        matched_iou=_mean([row.iou for row in matches]),
        matched_nsd={t: _mean([row.nsd[t] for row in matches]) for t in NSD_TOLERANCES_MM},
        matched_hd95_mm=_mean([row.hd95_mm for row in matches]),
        matched_volume_error_ml=_mean([row.volume_error_ml for row in matches]),
        splits=named.splits,
        merges=named.merges,
        suvmax_hit_recall=_mean([float(pred[v] != 0) for v in (lesion.suv_max_vox for lesion in truth.lesions) if v]),
        truth=truth.quantities(affine, pet is not None),
        pred=prediction.quantities(affine, pet is not None),
        lesions=lesions,
        scored=None if confidences is None else _scored(pairs, headline, confidences),
    )


@dataclass(frozen=True)
class _Side:
    """One of the two masks and its lesions."""

    coords_vox: np.ndarray
    """(n, 3) foreground voxels in index order."""
    components: Components
    lesions: list[Lesion]

    @classmethod
    def of(
        cls,
        mask: np.ndarray,
        name: str,
        instances: bool,
        shape: tuple[int, int, int],
        connectivity: int,
        affine: np.ndarray,
        pet: np.ndarray | None,
    ) -> _Side:
        voxels = foreground(mask)
        coords_vox = np.stack(np.unravel_index(voxels, shape)).T
        values = mask[tuple(coords_vox.T)]
        if instances:
            components, numbers = Components.numbered(voxels, instance_numbers(values, name))
            labels = numbers[components.labels - 1]
        else:
            _check_binary(values, name)
            components = Components.connected(voxels, shape, connectivity)
            labels = components.labels
        return cls(coords_vox, components, lesions_of_voxels(coords_vox, labels, affine, pet))

    @cached_property
    def surfaces(self) -> Surfaces:
        """The surface of each lesion by itself."""
        order = np.argsort(self.components.labels, kind="stable")
        return Surfaces.of(self.coords_vox[order], self.components.sizes)

    def quantities(self, affine: np.ndarray, has_pet: bool) -> MaskQuantities:
        volume_ml = math.fsum(lesion.volume_ml for lesion in self.lesions)
        tla = math.fsum(lesion.tla for lesion in self.lesions) if has_pet else NOT_DEFINED
        return MaskQuantities(
            lesions=self.components.count,
            volume_ml=volume_ml,
            dmax_cm=dmax_cm(_line_ends(self.coords_vox) @ affine[:3, :3].T),
            suv_max=max((lesion.suv_max for lesion in self.lesions), default=NOT_DEFINED),
            suv_mean=tla / volume_ml if self.lesions else NOT_DEFINED,
            suv_peak=max((lesion.suv_peak for lesion in self.lesions), default=NOT_DEFINED),
            tla=tla,
        )


def _line_ends(coords_vox: np.ndarray) -> np.ndarray:
    """The end voxels of each line along z, from (n, 3) voxels in index order; they include the two farthest apart."""
    if len(coords_vox) == 0:
        return coords_vox
    next_line = np.diff(coords_vox[:, 0]).astype(bool) | np.diff(coords_vox[:, 1]).astype(bool)
    return coords_vox[np.append(True, next_line) | np.append(next_line, True)]


def _geometry(spacing_mm: Sequence[float] | np.ndarray, affine: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    spacing = np.asarray(spacing_mm, dtype=np.float64)
    if spacing.shape != (3,) or not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise InputError(f"spacing_mm is {spacing.tolist()}; expected three positive lengths in mm")
    if affine is None:
        return spacing, np.diag([*spacing, 1.0])
    affine = np.asarray(affine, dtype=np.float64)
    if affine.shape != (4, 4) or not np.allclose(np.linalg.norm(affine[:3, :3], axis=0), spacing, rtol=1e-4):
        raise InputError(f"affine {affine.tolist()} does not match the voxel size of {spacing.tolist()} mm")
    return spacing, affine


def _one_grid(
    gt: np.ndarray, pred: np.ndarray, pet: np.ndarray | None, probability: np.ndarray | None
) -> tuple[int, int, int]:
    if gt.ndim != 3:
        raise InputError(f"ground truth has shape {gt.shape}; expected three axes")
    for name, array in (("prediction", pred), ("PET", pet), ("probability", probability)):
        if array is not None and array.shape != gt.shape:
            raise InputError(f"{name} has shape {array.shape}, the ground truth {gt.shape}: resample to one grid")
    x, y, z = gt.shape
    return x, y, z


def _check_binary(foreground_values: np.ndarray, name: str) -> None:
    """Refuse values other than 0 and 1: which label is the lesion would be a guess."""
    other = foreground_values[foreground_values != 1]
    if len(other):
        raise InputError(
            f"{name} is not binary: it contains {other[0]}; select the lesion values first (for example mask > 0)"
        )


def _confidences(prediction: _Side, probability: np.ndarray) -> np.ndarray:
    """(count,) highest probability in each predicted lesion."""
    values = probability[tuple(prediction.coords_vox.T)].astype(np.float64)
    if not (values.min(initial=0) >= 0 and values.max(initial=0) <= 1):  # NaN fails as well
        raise InputError(f"probability is {values[~((values >= 0) & (values <= 1))][0]}; expected values in [0, 1]")
    highest = np.zeros(prediction.components.count)
    np.maximum.at(highest, prediction.components.labels - 1, values)
    if (highest == 0).any():
        lesion = prediction.lesions[int(np.flatnonzero(highest == 0)[0])].lesion_id
        raise InputError(f"probability is 0 throughout predicted lesion {lesion}: it belongs to another prediction")
    return highest


def _scored(pairs: Overlaps, headline: Matching, confidences: np.ndarray) -> ScoredLesions:
    matched = headline.truth_of_pred >= 0
    enough = np.zeros(len(confidences), bool)
    enough[pairs.pred[pairs.iou >= HEADLINE_IOU]] = True
    return ScoredLesions(
        hits=tuple(confidences[matched].tolist()),
        false_alarms=tuple(confidences[~enough].tolist()),
        ignored=int((enough & ~matched).sum()),
        truths=pairs.n_truth,
        case_confidence=float(confidences.max(initial=0)),
    )


def _nsd(distances: SurfaceDistances) -> dict[float, float]:
    return {tolerance: nsd(distances, tolerance) for tolerance in NSD_TOLERANCES_MM}


def _untouched_ml(lesions: list[Lesion], touched: np.ndarray) -> float:
    """Volume of the lesions that do not overlap any lesion of the other mask."""
    alone = np.setdiff1d(np.arange(len(lesions)), touched)
    return math.fsum(lesions[index].volume_ml for index in alone)


def _mean(values: list[float]) -> float:
    return math.fsum(values) / len(values) if values else NOT_DEFINED


def _lesion_results(
    truth: _Side,
    prediction: _Side,
    matching: Matching,
    named: Fates,
    confidences: np.ndarray | None,
    surfaces: dict[int, SurfaceDistances],
) -> tuple[LesionResult, ...]:
    """Every ground-truth lesion, then every unmatched prediction; ``surfaces`` by index of the matched lesions."""
    no_nsd = dict.fromkeys(NSD_TOLERANCES_MM, NOT_DEFINED)
    rows = []
    for index, lesion in enumerate(truth.lesions):
        partner, iou = int(named.truth_partner[index]), float(matching.iou[index])
        matched, distances = named.truth[index] == "matched", surfaces.get(index)
        rows.append(
            LesionResult(
                source="truth",
                lesion=lesion,
                fate=named.truth[index],
                partner_id=prediction.lesions[partner].lesion_id if partner >= 0 else None,
                iou=iou,
                dice=2 * iou / (1 + iou),
                volume_error_ml=prediction.lesions[partner].volume_ml - lesion.volume_ml if matched else NOT_DEFINED,
                nsd=no_nsd if distances is None else _nsd(distances),
                hd95_mm=NOT_DEFINED if distances is None else hd95_mm(distances),
                confidence=float(confidences[partner]) if matched and confidences is not None else NOT_DEFINED,
            )
        )
    for index, lesion in enumerate(prediction.lesions):
        if named.pred[index] == "matched":
            continue
        partner = int(named.pred_partner[index])
        rows.append(
            LesionResult(
                source="prediction",
                lesion=lesion,
                fate=named.pred[index],
                partner_id=truth.lesions[partner].lesion_id if partner >= 0 else None,
                iou=NOT_DEFINED,
                dice=NOT_DEFINED,
                volume_error_ml=NOT_DEFINED,
                nsd=no_nsd,
                hd95_mm=NOT_DEFINED,
                confidence=NOT_DEFINED if confidences is None else float(confidences[index]),
            )
        )
    return tuple(rows)
