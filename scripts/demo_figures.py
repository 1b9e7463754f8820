"""Draw two figures of the gain from fine-tuning: test lesions before and after it, at one and at three clicks.

python scripts/demo_figures.py MANIFEST AFTER [--before mini] [--out demo]

Writes lesions.png (slices of three lesions with outlines, clicks and Dice, chosen at the quartiles of the gain at one
click) and gain.png (Dice of every test lesion, before and after). Clicks are simulated as in validation: the lesion's
deepest point, then the deepest point of the error.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from sammed3d_ft.dataset.case_images import read_case
from sammed3d_ft.dataset.manifest import Case, read_manifest
from sammed3d_ft.files import whole_file
from sammed3d_ft.images.grids import Volume
from sammed3d_ft.prompted.predictor import Predictor
from sammed3d_ft.prompted.simulated_user import CaseScore, simulate_case

CLICKS = (1, 3)
WHEN = ("before", "after")
_NAMES = {"before": "as shipped", "after": "fine-tuned"}
_REFERENCE, _PREDICTION, _INSIDE, _OUTSIDE = "#0072b2", "#d55e00", "#009e73", "#cc79a7"
_HALF_MM = 28.0  # half the width of a displayed slice


@dataclass(frozen=True)
class Scan:
    """A test case with its masks after k clicks (canonical, bool) and scores, each for "before" and "after"."""

    pet: Volume
    label: Volume
    masks: dict[str, dict[int, np.ndarray]]
    scores: dict[str, CaseScore]


def scan_of(case: Case, predictors: Mapping[str, Predictor]) -> Scan:
    images, label = read_case(case, ["PT"])
    masks: dict[str, dict[int, np.ndarray]] = {}
    scores = {}
    for when, predictor in predictors.items():
        kept = masks.setdefault(when, {})
        scores[when] = simulate_case(predictor, images, label, CLICKS, case=case.id, on_mask=kept.__setitem__)
    return Scan(images["PT"], label, masks, scores)


def dice_table(scans: Sequence[Scan]) -> dict[tuple[str, int], np.ndarray]:
    """Dice of all test lesions, in the same order, for ("before" or "after", number of clicks)."""
    return {
        (when, k): np.array([lesion.dice[k] for scan in scans for lesion in scan.scores[when].lesions])
        for when in WHEN
        for k in CLICKS
    }


def at_quartiles(gain: np.ndarray) -> list[int]:
    """Indices of the lesions at the upper quartile, the median and the lower quartile of the gain."""
    order = np.argsort(-gain, kind="stable")
    places = np.rint((len(gain) - 1) * np.array([0.25, 0.5, 0.75])).astype(int)
    return list(dict.fromkeys(order[places].tolist()))


def lesions_figure(scans: Sequence[Scan], chosen: Sequence[int]) -> Figure:
    """One row per chosen lesion: one click before and after, three clicks before and after."""
    places = [(scan, number) for scan in scans for number in range(len(scan.scores["before"].lesions))]
    figure = Figure(figsize=(10.5, 2.75 * len(chosen) + 1.1), layout="constrained")
    FigureCanvasAgg(figure)
    for row, index in zip(figure.subplots(len(chosen), 4, squeeze=False), chosen, strict=True):
        scan, number = places[index]
        columns = [(when, k) for k in CLICKS for when in WHEN]
        for axes, (when, k) in zip(row, columns, strict=True):
            _draw_slice(axes, scan, number, when, k)
        row[0].set_ylabel(f"lesion of {scan.scores['before'].lesions[number].volume_ml:.1f} ml")
    for axes, (when, k) in zip(figure.axes[:4], [(when, k) for k in CLICKS for when in WHEN], strict=True):
        axes.set_title(f"{_NAMES[when]}, {k} click{'s' if k > 1 else ''}", fontsize=12)
    marks = [
        Line2D([], [], color=_REFERENCE, linewidth=2.2, label="reference"),
        Line2D([], [], color=_PREDICTION, linewidth=1.6, linestyle="dashed", label="prediction"),
        Line2D(
            [], [], color=_INSIDE, marker="+", linestyle="", markersize=11, markeredgewidth=2.5, label="click: lesion"
        ),
        Line2D(
            [],
            [],
            color=_OUTSIDE,
            marker="x",
            linestyle="",
            markersize=9,
            markeredgewidth=2.5,
            label="click: not lesion",
        ),
    ]
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False, fontsize=11)
    figure.suptitle("Three test lesions in axial PET, before and after fine-tuning", fontsize=13)
    return figure


def _draw_slice(axes: Axes, scan: Scan, number: int, when: str, k: int) -> None:
    score = scan.scores[when]
    lesion = score.lesions[number]
    clicks = [click for click in score.clicks if click.lesion == lesion.lesion][:k]
    centre = scan.pet.to_vox(clicks[0].position_mm)
    z = int(np.rint(centre[2]))
    step = scan.pet.spacing_mm
    # Voxel centres in mm relative to the first click; the patient's right (high x) is on the left of the figure.
    x, y = ((np.arange(scan.pet.array.shape[axis]) - centre[axis]) * step[axis] for axis in (0, 1))
    x = -x
    high = max(4.0, float(scan.pet.array[scan.label.array > 0].max(initial=0)) * 0.4)
    axes.pcolormesh(
        x, y, scan.pet.array[:, :, z].T, cmap="gray_r", vmin=0, vmax=high, shading="nearest", rasterized=True
    )
    for mask, colour, style, width in (
        (scan.label.array > 0, _REFERENCE, "solid", 2.2),
        (scan.masks[when][k], _PREDICTION, "dashed", 1.6),
    ):
        _outline(axes, mask[:, :, z], x, y, colour, style, width)
    for click in clicks:
        at = scan.pet.to_vox(click.position_mm)
        if abs(at[2] - z) < 1.5:
            mark, colour = ("+", _INSIDE) if click.label else ("x", _OUTSIDE)
            where = -(at[0] - centre[0]) * step[0], (at[1] - centre[1]) * step[1]
            axes.plot(*where, mark, color=colour, markersize=11 if click.label else 9, markeredgewidth=2.5)
    axes.text(
        0.04, 0.95, f"Dice {lesion.dice[k]:.2f}", transform=axes.transAxes, va="top", fontsize=12, fontweight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2},
    )  # fmt: skip
    axes.set(xlim=(-_HALF_MM, _HALF_MM), ylim=(-_HALF_MM, _HALF_MM), xticks=[], yticks=[], aspect="equal")


def _outline(axes: Axes, mask: np.ndarray, x: np.ndarray, y: np.ndarray, colour: str, style: str, width: float) -> None:
    """Draw the outline of a mask along its voxel edges."""
    if not mask.any():
        return
    fine = np.kron(mask, np.ones((8, 8))).T

    def finer(centres: np.ndarray) -> np.ndarray:
        spacing = centres[1] - centres[0]
        return centres[0] - spacing / 2 + (np.arange(8 * len(centres)) + 0.5) * spacing / 8

    axes.contour(finer(x), finer(y), fine, levels=[0.5], colors=colour, linestyles=style, linewidths=width)


def gain_figure(dice: Mapping[tuple[str, int], np.ndarray], cases: int) -> Figure:
    """Lines from before to after for every lesion and for the mean, at one and at three clicks."""
    figure = Figure(figsize=(8, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, k in zip(figure.subplots(1, 2, sharey=True), CLICKS, strict=True):
        pairs = np.stack([dice["before", k], dice["after", k]])
        axes.plot([0, 1], pairs, color="0.75", linewidth=0.9, marker="o", markersize=3)
        mean = pairs.mean(1)
        axes.plot([0, 1], mean, color=_PREDICTION, linewidth=3, marker="o", markersize=9)
        for at, value, side in ((0, mean[0], "right"), (1, mean[1], "left")):
            axes.annotate(
                f"{value:.2f}", (at, value), (-12 if side == "right" else 12, 0), textcoords="offset points", ha=side,
                va="center", fontsize=14, fontweight="bold", color=_PREDICTION,
            )  # fmt: skip
        axes.set(xlim=(-0.4, 1.4), ylim=(0, 1), xticks=[0, 1], title=f"{k} click{'s' if k > 1 else ''} per lesion")
        axes.set_xticklabels([_NAMES[when] for when in WHEN], fontsize=11)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("Dice with the reference")
    shown = [
        Line2D([], [], color="0.75", marker="o", markersize=3, label="a test lesion"),
        Line2D([], [], color=_PREDICTION, linewidth=3, marker="o", markersize=9, label="mean"),
    ]
    figure.legend(handles=shown, loc="outside lower center", ncols=2, frameon=False)
    count = len(dice["before", CLICKS[0]])
    figure.suptitle(f"{count} lesions of {cases} test phantoms, before and after fine-tuning", fontsize=13)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("after", help="the fine-tuned export")
    parser.add_argument("--before", default="mini", help="the weights before fine-tuning")
    parser.add_argument("--out", type=Path, default=Path("demo"))
    given = parser.parse_args()
    cases = read_manifest(given.manifest).split("test")
    predictors = {"before": Predictor.from_pretrained(given.before), "after": Predictor.from_pretrained(given.after)}
    scans = [scan_of(case, predictors) for case in tqdm(cases, "test cases", unit="case", leave=False)]
    dice = dice_table(scans)
    given.out.mkdir(parents=True, exist_ok=True)
    chosen = at_quartiles(dice["after", 1] - dice["before", 1])
    figures = {"gain": gain_figure(dice, len(cases)), "lesions": lesions_figure(scans, chosen)}
    for name, figure in figures.items():
        with whole_file(given.out / f"{name}.png") as temporary:
            figure.savefig(temporary, dpi=100, format="png")
    table = Table(title=f"Mean Dice of {len(dice['before', 1])} test lesions")
    table.add_column("clicks per lesion")
    for when in WHEN:
        table.add_column(_NAMES[when], justify="right")
    for k in CLICKS:
        table.add_row(str(k), *(f"{dice[when, k].mean():.3f}" for when in WHEN))
    Console().print(table)
    print(f"Figures: {given.out / 'gain.png'}, {given.out / 'lesions.png'}")


if __name__ == "__main__":
    main()
