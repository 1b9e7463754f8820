"""What a prompted training reports of its scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from prompts.click_files import write_clicks
from sammed3d_ft.files import write_csv
from sammed3d_ft.lesions.table import SIZE_CLASSES, size_class
from sammed3d_ft.prompted.config import SELECTED_BY
from sammed3d_ft.prompted.simulated_user import CaseScore
from sammed3d_ft.training.task import mean


class PromptedReport:
    """Dice after each number of clicks; implements `Report`.

    Args:
        clicks: the numbers of clicks per lesion after which validation scores.
    """

    shown: Mapping[str, str] = {"loss": "train/loss", "dice": "train/dice_last"}

    def __init__(self, clicks: Sequence[int]) -> None:
        self.clicks = clicks

    def summary(self, scores: Sequence[CaseScore], split: str) -> dict[str, float]:
        """Mean Dice after k clicks, over cases, over lesions, and by lesion size class."""
        values: dict[str, float] = {}
        scored = [score.dice for score in scores if score.dice is not None]
        lesions = [lesion for score in scores for lesion in score.lesions]
        for k in lesions[0].dice if lesions else self.clicks:
            values[f"{split}/dice@{k}"] = mean([dice[k] for dice in scored])
            values[f"{split}/lesion_dice@{k}"] = mean([lesion.dice[k] for lesion in lesions])
            for name in SIZE_CLASSES:
                members = [lesion.dice[k] for lesion in lesions if size_class(lesion.volume_ml) == name]
                if members:
                    values[f"{split}/lesion_dice@{k}/{name}"] = mean(members)
        return values

    def selection(self, summary: Mapping[str, float]) -> float:
        """Mean Dice over 1 and 5 clicks."""
        return mean([summary[f"val/dice@{k}"] for k in SELECTED_BY])

    def validation_line(self, summary: Mapping[str, float]) -> str:
        """Dice after each number of clicks, in one line."""
        dice = {k: summary.get(f"val/dice@{k}") for k in self.clicks}
        figures = "  ".join(f"{k}: {value:.3f}" for k, value in dice.items() if value is not None)
        return f"validation Dice by clicks  {figures}"

    def write_scores(self, run: Path, split: str, scores: Sequence[CaseScore]) -> None:
        """Write ``<split>_cases.csv``, and the clicks of each case in unrounded world mm, to reproduce the scores."""
        at = self.clicks
        rows: list[dict[str, Any]] = []
        for score in scores:
            rows.append({"case": score.case, "lesion": "all"} | _at_clicks(score.dice or {}))
            rows += [
                {"case": score.case, "lesion": lesion.lesion, "volume_ml": lesion.volume_ml} | _at_clicks(lesion.dice)
                for lesion in score.lesions
            ]
        write_csv(run / f"{split}_cases.csv", ["case", "lesion", "volume_ml", *_at_clicks(dict.fromkeys(at))], rows)
        folder = run / "clicks" / split
        folder.mkdir(parents=True, exist_ok=True)
        for score in scores:
            if score.clicks:
                write_clicks(folder / f"{score.case}.json", score.clicks)

    def results(self, summary: Mapping[str, Any]) -> Table:
        """Dice after each number of clicks, by split."""
        clicks = [int(key.partition("@")[2]) for key in summary if key.startswith("val/dice@")]
        table = Table(title="Mean Dice per case on the scans' own grids, by clicks per lesion")
        table.add_column("split")
        for k in clicks:
            table.add_column(str(k), justify="right")
        for split in ("val", "test"):
            if f"{split}/dice@{clicks[0]}" in summary:
                table.add_row(split, *(f"{summary[f'{split}/dice@{k}']:.3f}" for k in clicks))
        return table


def _at_clicks(dice: Mapping[int, float | None]) -> dict[str, float | None]:
    """Dice by column name."""
    return {f"dice@{k}": value for k, value in dice.items()}
