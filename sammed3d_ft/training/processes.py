"""Communication between the processes of a training: agreement, names, and values to log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor


def all_agree(accelerator: Accelerator, mine: bool) -> bool:
    """Whether a condition holds on every process."""
    if accelerator.num_processes == 1:
        return mine
    wrong = torch.tensor(float(not mine), device=accelerator.device)
    return accelerator.reduce(wrong, "sum").item() == 0


def gathered(accelerator: Accelerator, mine: list[str]) -> list[str]:
    """The lists of all processes, concatenated; the same on every process."""
    return gather_object(mine) if accelerator.num_processes > 1 else mine


def logged_values(accelerator: Accelerator, values: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """A step's values to log, from its micro-batches on all processes.

    Args:
        accelerator: accelerator of the run.
        values: scalars by name for each micro-batch of this process; the same number on every process.

    Returns:
        Means with equal weights, as in the loss of the step; maxima for names like ``train/max_...``.
    """
    stacked = torch.stack([torch.stack([value.detach().float() for value in each.values()]) for each in values])
    if accelerator.num_processes > 1:
        stacked = accelerator.gather(stacked)
    means, highest = torch.stack([stacked.mean(0), stacked.amax(0)]).tolist()
    return {
        name: top if name.startswith("train/max_") else mean
        for name, mean, top in zip(values[0], means, highest, strict=True)
    }
