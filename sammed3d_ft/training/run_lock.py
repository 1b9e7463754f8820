"""One writer per run folder: a launcher that was killed may have left its training alive."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prompts.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has none
    fcntl = None  # type: ignore[assignment]

_log = logging.getLogger(__name__)


class RunHeldError(InputError):
    """Another process is writing this run."""


@contextmanager
def locked_run(folder: Path, name: str = ".lock") -> Iterator[None]:
    """Holds a run folder for the block; when a process dies, the system frees what it held.

    Args:
        folder: of the run.
        name: of the file in it. A process that starts another one to write the run holds a lock of its own name.

    Raises:
        RunHeldError: another process holds it.
    """
    if fcntl is None:
        _log.warning("%s cannot be locked on this system: take care that no second process writes it", folder)
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
                f"{folder}: another process (pid {holder}) is writing this run; wait for it, or end it first"
            ) from None
        except OSError as error:  # a file system without locks
            _log.warning("%s cannot be locked (%s): take care that no second process writes it", folder, error)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
