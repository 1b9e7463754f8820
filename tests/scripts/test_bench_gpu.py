"""The GPU benchmark runs to its end, so that whoever has a GPU can report; checked on a CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "bench_gpu.py"


@pytest.mark.slow
def test_it_runs_on_a_cpu_with_every_row() -> None:
    words = ["--device", "cpu", "--variant", "mini", "--batches", "1", "--repeats", "1", "--rounds", "2"]
    ended = subprocess.run([sys.executable, str(SCRIPT), *words], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.count("training step, mini, batch 1, 2 rounds") == 2
    assert "validation, mini" in ended.stdout
    assert ended.stdout.count("ours, full, deterministic") == 2
    assert "Error" not in ended.stdout
