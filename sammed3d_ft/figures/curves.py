"""Training curves of a run, from its metrics.jsonl: loss, and validation Dice after k clicks or without clicks."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sammed3d_ft.errors import InputError
from sammed3d_ft.files import whole_file

_log = logging.getLogger(__name__)

_DICE_AT = re.compile(r"val/dice(?:@(\d+))?")  # without a number for models that take no clicks
_SMOOTHED_SHARE = 0.05  # share of the logged steps in the running mean drawn over the noisy loss

Curve = tuple[np.ndarray, np.ndarray]
"""Steps (increasing) and values, both (n,)."""


def draw_training_curves(run_folder: Path) -> Path:
    """Draw loss and validation Dice over training steps to ``curves.png`` in the run folder.

    Args:
        run_folder: holds ``metrics.jsonl``: JSON lines with ``step`` and any of ``train/loss``,
            ``val/dice@k``, ``val/dice``.

    Returns:
        The PNG's path.

    Raises:
        InputError: metrics.jsonl is missing, or contains nothing to draw.
    """
    figure = curves_figure(read_curves(run_folder / "metrics.jsonl"), run_folder / "metrics.jsonl")
    out = run_folder / "curves.png"
    with whole_file(out) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    return out


def curves_figure(curves: Mapping[str, Curve], source: Path) -> Figure:
    """The figure of curves read from the file ``source``."""
    loss = curves.get("train/loss")
    dice = {int(m[1] or 0): curve for name, curve in curves.items() if (m := _DICE_AT.fullmatch(name))}
    if loss is None and not dice:
        raise InputError(f"{source}: nothing to draw, as it contains neither train/loss nor val/dice@k")

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_loss(left, loss)
    _draw_dice(right, dice)
    for axes in (left, right):
        axes.set_xlabel("optimiser step")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def read_curves(path: Path) -> dict[str, Curve]:
    """Every finite number of a metrics.jsonl over the steps, by name.

    If a step was logged twice (by a run resumed from an earlier checkpoint), the later line counts. A truncated line,
    as a killed run may leave, is skipped with a warning.

    Raises:
        InputError: no such file.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; training writes it") from None
    values: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            step = int(entry.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError):
            _log.warning("%s: line %d skipped, as it is not a JSON object with a step", path, number)
            continue
        for name, value in entry.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
                values.setdefault(name, {})[step] = float(value)
    return {
        name: (np.array(sorted(by_step)), np.array([by_step[step] for step in sorted(by_step)]))
        for name, by_step in values.items()
    }


def _draw_loss(axes: Axes, loss: Curve | None) -> None:
    axes.set_title("Training loss")
    axes.set_ylabel("loss")
    if loss is None:
        return
    steps, values = loss
    width = max(1, round(_SMOOTHED_SHARE * len(values)))
    axes.plot(steps, values, color="0.7", linewidth=0.8, label="each logged step")
    if width > 1:
        # A trailing window, so that no step's mean uses later values.
        total = np.concatenate([[0.0], np.cumsum(values)])
        ends = np.arange(1, len(values) + 1)
        starts = np.maximum(ends - width, 0)
        mean = (total[ends] - total[starts]) / (ends - starts)
        axes.plot(steps, mean, color="C0", linewidth=1.6, label=f"mean of the last {width}")
        axes.legend(frameon=False)


def _draw_dice(axes: Axes, dice: dict[int, Curve]) -> None:
    axes.set_title("Validation Dice" if set(dice) == {0} else "Validation Dice after k clicks")
    axes.set_ylabel("mean Dice")
    axes.set_ylim(0, 1)
    colours = colormaps["viridis"](np.linspace(0.0, 0.85, max(len(dice), 1)))
    for colour, (clicks, (steps, values)) in zip(colours, sorted(dice.items()), strict=False):
        best = int(values.argmax())
        label = f"{clicks or 'no'} click{'' if clicks == 1 else 's'} (best {values[best]:.3f} at step {steps[best]})"
        axes.plot(steps, values, color=colour, marker="o", markersize=3, label=label)
    if dice:
        axes.legend(frameon=False, loc="best")
