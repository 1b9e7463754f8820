"""Runs a command in this process under limits, and judges whether it answered a hostile input as it should."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from sammed3d_ft.cli import main as command
from sammed3d_ft.recipes import train

MEMORY = 2 << 30
"""Bytes of address space that a command may add."""
SECONDS = 60


@dataclass(frozen=True)
class Input:
    """A hostile input.

    Attributes:
        name: unique.
        kind: group in the table.
        make: builds the files in a folder and returns the words of the command line; ``finetune.py`` as first word runs
            a training.
        code: the right exit code, or several.
        says: what the line must match, besides naming what is wrong.
        writes: patterns of files that the command may leave or replace by whole ones although it failed.
        around: a context in which the command runs, such as a full disk.
    """

    name: str
    kind: str
    make: Callable[[Path], tuple[object, ...]]
    code: int | tuple[int, ...] = 2
    says: str = ""
    writes: tuple[str, ...] = ()
    around: Callable[[Path], contextlib.AbstractContextManager[None]] = lambda _: contextlib.nullcontext()


@dataclass
class Answer:
    """What a command did."""

    code: int | None
    stdout: str
    stderr: str
    seconds: float
    memory_mb: float
    words: tuple[str, ...]
    crash: str = ""
    changed: list[str] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)


def run(given: Input, folder: Path, capfd: pytest.CaptureFixture[str]) -> Answer:
    """Build the input, run its command and return what came of it."""
    words = tuple(map(str, given.make(folder)))
    before = _contents(folder)
    capfd.readouterr()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.monotonic()
    with warnings.catch_warnings(record=True) as caught, _limits(), given.around(folder):
        warnings.simplefilter("default")
        warnings.simplefilter("ignore", DeprecationWarning)
        code, crash = _exit_code(words)
    shown = capfd.readouterr()
    after = _contents(folder)
    return Answer(
        code=code,
        stdout=shown.out,
        stderr=shown.err,
        seconds=time.monotonic() - started,
        memory_mb=(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) / 1024,
        words=words,
        crash=crash,
        changed=[name for name, digest in before.items() if after.get(name) != digest],
        written=[name for name in after if name not in before],
        warned=[str(one.message) for one in caught],
    )


def complaints(given: Input, answer: Answer) -> list[str]:
    """What is wrong with the answer; nothing if it is as asked."""
    found = []
    if answer.crash:
        found.append(f"traceback: {answer.crash}")
    if answer.code not in (given.code if isinstance(given.code, tuple) else (given.code,)):
        found.append(f"exit code {answer.code}, expected {given.code}")
    lines = [line for line in answer.stderr.split("\n") if line.strip()]

    def unexpected(names: list[str]) -> list[str]:
        return [name for name in names if not any(Path(name).match(one) for one in given.writes)]

    if lost := unexpected(answer.changed) if answer.code else []:
        found.append(f"lost or changed: {lost}")
    if answer.warned:
        found.append(f"warnings: {answer.warned}")
    if answer.code == 2:
        # `check` lists its findings in a table and counts them on the line.
        start = "error: " if answer.words[0] != "check" or not answer.stdout else f"{answer.words[1]}: "
        errors = [line for line in lines if line.startswith(start)]
        noise = [line for line in lines if line not in errors]
        if len(errors) != 1 or noise:
            found.append(f"{len(errors)} error lines and {len(noise)} others: {lines[:5]}")
        elif not re.search(given.says, errors[0]):
            found.append(f"unclear: {errors[0]}")
        elif len(errors[0]) > 2500:
            found.append(f"a line of {len(errors[0])} characters")
        if answer.stdout and answer.words[0] not in ("check", "weights"):
            found.append(f"printed: {answer.stdout[:200]}")
        if left := unexpected(answer.written):
            found.append(f"left behind: {left}")
    elif answer.code == 3 and not re.search(given.says, answer.stderr + answer.stdout):
        found.append(f"unclear: {lines[:5]}")
    elif any(".incomplete" in name for name in answer.written):
        found.append(f"left behind: {answer.written}")
    return found


def _exit_code(words: tuple[str, ...]) -> tuple[int | None, str]:
    argv = sys.argv
    sys.argv = ["sammed3d-ft", *words]
    try:
        if words[0] == "finetune.py":
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(train, "leave", sys.exit)  # the real one ends the process at once
                train.main(words[1:])
        else:
            command.main()
    except SystemExit as end:
        return (end.code if isinstance(end.code, int) else int(bool(end.code))), ""
    except BaseException as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        return None, f"{type(error).__name__}: {error} at {Path(last.filename).name}:{last.lineno}"
    finally:
        sys.argv = argv
    return 0, ""


@contextlib.contextmanager
def _limits() -> Iterator[None]:
    """Stop a command that takes too long or too much memory."""

    def too_slow(*_: object) -> None:
        raise TimeoutError(f"no answer in {SECONDS} s")

    signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(SECONDS)
    old = resource.getrlimit(resource.RLIMIT_AS)
    status = Path("/proc/self/status")
    if status.exists():
        found = re.search(r"VmSize:\s*(\d+)", status.read_text())
        assert found is not None
        resource.setrlimit(resource.RLIMIT_AS, (int(found[1]) * 1024 + MEMORY, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, old)
        signal.alarm(0)


def _contents(folder: Path) -> dict[str, str]:
    """Hash of every regular file below a folder, by path."""
    found = {}
    for directory, _, names in os.walk(folder):
        for name in names:
            path = Path(directory, name)
            with contextlib.suppress(OSError):
                if path.is_file() and not path.is_symlink():
                    found[str(path.relative_to(folder))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found
