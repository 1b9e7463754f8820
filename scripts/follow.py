"""Dice after k simulated clicks with and without auto-zoom, for cases with lesions larger than a crop.

python scripts/follow.py MANIFEST --cases STS_009 STS_013 STS_020 [--checkpoint mini] [--spacing-mm 1.5]
                         [--clicks 1 3 5]

With auto-zoom (`follow`), a lesion that reaches its crop's border is predicted again in a crop with two, then four
times the spacing. Clicks are simulated as in validation: the lesion's deepest point, then the deepest point of the
error.
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
        raise SystemExit(f"{manifest}: has no case {', '.join(missing)}")
    return [found[name] for name in names]


def scores(checkpoint: str, cases: list[Case], spacing_mm: float, clicks: list[int]) -> dict[bool, list[CaseScore]]:
    """Scores of each case, without and with auto-zoom."""
    opened = Predictor.from_pretrained(checkpoint, spacing_mm=spacing_mm)
    return {
        follow: [
            simulate_files(
                Predictor(opened.model, opened.preprocessing, accumulate=opened.accumulate, follow=follow), case, clicks
            )
            for case in tqdm(cases, f"follow={follow}", unit="case")
        ]
        for follow in (False, True)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--cases", nargs="+", required=True, metavar="ID")
    parser.add_argument("--checkpoint", default="mini")
    parser.add_argument("--spacing-mm", type=float, default=1.5, help="spacing of the finest crop")
    parser.add_argument("--clicks", type=int, nargs="+", default=[1, 3, 5])
    given = parser.parse_args()
    cases = named_cases(given.manifest, given.cases)
    found = scores(given.checkpoint, cases, given.spacing_mm, given.clicks)
    table = Table(title=f"Dice, {given.checkpoint} at {given.spacing_mm:g} mm")
    for column in ("case", "clicks", "first crop only", "with auto-zoom"):
        table.add_column(column, justify="left" if column == "case" else "right")
    for cut, followed in zip(found[False], found[True], strict=True):
        for k in given.clicks:
            dice = [f"{score.dice[k]:.3f}" if score.dice else "no lesion" for score in (cut, followed)]
            table.add_row(cut.case, str(k), *dice)
    Console().print(table)


if __name__ == "__main__":
    main()
