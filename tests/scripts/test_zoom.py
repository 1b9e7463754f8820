"""The script that compares prediction with and without zooming, on a case whose lesion leaves its first crop."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sammed3d_ft.data.manifest import write_manifest
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.weights import save_safetensors
from tests.data.tiny_cases import write_case

ROOT = Path(__file__).resolve().parents[2]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "scripts" / "zoom.py"), *map(str, words)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120", "PATH": ""}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_each_named_case_has_a_row_per_number_of_clicks(tmp_path: Path) -> None:
    cases = [write_case(tmp_path, f"case_{number}", [((12.0, 12.0, 12.0), 48.0)], split="test") for number in range(3)]
    write_manifest(tmp_path / "manifest.json", cases)
    # Random weights, which find something at every border and so zoom out.
    save_safetensors(tmp_path / "model.safetensors", seeded_model("mini", 0).state_dict(), {})
    given = ("--checkpoint", tmp_path / "model.safetensors", "--spacing-mm", "1", "--clicks", 1, 2)
    told = run(tmp_path / "manifest.json", "--cases", "case_2", "case_0", *given)
    assert told.returncode == 0, told.stderr
    rows = [line.replace("│", " ").split() for line in told.stdout.splitlines() if "│ case_" in line]
    assert [row[:2] for row in rows] == [["case_2", "1"], ["case_2", "2"], ["case_0", "1"], ["case_0", "2"]]
    # A ball of 96 mm in crops of 64 mm: what lies outside of the first crop cannot be found in it.
    most = 2 * 64**3 / (64**3 + 4.19 * 48**3)
    assert all(float(row[2]) < most for row in rows)
    assert all(float(row[3]) != float(row[2]) for row in rows)
    wrong = run(tmp_path / "manifest.json", "--cases", "case_9")
    assert wrong.returncode == 1
    assert "holds no case case_9" in wrong.stderr
