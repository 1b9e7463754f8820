"""Run by `accelerate launch` instead of finetune.py: the same training, with gradients and weights recorded.

``$PROBE/rank<r>_gradients.safetensors``: what the optimiser gets at its first step; ``..._weights``: the trained
parameters after the last step; ``..._world.txt``: the number of processes.

Clicks after the first are drawn as if the prediction were empty. A batch of two and two batches of one differ in the
last bits; a voxel at the threshold would then be an error here and none there, and move a random click.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from sammed3d_ft.prompted import task as prompted_task
from sammed3d_ft.recipes.train import main

FOLDER = Path(os.environ["PROBE"])
RANK = os.environ.get("RANK", "0")
real_step = torch.optim.AdamW.step
optimizers: list[torch.optim.Optimizer] = []


def named(optimizer: torch.optim.Optimizer) -> list[tuple[str, torch.nn.Parameter]]:
    return [pair for group in optimizer.param_groups for pair in zip(group["names"], group["params"], strict=True)]


def step(self: torch.optim.AdamW, *rest: Any, **more: Any) -> Any:
    if not optimizers:
        optimizers.append(self)
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        (FOLDER / f"rank{RANK}_world.txt").write_text(str(world))
        gradients = {name: p.grad.clone() for name, p in named(self) if p.grad is not None}
        save_file(gradients, FOLDER / f"rank{RANK}_gradients.safetensors")
    result = real_step(self, *rest, **more)
    # Now, since at its end a run gives every process the best weights from the disk.
    save_file({name: p.detach().clone() for name, p in named(self)}, FOLDER / f"rank{RANK}_weights.safetensors")
    return result


real_click = prompted_task.next_click


def next_click(prediction: torch.Tensor, target: torch.Tensor, **options: Any) -> Any:
    return real_click(torch.zeros_like(prediction), target, **options)


prompted_task.next_click = next_click
torch.optim.AdamW.step = step  # type: ignore[method-assign]
main(sys.argv[1:])
