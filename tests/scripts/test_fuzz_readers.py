"""The fuzzer of the readers finds nothing within seconds, and would tell what it finds."""

from __future__ import annotations

import json
import random
import runpy
import subprocess
import sys
from pathlib import Path

from tests.hostile.mutated_files import mutated

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "fuzz_readers.py"


def test_seconds_on_click_files(tmp_path: Path) -> None:
    words = [sys.executable, str(SCRIPT), "--reader", "clicks", "--seconds", "2", "--out", str(tmp_path)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found = json.loads((tmp_path / "summary.json").read_text())["clicks"]
    assert found["crash"] == 0
    assert found["read"] > 0
    assert found["refused"] > 0
    assert found["executions"] == found["read"] + found["refused"]


def test_an_input_can_be_made_again_from_its_number() -> None:
    seed = bytes(range(256)) * 4
    first, again, other = (mutated(seed, random.Random(number)) for number in (1, 1, 2))
    assert first == again
    assert len({seed, first, other}) == 3


def test_crashes_are_told_apart_by_the_line_that_raised() -> None:
    origin = runpy.run_path(str(SCRIPT))["origin"]

    def raised(number: int) -> str:
        try:
            [int, float][number]("x") if number else {}["x"]
        except Exception as error:
            return origin(error)
        raise AssertionError

    assert raised(0).startswith("KeyError at test_fuzz_readers.py:")
    assert raised(1).startswith("ValueError at test_fuzz_readers.py:")
