"""Explains failures that are not bugs, such as lack of memory, in one line with a way out."""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence

import torch
from tqdm import tqdm


def explain_failure(error: RuntimeError, memory_savers: Sequence[str]) -> str | None:
    """One line that explains a failure that is not a bug; None for any other error.

    Args:
        memory_savers: settings that save memory, those with the smallest side effects first.
    """
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        return f"out of memory ({text[:120]}); try {', or '.join(memory_savers) or 'a device with more memory'}"
    if "does not have a deterministic implementation" in text:
        return f"run.deterministic is true, but {text.partition('.')[0]}; train without it: run.deterministic=false"
    if "DataLoader worker" in text:
        return f"a data-loading process died ({text[:120]}), often for lack of memory; lower data.workers, even to 0"
    return None


def lost_contact(reason: str) -> str:
    """One line for a process that does not answer any more, from the message of the failed operation."""
    said = re.sub(r"\[\S*/gloo/\S*\] ", "", " ".join(reason.split()))  # without the place in gloo's source
    first = said.split(". ")[0][:120]
    return (
        f"lost contact with another process of this run ({first}): it ended, or its machine or the network is "
        "down. The launcher of the process that ended first, here or on another machine, names its signal (SIGKILL: "
        "often out of memory). Re-run the same command to resume"
    )


def print_error(message: str) -> None:
    """Print an error once, even if every process raises it: the others wait, so that the first one can print it.

    The launcher ends all processes as soon as one has ended, so a process that is still alive after the wait is the
    only one with this error.
    """
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        time.sleep(3)
        message = f"process {rank}: {message}"
    tqdm.write(f"error: {message}", file=sys.stderr)  # clears a progress bar from the line first
    sys.stderr.flush()
