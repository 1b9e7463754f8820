"""Learned token embeddings."""

from __future__ import annotations

import torch
from torch import nn


def token_embedding(count: int, dim: int) -> nn.Embedding:
    """``nn.Embedding`` with torch's default initialisation, skipped on the meta device.

    There it has no effect but imports torch's compiler, which adds three seconds to every command that opens a
    checkpoint.
    """
    weight = torch.empty(count, dim)
    if not weight.is_meta:
        nn.init.normal_(weight)
    return nn.Embedding(count, dim, _weight=weight)
