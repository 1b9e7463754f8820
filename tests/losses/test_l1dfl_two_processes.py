"""L1DFL with counts summed over two processes equals one process with the joint batch, and refuses jointly."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from sammed3d_ft.errors import InputError
from sammed3d_ft.losses import L1DFL

SHAPE = (4, 10, 11, 12)


def joint_batch(channels: int) -> tuple[Tensor, Tensor]:
    """Two samples with lesions and two without, so that the halves have different histograms."""
    generator = torch.Generator().manual_seed(5)
    batch, *space = SHAPE
    logits = torch.randn(batch, channels, *space, generator=generator, dtype=torch.float64) * 2
    target = torch.randint(0, max(channels, 2), (batch, 1, *space), generator=generator)
    target[2:] = 0
    return logits, target


def one_process(rank: int, folder: str, channels: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        assert dist.get_world_size() == 2
        logits, target = (x[2 * rank : 2 * rank + 2] for x in joint_batch(channels))
        result: dict[str, Any] = {}
        for name, sync in (("joint", True), ("local", False)):
            leaf = logits.clone().requires_grad_()
            loss = L1DFL(sync_counts=sync)(leaf, target)
            loss.backward()
            result[name] = (loss.detach(), leaf.grad)
        if rank == 1:
            logits[0, 0, 0, 0, 0] = torch.nan
        try:
            L1DFL(sync_counts=True)(logits, target)
        except InputError as error:
            result["refusal"] = str(error)
        torch.save(result, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("channels", [1, 3])
def test_two_processes_equal_the_joint_batch(tmp_path: Path, channels: int) -> None:
    torch.multiprocessing.spawn(one_process, args=(str(tmp_path), channels), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert len(ranks) == 2
    logits, target = joint_batch(channels)
    logits.requires_grad_()
    loss = L1DFL(sync_counts=True)(logits, target)  # no process group here: the local batch is the joint one
    loss.backward()

    def average(name: str) -> tuple[Tensor, Tensor]:
        # What DistributedDataParallel does: the mean of losses and of gradients.
        values, grads = zip(*(rank[name] for rank in ranks), strict=True)
        return torch.stack(values).mean(), torch.cat(grads) / 2

    value, grad = average("joint")
    torch.testing.assert_close(value, loss.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(grad, logits.grad, rtol=1e-9, atol=1e-15)
    value, _ = average("local")
    assert abs(value - loss.detach()) > 1e-5
    assert "another process" in ranks[0]["refusal"]
    assert re.match("1 of [0-9]+ logits passed to the loss are NaN", ranks[1]["refusal"])
