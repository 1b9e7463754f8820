"""A run killed in every phase ends like an uninterrupted one: a short form of scripts/kill_and_resume.py."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "kill_and_resume.py"


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_in_the_same_bytes(tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    kills, wrong = script["kill_and_resume"](tmp_path, kills=5, seed=1)
    assert {kill.phase for kill in kills} == {"cache", "step", "checkpoint", "validation"}
    assert wrong == []
    model = tmp_path / "killed" / "export" / "model.safetensors"
    assert model.read_bytes() == (tmp_path / "undisturbed" / "export" / "model.safetensors").read_bytes()


def test_what_cannot_be_read_is_found(tmp_path: Path) -> None:
    unreadable = runpy.run_path(str(SCRIPT))["unreadable"]
    (tmp_path / "fine.json").write_text("{}")
    assert unreadable(tmp_path) == []
    (tmp_path / "cut.json").write_text("{")
    (tmp_path / "cut.safetensors").write_bytes(b"\x08")
    (tmp_path / ".x.incomplete").touch()
    names = [line.partition(": ")[0].rpartition("/")[2] for line in unreadable(tmp_path)]
    assert names == [".x.incomplete", "cut.json", "cut.safetensors"]
