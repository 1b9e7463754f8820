"""Scores of an automatic training's masks, and what it reports of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from prompts.lesions import lesions_from_mask
from sammed3d_ft.evaluation.components import Components
from sammed3d_ft.evaluation.matching import match, overlaps
from sammed3d_ft.evaluation.metrics import HEADLINE_IOU
from sammed3d_ft.files import write_csv
from sammed3d_ft.lesions.table import SIZE_CLASSES, size_class
from sammed3d_ft.training.task import mean


@dataclass(frozen=True)
class AutomaticScore:
    """Dice of one case (None if the label is empty), and of each ground-truth lesion with its match."""

    case: str
    dice: float | None
    lesions: tuple[tuple[float, float], ...]
    """Volume in ml, and Dice with the matched predicted lesion (one to one, IoU >= 0.1), 0 if there is none."""


def score_mask(mask: np.ndarray, truth: np.ndarray, voxel_ml: float, *, case: str, connectivity: int) -> AutomaticScore:
    """Score a mask (x, y, z) against the ground truth on the same grid; lesions are matched as in the evaluation."""
    true, found = (Components.of(*lesions_from_mask(m > 0, connectivity)) for m in (truth, mask))
    pairs = overlaps(true, found)
    matched = match(pairs, HEADLINE_IOU)
    shared = int(pairs.shared_voxels.sum())
    dice = 2 * shared / (len(true.voxels) + len(found.voxels)) if true.count else None
    lesions = zip(true.sizes, matched.iou, strict=True)
    return AutomaticScore(case, dice, tuple((float(size) * voxel_ml, 2 * iou / (1 + iou)) for size, iou in lesions))


class AutomaticReport:
    """Dice over cases and over lesions; implements `Report`."""

    shown: Mapping[str, str] = {"loss": "train/loss", "dice": "train/dice"}

    def summary(self, scores: Sequence[AutomaticScore], split: str) -> dict[str, float]:
        """Mean Dice: over cases with lesions, over lesions, and by lesion-size class."""
        lesions = [lesion for score in scores for lesion in score.lesions]
        values = {
            f"{split}/dice": mean([score.dice for score in scores if score.dice is not None]),
            f"{split}/lesion_dice": mean([dice for _, dice in lesions]),
        }
        for name in SIZE_CLASSES:
            members = [dice for volume_ml, dice in lesions if size_class(volume_ml) == name]
            if members:
                values[f"{split}/lesion_dice/{name}"] = mean(members)
        return values

    def selection(self, summary: Mapping[str, float]) -> float:
        """Mean Dice over cases."""
        return summary["val/dice"]

    def validation_line(self, summary: Mapping[str, float]) -> str:
        """Dice over cases and over lesions."""
        return f"validation Dice  {summary['val/dice']:.3f}  of lesions: {summary['val/lesion_dice']:.3f}"

    def write_scores(self, run: Path, split: str, scores: Sequence[AutomaticScore]) -> None:
        """Write ``<split>_cases.csv``: one row per case and one per ground-truth lesion."""
        rows: list[dict[str, Any]] = []
        for score in scores:
            rows.append({"case": score.case, "lesion": "all", "dice": score.dice})
            rows += [
                {"case": score.case, "lesion": number, "volume_ml": volume_ml, "dice": dice}
                for number, (volume_ml, dice) in enumerate(score.lesions, start=1)
            ]
        write_csv(run / f"{split}_cases.csv", ["case", "lesion", "volume_ml", "dice"], rows)

    def results(self, summary: Mapping[str, Any]) -> Table:
        """Dice over cases and over lesions, by split."""
        table = Table(title="Mean Dice on the scans' own grids, without clicks")
        table.add_column("split")
        for name in ("cases", "lesions"):
            table.add_column(name, justify="right")
        for split in ("val", "test"):
            if f"{split}/dice" in summary:
                table.add_row(split, f"{summary[f'{split}/dice']:.3f}", f"{summary[f'{split}/lesion_dice']:.3f}")
        return table
