"""Says why a process of several ends, when another one died and the launcher ends them all."""

from __future__ import annotations

import os
import signal
import sys
import threading


def tell_when_stopped(message: str) -> None:
    """From now on, SIGTERM prints a message on stderr and ends the process with code 143.

    A Python signal handler would wait for the main thread, which may be deep in a collective that never ends. The
    interpreter's own handler writes to a pipe at once; a thread reads it. Loader processes are left alone.
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
