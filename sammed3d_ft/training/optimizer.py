"""AdamW with separate learning rates for parts of the model, warm-up and cosine decay."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn

from sammed3d_ft.errors import InputError


def build_optimizer(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    learning_rates: Mapping[str, float],
    weight_decay: float,
) -> torch.optim.AdamW:
    """AdamW for the trainable parameters.

    Args:
        named_parameters: parameters of the model; frozen ones are skipped.
        learning_rates: by name prefix; the longest matching prefix applies, "" matches all.
        weight_decay: weight decay of matrices and kernels. Biases, norms and embeddings have none, and neither has the
            IoU head, whose unused outputs have zero gradient and would only decay.
    """
    groups: dict[tuple[float, float], list[tuple[str, nn.Parameter]]] = {}
    for name, parameter in named_parameters:
        if not parameter.requires_grad:
            continue
        prefix = max((p for p in learning_rates if name.startswith(p)), key=len)
        bare = parameter.ndim < 2 or "embed" in name.replace("patch_embed.", "") or "token" in name.rsplit(".", 2)[-2]
        decay = 0.0 if bare or "rel_pos" in name or "iou_" in name else weight_decay
        groups.setdefault((learning_rates[prefix], decay), []).append((name, parameter))
    if not groups:
        raise InputError("nothing to train: every parameter is frozen")
    return torch.optim.AdamW(
        [
            {
                "params": [parameter for _, parameter in members],
                "names": [name for name, _ in members],
                "lr": rate,
                "base_lr": rate,
                "weight_decay": decay,
            }
            for (rate, decay), members in groups.items()
        ]
    )


def schedule_factor(step: int, warmup: float, total_steps: int) -> float:
    """Factor on the base learning rate at a step (0 is the first): linear warm-up, then cosine to 0.

    Args:
        step: 0 to total_steps - 1.
        warmup: fraction of the steps, from 0 to below 1; rounded to whole steps.
        total_steps: steps of the whole run.
    """
    warmup_steps = round(warmup * total_steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def set_learning_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's learning rate to its base rate times the factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """The optimiser's state as flat tensors named ``<parameter>/<quantity>``."""
    return {
        f"{name}/{quantity}": torch.as_tensor(value)
        for group in optimizer.param_groups
        for name, parameter in zip(group["names"], group["params"], strict=True)
        for quantity, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    """Restore the tensors returned by `optimizer_tensors`."""
    used: set[str] = set()
    for group in optimizer.param_groups:
        for name, parameter in zip(group["names"], group["params"], strict=True):
            found = {key.rsplit("/", 1)[1]: key for key in tensors if key.rsplit("/", 1)[0] == name}
            used.update(found.values())
            optimizer.state[parameter] = {
                quantity: tensors[key].clone() if quantity == "step" else tensors[key].to(parameter.device, copy=True)
                for quantity, key in found.items()
            }
    unknown = set(tensors) - used
    if unknown:
        raise InputError(f"optimiser state for {len(unknown)} unknown tensors, first {sorted(unknown)[0]!r}")
