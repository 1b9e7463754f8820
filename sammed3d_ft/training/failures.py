"""Explains failures that are not bugs, such as lack of memory, in one line with a way out."""

from __future__ import annotations

import os
import sys
import time

import torch
from tqdm import tqdm

from sammed3d_ft.automatic.config import BaselineConfig
from sammed3d_ft.prompted.config import TrainConfig


def explain_failure(error: RuntimeError, config: TrainConfig | BaselineConfig) -> str | None:
    """One line that explains a failure that is not a bug; None for any other error."""
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in text:
        ways = _memory_savers(config)
        return f"out of memory ({text[:120]}); try {', or '.join(ways) or 'a device with more memory'}"
    if "DataLoader worker" in text:
        return f"a data-loading process died ({text[:120]}), often for lack of memory; lower data.workers, even to 0"
    if isinstance(error, torch.distributed.DistError) or "/gloo/" in text:  # gloo's are plain RuntimeErrors
        return (
            f"lost contact with another process of this run ({text[:120]}); the launcher reports below which one ended "
            "and why. Re-run the same command to resume from the last checkpoint"
        )
    return None


def _memory_savers(config: TrainConfig | BaselineConfig) -> list[str]:
    """Settings that need less memory, those with the smallest side effects first."""
    optim, ways = config.optim, []
    if optim.batch_size > 1:
        ways.append(f"optim.batch_size={optim.batch_size // 2} optim.accumulate={optim.accumulate * 2} (the same step)")
    if isinstance(config, TrainConfig) and config.clicks.rounds > 1:
        ways.append(f"clicks.rounds={config.clicks.rounds - 1} (now {config.clicks.rounds})")
    if optim.precision == "no":
        ways.append("optim.precision=bf16")
    if isinstance(config, BaselineConfig):
        ways.append(f"a smaller crops.size (now {config.crops.size})")
    elif config.tune.method != "decoder" and len(config.data.modalities) == 1:
        ways.append("tune.method=decoder (the encoder is then frozen and its output cached)")
    return ways


def print_error(message: str) -> None:
    """Print an error once, although every process may meet it: the others wait, so that the first one can print it.

    The launcher ends all processes as soon as one has ended, so a process that is still alive after the wait is the
    only one with this error.
    """
    rank = int(os.environ.get("RANK", "0"))
    if rank:
        time.sleep(3)
        message = f"process {rank}: {message}"
    tqdm.write(f"error: {message}", file=sys.stderr)  # clears a progress bar from the line first
    sys.stderr.flush()
