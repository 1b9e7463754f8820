"""Detection scores from the counts of matched, spurious and missed lesions."""

from __future__ import annotations

from dataclasses import dataclass

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
        return Detection(
            self.tp + other.tp, self.fp + other.fp, self.fn + other.fn, self.iou_sum + other.iou_sum
        )
