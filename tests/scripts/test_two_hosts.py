"""Two hosts, simulated by network namespaces, agree with one process and end when they lose each other.

A part of scripts/two_hosts.py, which also kills each host.
"""

from __future__ import annotations

import runpy
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "two_hosts.py"


@pytest.mark.slow
def test_two_hosts_agree_with_one_process_and_end_when_the_network_fails(tmp_path: Path) -> None:
    script = runpy.run_path(str(SCRIPT))
    if reason := script["missing"]():
        pytest.skip(reason)
    with script["Hosts"]() as hosts:
        trial = script["Trial"](tmp_path, hosts, contact_seconds=20)
        trial.compare()
        trial.disturb("network cut", trial.training("cut"), "cut", "checkpoints/step_3", hosts.cut, [0, 1])
    assert trial.wrong == []
    assert [what for what, *_ in trial.rows][-3:] == [
        "network cut, host 0",
        "network cut, host 1",
        "network cut, run again",
    ]
    assert all("lost contact with another process" in screen for *_, screen in trial.rows[-3:-1])
    left = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    assert not any(name in left for name in hosts.names)


def test_the_reason_for_not_running_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = runpy.run_path(str(SCRIPT))["missing"]
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert missing() == "needs Linux and root"
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setenv("PATH", "")
    assert missing() == "needs the command `ip` (package iproute2)"
