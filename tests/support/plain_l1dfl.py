"""L1DFL step by step from its definition, plain and slow: what tests and the benchmark compare with."""

from __future__ import annotations

import torch
from torch import Tensor


def plain_l1dfl(
    logits: Tensor, target: Tensor, gamma: float = 2.0, epsilon: float = 0.05
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, Dice term and focal term of logits (B, C, *spatial) and target (B, 1, *spatial) of classes."""
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
    t = (target == classes).to(logits.dtype)
    p = torch.softmax(logits, dim=1)
    g = (p - t).abs().detach()

    steps = round(1 / epsilon)
    beta = torch.zeros_like(g)
    for k in range(steps + 1):
        low, high = max((k - 0.5) * epsilon, 0.0), min((k + 0.5) * epsilon, 1.0)
        inside = (g >= low) & ((g < high) | (k == steps))
        count = int(inside.sum())
        if count:
            beta[inside] = g.numel() * (high - low) / count

    space = tuple(range(2, logits.ndim))
    overlap = (beta * p * t).sum(space)
    size = (beta * (p**2 + t**2)).sum(space)
    dice = 1 - ((2 * overlap + 1e-8) / (size + 1e-8)).mean()
    focal = ((1 - p) ** gamma * -torch.log_softmax(logits, dim=1) * t).mean()
    return dice + focal, dice, focal
