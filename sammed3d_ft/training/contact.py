"""Contact between the processes of a run: if one dies or the network fails, the others end soon.

Processes may legitimately wait long for each other, since cases differ in size; a timeout of their collective
operations therefore cannot tell slow from dead. A thread of each process exchanges one number with the others every few
seconds instead.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TypeVar

import torch
from torch import distributed

from sammed3d_ft.errors import InputError
from sammed3d_ft.training.failures import lost_contact, print_error

VARIABLE = "SAMMED3D_CONTACT_SECONDS"
_State = TypeVar("_State")


def contact_seconds() -> float:
    """Seconds without an answer after which a process counts as lost; InputError if the variable is not a number."""
    given = os.environ.get(VARIABLE, "300")
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds < 1e6:
        raise InputError(f"{VARIABLE}={given}: expected a number of seconds of at least 1, such as 300")
    return seconds


@contextmanager
def in_contact(join: Callable[[], _State]) -> Iterator[_State]:
    """Join the other processes of the launch, and stay in contact during the block; a single process only joins.

    A process that loses the others prints one line and exits with code 2. At the end of the block all processes wait
    for each other.

    Args:
        join: creates accelerate's state, which waits for the other processes.

    Raises:
        InputError: a collective operation of the block failed, because another process ended.
    """
    seconds = contact_seconds()
    with _limit(seconds):
        state = join()
        contact = _Contact(seconds) if distributed.is_available() and distributed.is_initialized() else None
    try:
        yield state
    except BaseException as error:
        if contact is not None:
            contact.silent = True  # this process reports its own error
        if isinstance(error, RuntimeError) and (isinstance(error, distributed.DistError) or "/gloo/" in str(error)):
            raise InputError(lost_contact(str(error))) from error  # gloo's are plain RuntimeErrors
        raise
    if contact is not None:
        contact.finish()


@contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """End the process if the block, which waits for the others to start, takes longer."""

    def give_up() -> None:
        _end(f"the other processes of this run have not all started within {seconds:g} s of this one")

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Contact:
    """A thread that exchanges one number with all other processes, again and again."""

    def __init__(self, seconds: float) -> None:
        self.silent = False
        self._interval = min(5.0, seconds / 4)
        self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=seconds))
        self._finished = threading.Event()
        self._thread = threading.Thread(target=self._exchange, name="contact", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until all processes have called this; one that exits earlier would look lost to the others."""
        self._finished.set()
        self._thread.join()

    def _exchange(self) -> None:
        finished = torch.zeros(1, device="cpu")
        while finished.item() < distributed.get_world_size(self._group):
            self._finished.wait(self._interval)
            if self.silent:
                return
            finished = torch.tensor([float(self._finished.is_set())], device="cpu")
            try:
                distributed.all_reduce(finished, group=self._group)
            except RuntimeError as error:
                time.sleep(1)  # the main thread has usually failed as well, and reports it
                if not self.silent:
                    _end(lost_contact(str(error)))
                return


def _end(message: str) -> None:
    """Report an error and end the process, whose main thread may be stuck in a collective operation."""
    print_error(message)
    sys.stdout.flush()
    os._exit(2)
