"""Run-folder lock: only one process may write a run. A killed launcher can leave its training process running."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sammed3d_ft.errors import InputError


class RunHeldError(InputError):
    """Another process is writing to this run folder."""


@contextmanager
def locked_run(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Lock a run folder for the duration of the block; if the process dies, the system releases the lock.

    Args:
        folder: the run folder.
        name: name of the lock file in it. A process that starts another one to write the run must use a different
            name.

    Raises:
        RunHeldError: another process holds the lock.
        InputError: the folder cannot be written to, or its file system refuses locks.
    """
    file = folder / name
    lock = FileLock(file)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        holder = file.read_text(encoding="utf-8").strip() or "unknown"
        raise RunHeldError(
            f"{folder}: another process (pid {holder}) is writing this run; wait for it, or stop it first"
        ) from None
    except OSError as error:
        raise InputError(f"{folder}: cannot be written or locked ({error.strerror or error})") from error
    try:
        file.write_text(f"{os.getpid()} on {platform.node()}", encoding="utf-8")
        yield
    finally:
        lock.release()
