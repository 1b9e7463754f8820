"""scripts/zero_shot.py: the click mode is used, and named in table and CSV."""

from __future__ import annotations

import csv
import runpy
import sys
from pathlib import Path

import pytest

from tests.support.tiny_cases import write_cohort

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "zero_shot.py"


def test_click_modes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = write_cohort(tmp_path, 0, 0, 1)
    monkeypatch.setenv("COLUMNS", "400")
    dice = {}
    for option, mode, told in (
        ("--accumulate-clicks", "true", "accumulated clicks"),
        ("--newest-click-only", "false", "newest click only"),
    ):
        out = tmp_path / f"{mode}.csv"
        monkeypatch.setattr(sys, "argv", ["zero_shot", str(manifest), option, "--clicks", "1", "5", "--out", str(out)])
        runpy.run_path(str(SCRIPT), run_name="__main__")
        assert told in " ".join(capsys.readouterr().out.split())
        with out.open() as table:
            (row,) = csv.DictReader(table)
        assert row["accumulate_clicks"] == mode
        dice[mode] = (row["dice@1"], row["dice@5"])
    assert dice["true"][0] == dice["false"][0]
    assert dice["true"][1] != dice["false"][1]
