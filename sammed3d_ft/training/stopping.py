"""The end of a process of several: says why the launcher ended it, or ends it without an abort."""

from __future__ import annotations

import atexit
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


def leave(code: int) -> None:
    """Ends a process of several without the teardown of the interpreter; a process alone only if ``code`` is not 0.

    A model wrapped for several processes keeps gloo's threads alive, even past ``destroy_process_group`` (torch
    2.13). A thread that lets go of a tensor during the teardown asks for the interpreter's lock, and is answered by
    an abort (SIGABRT; pytorch pull request 179291): the launcher would call a finished run failed. What is registered
    for the exit is done first, and what was printed is written.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    if code:
        sys.exit(code)
