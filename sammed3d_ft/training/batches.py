"""Batches: their order in an epoch, their loading, and their stacking; for prompted and automatic training."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from prompts.randomness import uniforms


def collate(samples: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    """Stack samples; indices remain a list."""
    batch: dict[str, object] = {
        name: torch.stack([sample[name] for sample in samples]) for name in samples[0] if name != "index"
    }
    batch["index"] = [sample["index"] for sample in samples]
    return batch


class EpochSamples(Dataset[Any]):
    """The samples of all epochs, by (epoch, index), so that loader processes can stay from epoch to epoch.

    Args:
        datasets: creates the samples of an epoch.
    """

    def __init__(self, datasets: Callable[[int], Dataset[Any]]) -> None:
        self.datasets = datasets
        self._epoch: int | None = None

    def __getitem__(self, key: tuple[int, int]) -> Any:
        epoch, index = key
        if epoch != self._epoch:
            self._epoch, self._dataset = epoch, self.datasets(epoch)
        return self._dataset[index]


class EpochLoader:
    """Loads batches epoch by epoch, by the same loader processes.

    Args:
        datasets: creates the samples of an epoch; loader processes receive it.
        workers: number of loader processes; with 0, batches are loaded when they are asked for.
        pin_memory: load batches into memory that a GPU can read by itself.
    """

    def __init__(self, datasets: Callable[[int], Dataset[Any]], workers: int, pin_memory: bool = False) -> None:
        self._batches: list[list[tuple[int, int]]] = []
        self._loader = DataLoader(
            EpochSamples(datasets),
            batch_sampler=self._batches,  # read again at the start of every epoch
            collate_fn=collate,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
        )

    def batches(self, epoch: int, indices: Sequence[Sequence[int]]) -> Iterator[dict[str, Any]]:
        """Batches of an epoch: of the samples with these indices."""
        self._batches[:] = [[(epoch, index) for index in batch] for batch in indices]
        return iter(self._loader)


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
