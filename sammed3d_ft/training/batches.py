"""Batches: their order in an epoch, their loading, and their stacking; for prompted and automatic training."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from prompts.randomness import uniforms


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Stack samples; indices remain a list."""
    batch: dict[str, object] = {
        name: torch.stack([sample[name] for sample in samples]) for name in samples[0] if name != "index"
    }
    batch["index"] = [sample["index"] for sample in samples]
    return batch


def loader_workers(asked: int | None, device: torch.device) -> int:
    """Number of loader processes: as requested, or chosen by device if None.

    They keep a GPU from waiting for data; on a CPU, they would only compete with the network for cores.
    """
    if asked is not None or device.type == "cpu":
        return asked or 0
    training_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return min(8, max(1, (os.cpu_count() or 1) // training_here - 1))


def epoch_batches(
    count: int, batch_size: int, seed: int, epoch: int, process: int = 0, processes: int = 1
) -> list[list[int]]:
    """The batches of one process in an epoch: lists of sample indices, the same number on every process.

    The order is a permutation drawn from (seed, epoch). Each joint batch consists of ``batch_size * processes``
    consecutive samples, divided among the processes. The last joint batch is padded from the start of the permutation,
    so that no sample is dropped and no process waits for another.
    """
    order = np.argsort(uniforms((seed, epoch, "order"), count), kind="stable").tolist()
    smallest = processes  # every process needs at least one sample in the last joint batch
    while len(order) % smallest:
        order.append(order[len(order) % count])
    joint = batch_size * processes
    batches = []
    for start in range(0, len(order), joint):
        part = order[start : start + joint]
        each = len(part) // processes
        batches.append(part[process * each : (process + 1) * each])
    return batches
