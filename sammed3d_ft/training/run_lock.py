"""Run-folder lock: only one process may write a run. A killed launcher can leave its training process running."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sammed3d_ft.errors import InputError

try:
    import fcntl
except ImportError:  # not available on Windows
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)


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
    """
    if fcntl is None:
        _log.warning("%s cannot be locked on this system: make sure that no other process writes to it", folder)
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / name).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise RunHeldError(
                f"{folder}: another process (pid {holder}) is writing this run; wait for it, or stop it first"
            ) from None
        except OSError as error:  # a file system without locks
            _log.warning("%s cannot be locked (%s): make sure that no other process writes to it", folder, error)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
