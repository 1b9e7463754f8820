"""Learned tokens."""

from __future__ import annotations

import torch
from torch import nn


def token_embedding(count: int, dim: int) -> nn.Embedding:
    """``nn.Embedding``, drawn as torch draws it, but not on the meta device.

    There a draw has no effect, and would import torch's compiler for it: three seconds at the start of every command
    that opens a checkpoint.
    """
    weight = torch.empty(count, dim)
    if not weight.is_meta:
        nn.init.normal_(weight)
    return nn.Embedding(count, dim, _weight=weight)
