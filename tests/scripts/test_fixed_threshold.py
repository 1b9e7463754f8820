"""The one-click threshold rule, on a case counted by hand and on the real cohort."""

from __future__ import annotations

import re
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sammed3d_ft.dataset.builders import from_folders
from sammed3d_ft.dataset.manifest import write_manifest
from sammed3d_ft.dataset.splits import assign_splits, read_splits

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "fixed_threshold.py"


@pytest.fixture(scope="module")
def rule():
    return runpy.run_path(str(SCRIPT))["RULE"].region_of


def test_the_rule_by_hand(rule) -> None:
    pet = np.zeros((20, 9, 9), np.float32)
    pet[5, 4, 4] = 10.0  # 15 mm from the click along x, at 3 mm
    pet[6, 4, 4] = 4.1  # just at 41 %
    pet[6, 5, 5] = 4.05  # just below
    pet[7, 5, 4] = 5.0  # shares an edge with (6, 4, 4)
    pet[8, 6, 5] = 5.0  # shares a corner only: another component
    pet[17, 4, 4] = 40.0  # higher, but 21 mm away
    found = rule(pet, np.array([10, 4, 4]), np.array([3.0, 4.0, 4.0]))
    assert set(map(tuple, np.argwhere(found).tolist())) == {(5, 4, 4), (6, 4, 4), (7, 5, 4)}
    nearer = rule(pet, np.array([11, 4, 4]), np.array([3.0, 4.0, 4.0]))  # 18 mm to both
    assert np.argwhere(nearer).tolist() == [[17, 4, 4]]


@pytest.mark.parametrize(
    ("options", "count", "array", "model"),
    [([], 34, 0.6215, 0.6095), (["--split", "test"], 5, 0.6687, 0.6688)],
)
def test_real_cohort(
    options: list[str], count: int, array: float, model: float, real_data: Path, tmp_path: Path
) -> None:
    folder = real_data / "fdg_pet_sarcoma"
    cases = from_folders(folder, "{id}/PET_image.nii.gz", "{id}/PET_mask.nii.gz", None)
    write_manifest(tmp_path / "m.json", assign_splits(cases, read_splits(folder / "splits.json", "holdout", None)))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path / "m.json"), *options],
        cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    last = done.stdout.splitlines()[-1]
    found = re.fullmatch(rf"mean of {count} +([\d.]+) +([\d.]+)", last)
    assert found is not None, last
    assert float(found[1]) == pytest.approx(array, abs=1e-4)
    assert float(found[2]) == pytest.approx(model, abs=1e-4)
