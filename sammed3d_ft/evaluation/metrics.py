"""The metrics of the case table: name, unit and definition of each, empty masks included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sammed3d_ft.evaluation.results import CaseResult

IOU_THRESHOLDS = (0.1, 0.25, 0.5)
HEADLINE_IOU = 0.1
NSD_TOLERANCES_MM = (2.0, 4.0)


@dataclass(frozen=True)
class Metric:
    """One column of the case table."""

    name: str
    convention: str
    """What is measured and how, in one line."""
    empties: str
    """Value if the ground truth, the prediction, or both are empty."""
    headline: bool = False
    """Whether the table printed by the command line shows it."""
    label: str = ""
    """Name in headings; the column name if empty."""
    read: Callable[[CaseResult], float] | None = None
    """Reads the value from a result; None for the field of the same name."""

    def of(self, case: CaseResult) -> float:
        """The value of one case, NaN where it is not defined."""
        value: float = getattr(case, self.name) if self.read is None else self.read(case)
        return value


_OVERLAP_EMPTIES = "n/a if the ground truth is empty, 0 if only the prediction is"
_WITHOUT_MATCH = "n/a without a match, so n/a if either is empty"
_OF_EMPTY_MASK = "n/a if that mask is empty"
_ZERO_EMPTY_MASK = "0 if that mask is empty"


def _at(*path: str | float) -> Callable[[CaseResult], float]:
    """A reader that follows attribute names and, for thresholds and tolerances, keys."""

    def read(case: CaseResult) -> float:
        value: Any = case
        for step in path:
            value = getattr(value, step) if isinstance(step, str) else value[step]
        number: float = value
        return number

    return read


def _metrics() -> Iterator[Metric]:
    yield Metric("dice", "2 |T and P| / (|T| + |P|), voxels of the whole case", _OVERLAP_EMPTIES, True, "Dice")
    yield Metric("iou", "|T and P| / |T or P|, voxels of the whole case", _OVERLAP_EMPTIES, True)
    for tolerance in NSD_TOLERANCES_MM:
        yield Metric(
            f"nsd_{tolerance:g}mm",
            f"fraction of the area of both surfaces within {tolerance:g} mm of the other (as surface-distance)",
            _OVERLAP_EMPTIES,
            True,
            f"NSD at {tolerance:g} mm",
            _at("nsd", tolerance),
        )
    yield Metric(
        "hd95_mm",
        "95th percentile of surface distances weighted by area, the larger of both directions (as surface-distance)",
        "n/a if either is empty",
        True,
        "HD95 (mm)",
    )
    yield Metric(
        "fpv_ml",
        "volume of predicted lesions that share no voxel with the ground truth",
        "0 if the prediction is empty; its whole volume if only the ground truth is",
        True,
        "FPV (ml)",
    )
    yield Metric(
        "fnv_ml",
        "volume of ground-truth lesions that share no voxel with the prediction",
        "n/a if the ground truth is empty; its whole volume if only the prediction is",
        True,
        "FNV (ml)",
    )
    for threshold in IOU_THRESHOLDS:
        at = f"lesions matched one to one at IoU >= {threshold:g}"
        headline = threshold == HEADLINE_IOU
        for name, what, empties, shown in (
            ("f1", "2 tp / (2 tp + fp + fn)", _OVERLAP_EMPTIES, True),
            ("precision", "tp / (tp + fp)", "n/a if either is empty", headline),
            ("recall", "tp / (tp + fn)", _OVERLAP_EMPTIES, headline),
            ("tp", "matched pairs", "counted", False),
            ("fp", "unmatched predictions", "counted", False),
            ("fn", "unmatched ground-truth lesions", "counted", False),
        ):
            yield Metric(
                f"{name}_iou{threshold:g}",
                f"{what}, {at}",
                empties,
                shown,
                f"F1 at IoU {threshold:g}" if name == "f1" else "",
                _at("detection", threshold, name),
            )
    yield Metric(
        "pq_iou0.5",
        "summed IoU / (tp + fp/2 + fn/2), lesions matched one to one at IoU >= 0.5",
        _OVERLAP_EMPTIES,
        True,
        read=_at("detection", 0.5, "pq"),
    )
    yield Metric(
        "lesion_dice",
        f"mean over ground-truth lesions of the Dice with the match (IoU >= {HEADLINE_IOU:g}), missed lesions as 0",
        _OVERLAP_EMPTIES,
        True,
        "lesion Dice",
    )
    on = f"mean over lesions matched at IoU >= {HEADLINE_IOU:g}"
    yield Metric("matched_dice", f"Dice of a ground-truth lesion with its match, {on}", _WITHOUT_MATCH)
    yield Metric("matched_iou", f"IoU of a ground-truth lesion with its match, {on}", _WITHOUT_MATCH)
    for tolerance in NSD_TOLERANCES_MM:
        what = f"NSD at {tolerance:g} mm of the two lesions only"
        read = _at("matched_nsd", tolerance)
        yield Metric(f"matched_nsd_{tolerance:g}mm", f"{what}, {on}", _WITHOUT_MATCH, read=read)
    yield Metric("matched_hd95_mm", f"HD95 of the two lesions only, {on}", _WITHOUT_MATCH)
    yield Metric("matched_volume_error_ml", f"predicted minus ground-truth volume, {on}", _WITHOUT_MATCH)
    yield Metric("splits", "ground-truth lesions that share voxels with two or more predicted ones", "0")
    yield Metric("merges", "predicted lesions that share voxels with two or more ground-truth lesions", "0")
    yield Metric(
        "suvmax_hit_recall",
        "fraction of ground-truth lesions whose SUVmax voxel is predicted foreground",
        f"{_OVERLAP_EMPTIES}; n/a without PET",
    )
    suv_empties = f"{_OF_EMPTY_MASK}; n/a without PET"
    for mask, which in (("truth", "the ground truth"), ("pred", "the prediction")):
        for name, what, empties in (
            ("lesions", f"connected components of {which}", _ZERO_EMPTY_MASK),
            ("volume_ml", f"total volume of {which} (TMTV)", _ZERO_EMPTY_MASK),
            ("dmax_cm", f"distance of the farthest two voxel centres of {which}", _OF_EMPTY_MASK),
            ("suv_max", f"highest SUV in {which}", suv_empties),
            ("suv_mean", f"mean SUV over {which}", suv_empties),
            ("suv_peak", f"highest mean SUV in a 1 ml sphere (r = 6.2 mm) centred on a voxel of {which}", suv_empties),
            ("tla", f"SUVmean x volume of {which} (SUV ml)", f"{_ZERO_EMPTY_MASK}; n/a without PET"),
        ):
            yield Metric(f"{mask}_{name}", what, empties, read=_at(mask, name))


METRICS: dict[str, Metric] = {metric.name: metric for metric in _metrics()}
"""By column name, in the order of the case table."""
