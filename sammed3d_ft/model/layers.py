"""Layers that the encoders and the decoder share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def token_embedding(count: int, dim: int) -> nn.Embedding:
    """``nn.Embedding`` with torch's default initialisation, skipped on the meta device.

    There it has no effect but imports torch's compiler, which adds three seconds to every command that opens a
    checkpoint.
    """
    weight = torch.empty(count, dim)
    if not weight.is_meta:
        nn.init.normal_(weight)
    return nn.Embedding(count, dim, _weight=weight)


class ChannelNorm(nn.Module):
    """Normalise (B, C, X, Y, Z) over C; eps is 1e-6, as in the published model."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, volume: Tensor) -> Tensor:
        normed = F.layer_norm(volume.movedim(1, -1), self.weight.shape, self.weight, self.bias, self.eps)
        return normed.movedim(-1, 1)
