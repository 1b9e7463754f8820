"""How one of several processes ends, seen from outside."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = """
import atexit, sys
from sammed3d_ft.training.stopping import leave

class Teardown:
    def __del__(self, print=print):
        print("torn down", flush=True)

kept = Teardown()
atexit.register(print, "registered")
print("not yet written", end=" ")
leave(int(sys.argv[1]))
print("went on")
"""


@pytest.mark.parametrize("code", [0, 2])
@pytest.mark.parametrize("processes", [1, 2])
def test_one_of_several_ends_by_its_code_before_the_interpreter_is_torn_down(processes: int, code: int) -> None:
    """In both cases, registered exit functions run and printed output is flushed."""
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(code)],
        cwd=ROOT,
        env={**os.environ, "WORLD_SIZE": str(processes)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert ended.returncode == code
    if processes > 1:
        assert ended.stdout == "not yet written registered\n"
    elif code == 0:
        assert ended.stdout == "not yet written went on\nregistered\ntorn down\n"
    else:
        assert ended.stdout == "not yet written registered\ntorn down\n"
