"""Batches of an epoch: every sample once, shared by the processes, loaded by processes that stay."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sammed3d_ft.training.batches import EpochLoader, epoch_batches


@given(st.integers(1, 40), st.integers(1, 6), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_sample_is_seen_and_no_process_waits(count, batch_size, processes, epoch):
    shares = [epoch_batches(count, batch_size, 3, epoch, rank, processes) for rank in range(processes)]
    assert len({len(batches) for batches in shares}) == 1
    for joint in zip(*shares, strict=True):
        assert len({len(part) for part in joint}) == 1
        assert 1 <= len(joint[0]) <= batch_size
    seen = sorted(index for batches in shares for part in batches for index in part)
    assert set(seen) == set(range(count))
    assert len(seen) - count < processes  # filled up as far as needed only
    if processes == 1:
        assert seen == list(range(count))


def test_two_processes_share_the_batches_of_one():
    one = epoch_batches(12, 4, 5, 2)
    halves = [epoch_batches(12, 2, 5, 2, rank, 2) for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves, strict=True)] == one
    assert [len(batch) for batch in epoch_batches(11, 4, 5, 2)] == [4, 4, 3]  # the tail is kept


def test_the_order_comes_from_seed_and_epoch():
    assert epoch_batches(30, 30, 1, 1) == epoch_batches(30, 30, 1, 1)
    assert epoch_batches(30, 30, 1, 1) != epoch_batches(30, 30, 1, 2)
    assert epoch_batches(30, 30, 1, 1) != epoch_batches(30, 30, 2, 1)


class Plain(torch.utils.data.Dataset):
    """A sample tells its epoch, its index, and the process that loaded it."""

    def __init__(self, epoch):
        self.epoch = epoch

    def __getitem__(self, index):
        return {"index": index, "of": torch.tensor([self.epoch, index, os.getpid()])}


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_processes_stay_from_epoch_to_epoch(workers):
    loader, processes = EpochLoader(Plain, workers), set()
    for epoch in (4, 0, 5):
        for start in (0, 3):  # an epoch may begin in its middle, when a run is resumed
            indices = epoch_batches(11, 2, 1, epoch)[start:]
            loaded = loader.batches(epoch, indices)
            batches = [next(loaded) for _ in indices]
            assert [batch["index"] for batch in batches] == indices
            told = torch.cat([batch["of"] for batch in batches])
            assert told[:, :2].tolist() == [[epoch, index] for batch in indices for index in batch]
            processes |= set(told[:, 2].tolist())
    assert len(processes) == max(workers, 1)
    assert (os.getpid() in processes) == (workers == 0)


def test_an_epoch_that_is_not_finished_leaves_nothing_for_the_next():
    loader = EpochLoader(Plain, 1)
    next(loader.batches(0, [[0], [1], [2], [3]]))
    assert [batch["of"][0, 0] for batch in loader.batches(1, [[7], [8]])] == [1, 1]
