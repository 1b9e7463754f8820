"""Contact between processes: a lost one ends the others in time, a slow one does not."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sammed3d_ft.errors import InputError
from sammed3d_ft.training.contact import VARIABLE, contact_seconds, in_contact

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the processes need gloo and POSIX signals")

# The arguments are what rank 0 and rank 1 do in the block.
_PROGRAM = """
import os, signal, sys, time
import torch
from torch import distributed
from sammed3d_ft.errors import InputError
from sammed3d_ft.training.contact import in_contact
from sammed3d_ft.training.failures import print_error
from sammed3d_ft.training.stopping import leave

try:
    with in_contact(lambda: distributed.init_process_group("gloo")):
        exec(sys.argv[1 + int(os.environ["RANK"])])
except InputError as error:
    print_error(str(error))
    leave(2)
leave(0)
"""
_WAIT = "distributed.all_reduce(torch.ones(1))"


@contextmanager
def started(*work: str, seconds: float, ranks: tuple[int, ...] = (0, 1)) -> Iterator[list[subprocess.Popen[str]]]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), VARIABLE: str(seconds), "OMP_NUM_THREADS": "1"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *work],
            env={**environment, "RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ranks
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("stopped", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_process_that_no_longer_answers_ends_the_other_with_one_line(stopped: int) -> None:
    """A stopped process keeps its connections open, like a machine behind a broken network."""
    work = [f"{_WAIT}; {_WAIT}"] * 2
    work[stopped] = f"{_WAIT}; print('stopping', flush=True); os.kill(os.getpid(), signal.SIGSTOP)"
    with started(*work, seconds=6) as processes:
        assert processes[stopped].stdout is not None
        processes[stopped].stdout.readline()
        began = time.monotonic()
        _, said = processes[1 - stopped].communicate(timeout=120)
        took = time.monotonic() - began
        assert processes[1 - stopped].returncode == 2
    told = [line for line in said.splitlines() if "error: " in line]
    assert len(told) == 1, said
    assert "lost contact with another process of this run" in told[0]
    assert "Re-run the same command to resume" in told[0]
    assert "Traceback" not in said
    assert 4 < took < 60  # the limit, and what a busy machine adds


@pytest.mark.slow
@pytest.mark.parametrize("waits", [_WAIT, "time.sleep(60)"])
def test_a_process_that_is_killed_ends_the_other_at_once_with_one_line(waits: str) -> None:
    work = "time.sleep(1); os.kill(os.getpid(), signal.SIGKILL)"
    with started(waits, work, seconds=500) as processes:
        _, said = processes[0].communicate(timeout=45)
        assert processes[0].returncode == 2, said
        assert processes[1].wait(10) == -signal.SIGKILL
    assert said.count("error: lost contact with another process of this run") == 1
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_slow_process_is_waited_for(tmp_path: Path) -> None:
    """Longer than the limit, in the block and at its end."""
    slow = f"time.sleep(8); {_WAIT}; time.sleep(8)"
    with started(_WAIT, slow, seconds=6) as processes:
        ended = [process.communicate(timeout=120)[1] for process in processes]
        assert [process.returncode for process in processes] == [0, 0], ended


@pytest.mark.slow
def test_an_error_of_one_process_is_its_own_to_report() -> None:
    with started(_WAIT, "raise InputError('case 7: unreadable')", seconds=500) as processes:
        ended = [process.communicate(timeout=120)[1] for process in processes]
        assert [process.returncode for process in processes] == [2, 2], ended
    assert "error: process 1: case 7: unreadable" in ended[1]
    assert "lost contact" not in ended[1]
    assert ended[0].count("error: lost contact") == 1


def test_processes_that_do_not_start_are_not_waited_for() -> None:
    with started("", "", seconds=3, ranks=(0,)) as processes:
        _, said = processes[0].communicate(timeout=120)
        assert processes[0].returncode == 2, said
    assert "error: the other processes of this run have not all started within 3 s of this one" in said


def test_a_single_process_has_nobody_to_lose() -> None:
    with in_contact(lambda: torch.zeros(1)) as state:
        assert state.item() == 0


@pytest.mark.parametrize("given", ["", "soon", "0", "-5", "nan", "inf"])
def test_a_limit_that_is_no_number_of_seconds_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, given)
    with pytest.raises(InputError, match=f"{VARIABLE}={given}: expected a number of seconds"):
        contact_seconds()
