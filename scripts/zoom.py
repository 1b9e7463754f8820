"""Dice after k simulated clicks with and without zooming, on cases whose lesions are small or larger than a crop.

python scripts/zoom.py MANIFEST --cases STS_009 STS_013 STS_020 [--checkpoint mini] [--spacing-mm 1.5]
                       [--clicks 1 3 5]

Zooming: a lesion that is small in its crop is seen again at a quarter or a half of the spacing, one that reaches the
border of its crop at twice, then four times the spacing. The simulated user is that of validation: first the deepest
point of the lesion, then that of the error.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from sammed3d_ft.data.manifest import Case, read_manifest
from sammed3d_ft.inference import Predictor
from sammed3d_ft.inference.simulation import CaseScore, simulate_files


def named_cases(manifest: Path, names: list[str]) -> list[Case]:
    found = {case.id: case for case in read_manifest(manifest).cases}
    missing = [name for name in names if name not in found]
    if missing:
        raise SystemExit(f"{manifest}: holds no case {', '.join(missing)}")
    return [found[name] for name in names]


def scores(checkpoint: str, cases: list[Case], spacing_mm: float, clicks: list[int]) -> dict[bool, list[CaseScore]]:
    """Of each case, without and with zooming."""
    opened = Predictor.from_pretrained(checkpoint, spacing_mm=spacing_mm)
    return {
        zoom: [
            simulate_files(
                Predictor(opened.model, opened.preprocessing, accumulate=opened.accumulate, zoom=zoom), case, clicks
            )
            for case in tqdm(cases, f"zoom={zoom}", unit="case")
        ]
        for zoom in (False, True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--cases", nargs="+", required=True, metavar="ID")
    parser.add_argument("--checkpoint", default="mini")
    parser.add_argument("--spacing-mm", type=float, default=1.5, help="of the crops before zooming")
    parser.add_argument("--clicks", type=int, nargs="+", default=[1, 3, 5])
    given = parser.parse_args()
    cases = named_cases(given.manifest, given.cases)
    found = scores(given.checkpoint, cases, given.spacing_mm, given.clicks)
    table = Table(title=f"Dice, {given.checkpoint} at {given.spacing_mm:g} mm")
    for column in ("case", "clicks", "in the first crop alone", "zoomed"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for plain, zoomed in zip(found[False], found[True], strict=True):
        for k in given.clicks:
            dice = [f"{score.dice[k]:.3f}" if score.dice else "no lesion" for score in (plain, zoomed)]
            table.add_row(plain.case, str(k), *dice)
    Console().print(table)


if __name__ == "__main__":
    main()
