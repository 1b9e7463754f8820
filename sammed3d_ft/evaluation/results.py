"""The evaluation result of one case: quantities of both masks, a row per lesion, and all metrics as flat columns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sammed3d_ft.evaluation.froc import ScoredLesions
from sammed3d_ft.evaluation.metrics import METRICS
from sammed3d_ft.lesions.table import Lesion

NOT_DEFINED = float("nan")


@dataclass(frozen=True)
class Detection:
    """Counts of one case, or summed over a cohort, and the scores computed from them (NaN: not defined)."""

    tp: int
    """Matched pairs."""
    fp: int
    """Predictions without a match."""
    fn: int
    """Ground-truth lesions without a match."""
    iou_sum: float = 0.0
    """Summed IoU of the matched pairs, for PQ."""

    @property
    def precision(self) -> float:
        """tp / (tp + fp); not defined without ground-truth lesions (as F1) or without predictions (0 / 0)."""
        return self.tp / (self.tp + self.fp) if self._has_truth and self.tp + self.fp else NOT_DEFINED

    @property
    def recall(self) -> float:
        """tp / (tp + fn); not defined without ground-truth lesions, 0 without predictions."""
        return self.tp / (self.tp + self.fn) if self._has_truth else NOT_DEFINED

    @property
    def f1(self) -> float:
        """2 tp / (2 tp + fp + fn); not defined without ground-truth lesions, 0 without predictions."""
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn) if self._has_truth else NOT_DEFINED

    @property
    def pq(self) -> float:
        """Panoptic quality (Kirillov et al., 2019): summed IoU / (tp + fp / 2 + fn / 2); empty masks as for F1."""
        return self.iou_sum / (self.tp + (self.fp + self.fn) / 2) if self._has_truth else NOT_DEFINED

    @property
    def _has_truth(self) -> bool:
        return self.tp + self.fn > 0

    def __add__(self, other: Detection) -> Detection:
        return Detection(self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou_sum + other.iou_sum)


@dataclass(frozen=True)
class MaskQuantities:
    """Quantities of one whole mask. SUV quantities are NaN for an empty mask or without PET."""

    lesions: int
    volume_ml: float
    dmax_cm: float
    suv_max: float
    suv_mean: float
    suv_peak: float
    tla: float


@dataclass(frozen=True)
class LesionResult:
    """A ground-truth lesion and its fate, or an unmatched predicted lesion."""

    source: str
    """``truth`` or ``prediction``."""
    lesion: Lesion
    fate: str
    """truth: matched, merged, low_iou, missed; prediction: fragment, low_iou, isolated; see `matching.fates`."""
    partner_id: int | None
    """Number of the lesion in the other mask that it is matched with, or that explains its fate."""
    iou: float
    """With the match; 0 for a missed ground-truth lesion, NaN for a prediction."""
    dice: float
    """With the match; 0 for a missed ground-truth lesion, NaN for a prediction."""
    volume_error_ml: float
    """Matched prediction minus ground truth; NaN without a match."""
    nsd: dict[float, float]
    """By tolerance in mm, between the two matched lesions alone; NaN without a match."""
    hd95_mm: float
    """Between the two matched lesions alone; NaN without a match."""
    confidence: float
    """Highest probability in the predicted lesion (for a ground-truth lesion, in its match); NaN without either."""

    def as_row(self) -> dict[str, Any]:
        """Flat columns, as listed in `LESION_COLUMNS`."""
        return {
            "source": self.source,
            **self.lesion.as_row(),
            "fate": self.fate,
            "partner_id": self.partner_id,
            "iou": self.iou,
            "dice": self.dice,
            "volume_error_ml": self.volume_error_ml,
            **{f"nsd_{tolerance:g}mm": value for tolerance, value in self.nsd.items()},
            "hd95_mm": self.hd95_mm,
            "confidence": self.confidence,
        }


LESION_COLUMNS = (
    *("source", "lesion_id", "voxels", "volume_ml", "size_class"),
    *("centroid_x_mm", "centroid_y_mm", "centroid_z_mm"),
    *("suv_max", "suv_mean", "suv_peak", "suv_peak_flagged", "tla"),
    *("fate", "partner_id", "iou", "dice", "volume_error_ml"),
    *("nsd_2mm", "nsd_4mm", "hd95_mm", "confidence"),
)
"""Columns of `LesionResult.as_row`, also known when a table has no rows."""


@dataclass(frozen=True)
class CaseResult:
    """All metrics of one case. NaN means not defined (n/a); `metrics.METRICS` defines each metric."""

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
    matched_dice: float
    matched_iou: float
    matched_nsd: dict[float, float]
    """By tolerance in mm."""
    matched_hd95_mm: float
    matched_volume_error_ml: float
    splits: int
    merges: int
    suvmax_hit_recall: float
    truth: MaskQuantities
    pred: MaskQuantities
    lesions: tuple[LesionResult, ...]
    """Every ground-truth lesion, then every unmatched prediction, at the headline IoU threshold."""
    scored: ScoredLesions | None
    """Input of `froc` and `average_precision`; None without probabilities."""

    def as_row(self) -> dict[str, Any]:
        """Flat columns, in the order of `metrics.METRICS`."""
        return {name: metric.of(self) for name, metric in METRICS.items()}
