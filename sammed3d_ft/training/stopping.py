"""Clean exit of one of several processes: explain a stop by the launcher, and avoid an abort at exit."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading


def tell_when_stopped(message: str) -> None:
    """From now on, SIGTERM prints a message on stderr and exits with code 143.

    A Python signal handler would wait for the main thread, which may be stuck in a collective operation. Instead,
    the interpreter's wakeup descriptor writes to a pipe immediately, and a thread reads it. Data-loader processes
    keep the default behaviour.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

    def wait() -> None:
        while True:
            if os.read(reader, 1) == bytes([signal.SIGTERM]):
                print(message, file=sys.stderr, flush=True)
                os._exit(128 + signal.SIGTERM)

    def leave_alone() -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    os.register_at_fork(after_in_child=leave_alone)
    threading.Thread(target=wait, name="sigterm", daemon=True).start()


def leave(code: int) -> None:
    """Exit one of several processes without interpreter teardown; a single process exits only if ``code`` is not 0.

    A DDP model keeps gloo's threads alive even after ``destroy_process_group`` (torch 2.13). If such a thread
    releases a tensor during teardown, it requests the interpreter lock, and the process aborts (SIGABRT; pytorch pull
    request 179291), so that the launcher would report a finished run as failed. Registered exit functions run first,
    and stdout and stderr are flushed.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)
