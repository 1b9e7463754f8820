"""Dice after k simulated clicks per lesion, without training, on the scans' own grids.

python scripts/zero_shot.py MANIFEST [--checkpoint mini] [--spacing-mm 1.5] [--split test] [--clicks 1 3 5 10]
                            [--no-zoom] [--no-obey] [--accumulate-clicks | --newest-click-only] [--out FILE.csv]

Reports means over cases, over lesions and by size class (small < 1.5 ml, medium < 4 ml, large). Clicks are simulated as
in validation: first the lesion's deepest point, then the deepest point of the error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from sammed3d_ft.dataset.manifest import SPLITS, read_manifest
from sammed3d_ft.files import write_csv
from sammed3d_ft.lesions.table import SIZE_CLASSES, size_class
from sammed3d_ft.model.published import click_mode
from sammed3d_ft.prompted.predictor import Predictor
from sammed3d_ft.prompted.simulated_user import CaseScore, simulate_files


def click_scores(
    checkpoint: str,
    manifest: Path,
    split: str | None,
    clicks: list[int],
    spacing_mm: float | None = None,
    zoom: bool = True,
    obey: bool = True,
    accumulate: bool | None = None,
) -> tuple[Predictor, list[CaseScore]]:
    predictor = Predictor.from_pretrained(checkpoint, spacing_mm=spacing_mm, obey=obey, accumulate=accumulate)
    predictor.zoom &= zoom
    found = read_manifest(manifest)
    cases = found.cases if split is None else found.split(split)
    return predictor, [simulate_files(predictor, case, clicks) for case in tqdm(cases, unit="case")]


def table_of(scores: list[CaseScore], clicks: list[int], title: str) -> Table:
    table = Table(title=title)
    for column in ("mean Dice", "n", *(f"{k} clicks" if k > 1 else "1 click" for k in clicks)):
        table.add_column(column, justify="left" if column == "mean Dice" else "right")
    lesions = [lesion for score in scores for lesion in score.lesions]
    rows = {"cases": [score.dice for score in scores if score.dice is not None], "lesions": [x.dice for x in lesions]}
    for size in SIZE_CLASSES:
        rows[f"  {size}"] = [x.dice for x in lesions if size_class(x.volume_ml) == size]
    for name, members in rows.items():
        means = [f"{np.mean([dice[k] for dice in members]):.3f}" if members else "" for k in clicks]
        table.add_row(name, str(len(members)), *means)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--checkpoint", default="mini")
    parser.add_argument("--spacing-mm", type=float, help="spacing of the crops; default: the checkpoint's own")
    parser.add_argument("--split", choices=SPLITS, help="use only this split; default: all cases")
    parser.add_argument("--clicks", type=int, nargs="+", default=[1, 3, 5, 10])
    parser.add_argument("--no-zoom", action="store_true", help="no auto-zoom: predict each lesion in a single crop")
    parser.add_argument("--no-obey", action="store_true", help="use the network's mask without enforcing the clicks")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--accumulate-clicks", action="store_true", default=None, dest="accumulate")
    mode.add_argument(
        "--newest-click-only",
        action="store_false",
        default=None,
        dest="accumulate",
        help="give the decoder only the newest click; default: as the checkpoint was trained",
    )
    parser.add_argument("--out", type=Path, help="CSV to write, with one row per lesion")
    given = parser.parse_args()
    predictor, scores = click_scores(
        given.checkpoint,
        given.manifest,
        given.split,
        given.clicks,
        given.spacing_mm,
        zoom=not given.no_zoom,
        obey=not given.no_obey,
        accumulate=given.accumulate,
    )
    used = f"{predictor.preprocessing}, {click_mode(predictor.accumulate)}"
    Console().print(table_of(scores, given.clicks, f"{given.checkpoint} on {given.manifest}: {used}"))
    if given.out is not None:
        rows = [
            {"case": score.case, "lesion": lesion.lesion, "volume_ml": lesion.volume_ml}
            | {"accumulate_clicks": str(predictor.accumulate).lower()}
            | {f"dice@{k}": lesion.dice[k] for k in given.clicks}
            for score in scores
            for lesion in score.lesions
        ]
        columns = ["case", "lesion", "volume_ml", "accumulate_clicks", *(f"dice@{k}" for k in given.clicks)]
        write_csv(given.out, columns, rows)


if __name__ == "__main__":
    main()
