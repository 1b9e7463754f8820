"""The demo's figures: which lesions are shown, and that everything is drawn from the masks and scores given."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sammed3d_ft.dataset.manifest import read_manifest
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.phantom import write_cohort
from sammed3d_ft.prompted.predictor import Predictor
from sammed3d_ft.prompted.preprocessing import Preprocessing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "scripts" / "demo_figures.py"))


def test_lesions_at_the_quartiles_are_shown(script: dict[str, Any]) -> None:
    gain = np.array([0.0, 0.4, -0.1, 0.2, 0.3])
    assert script["at_quartiles"](gain) == [4, 3, 0]  # of 0.4, 0.3, 0.2, 0.0, -0.1 the second, third and fourth
    assert script["at_quartiles"](np.array([0.1])) == [0]


def test_figures_show_every_lesion_before_and_after(script: dict[str, Any], tmp_path: Path) -> None:
    manifest = write_cohort(tmp_path / "data", 2, seed=1, field="pelvis", test=1, scanner="older", outline="41%")
    models = {"before": seeded_model("mini", 0, 1), "after": seeded_model("mini", 1, 1)}
    predictors = {when: Predictor(model, Preprocessing(("PT",), 3.0), zoom=False) for when, model in models.items()}
    scans = [script["scan_of"](case, predictors) for case in read_manifest(manifest).split("test")]
    dice = script["dice_table"](scans)
    count = len(scans[0].scores["before"].lesions)
    assert count
    assert {values.shape for values in dice.values()} == {(count,)}
    gain = script["gain_figure"](dice, 1)
    assert len(gain.axes[0].lines) == count + 1  # a line for each lesion, and their mean
    np.testing.assert_allclose(
        gain.axes[1].lines[-1].get_ydata(), [dice[when, 3].mean() for when in ("before", "after")]
    )
    slices = script["lesions_figure"](scans, [0])
    titles = [axes.get_title() for axes in slices.axes]
    assert titles == ["as shipped, 1 click", "fine-tuned, 1 click", "as shipped, 3 clicks", "fine-tuned, 3 clicks"]
    shown = [axes.texts[0].get_text() for axes in slices.axes]
    assert shown == [f"Dice {dice[when, k][0]:.2f}" for k in (1, 3) for when in ("before", "after")]
    slices.savefig(tmp_path / "lesions.png")
