"""SAM-Med3D's self-attention with relative positions, computed exactly but without padding.

The published weights were trained with two quirks of the encoder, both kept here:

1. Windowed blocks zero-pad the g-wide token grid to S per axis (8 to 14). The padded tokens are not
   masked; their query, key and value are the qkv bias.
2. The three relative-position terms are broadcast onto the wrong axes. With the unscaled query q(d,h,w),
   the tables R and  a = q(d,h,w).R_d[d-k],  b = q(d,h,w).R_h[h-k],  c = q(d,h,w).R_w[w-k],  the bias of
   query (d,h,w) for key (kd,kh,kw) is   a(d,h,w; kw) + b(d,h,w:=kd; kw) + c(d,h,w:=kh; kw).

All padded positions share one key and one value vector, so one extra key represents them all: its logit is
scale * q.k_pad + logsumexp of the bias over the padded positions.  The attention then runs over
g^3 queries and g^3 + 1 keys instead of S^3 by S^3 (512 by 513 instead of 2744 by 2744).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RelativeAttention(nn.Module):
    """Multi-head self-attention on a token grid (B, g, g, g, E) -> (B, g, g, g, E).

    Args:
        dim: channels E.
        num_heads: heads; must divide ``dim``.
        grid: tokens per axis, g.
        window: S, the side to which the published model pads the grid; None for a global block.
            A window smaller than the grid (several windows) does not occur in SAM-Med3D and raises ValueError.
    """

    def __init__(self, dim: int, num_heads: int, *, grid: int, window: int | None) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"{dim} channels are not divisible by {num_heads} heads")
        if window is not None and window <= grid:
            raise ValueError(f"window of {window} tokens: expected more than the grid's {grid}, or None (global)")
        self.num_heads = num_heads
        self.grid = grid
        self.span = grid if window is None else window
        head_dim = dim // num_heads
        self.scale = head_dim**-0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        for axis in "dhw":
            self.register_parameter(f"rel_pos_{axis}", nn.Parameter(torch.zeros(2 * self.span - 1, head_dim)))

    def forward(self, tokens: Tensor) -> Tensor:
        batch, heads, g = tokens.shape[0], self.num_heads, self.grid
        # Call the qkv module instead of using its weight: it may be replaced by a LoRA layer.
        query, key, value = self.qkv(tokens).reshape(batch, g**3, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        terms = self._relative_terms(query.unflatten(2, (g, g, g)))
        if self.span == g:
            bias = self._real_bias(*terms)
        else:
            pad_query, pad_key, pad_value = self.qkv.bias.to(query.dtype).reshape(3, heads, 1, -1)
            pad_bias = self._padding_bias(*terms, pad_query).flatten(2).unsqueeze(-1)
            if pad_bias.dtype != query.dtype:
                pad_bias = _in_two(pad_bias, query.dtype)
            keys = pad_bias.shape[-1]
            bias = torch.cat([self._real_bias(*terms), pad_bias], dim=-1)
            key = torch.cat([key, pad_key.expand(batch, -1, keys, -1)], dim=2)
            value = torch.cat([value, pad_value.expand(batch, -1, keys, -1)], dim=2)
        attended = F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=self.scale)
        return self.proj(attended.transpose(1, 2).reshape(tokens.shape))

    def _table(self, axis: str, dtype: torch.dtype) -> Tensor:
        """(S, S, head_dim): entry (i, k) is the relative-position embedding of distance i - k."""
        positions = torch.arange(self.span, device=self.qkv.bias.device)
        table: Tensor = getattr(self, f"rel_pos_{axis}")
        return table.to(dtype)[positions[:, None] - positions[None, :] + self.span - 1]

    def _relative_terms(self, query: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """a, b, c for the real queries (B, heads, d, h, w, c): each (B, heads, d, h, w, S)."""
        g, dtype = self.grid, query.dtype
        return (
            torch.einsum("bndhwc,dkc->bndhwk", query, self._table("d", dtype)[:g]),
            torch.einsum("bndhwc,hkc->bndhwk", query, self._table("h", dtype)[:g]),
            torch.einsum("bndhwc,wkc->bndhwk", query, self._table("w", dtype)[:g]),
        )

    def _real_bias(self, a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """(B, heads, g^3 queries, g^3 keys): the mis-broadcast sum over real keys."""
        g = self.grid
        a, b, c = a[..., :g], b[..., :g], c[..., :g]
        # Query axes d, h, (w); key axes kd, kh, kw. b and c take the query at w := kd and w := kh.
        of_plane = b[:, :, :, :, None, :, None, :] + c[:, :, :, :, None, None, :, :]
        bias = a[:, :, :, :, :, None, None, :] + of_plane
        return bias.reshape(*bias.shape[:2], g**3, g**3)

    def _padding_bias(self, a: Tensor, b: Tensor, c: Tensor, pad_query: Tensor) -> Tensor:
        """(B, heads, d, h, w): logsumexp of the bias over all padded keys, in float32 or float64.

        A key (kd, kh, kw) is padded if any coordinate is >= g. Besides kw, b depends only on kd and c only on
        kh, so the sum over (kd, kh) factorises into real and padded parts of each.
        """
        g, pad_query = self.grid, pad_query[:, 0]  # (heads, head_dim)
        b_pad = torch.einsum("nc,hkc->nhk", pad_query, self._table("h", pad_query.dtype)[:g])
        c_pad = torch.einsum("nc,wkc->nwk", pad_query, self._table("w", pad_query.dtype)[g:])
        a, b, c, b_pad, c_pad = (x if x.dtype == torch.float64 else x.float() for x in (a, b, c, b_pad, c_pad))
        b_pad, c_pad = b_pad + math.log(self.span - g), c_pad.logsumexp(1)
        b_pad, c_pad = b_pad[:, None], c_pad[:, None, None]  # (heads, 1, h, S), (heads, 1, 1, S)
        b_real, c_real = b.logsumexp(4), c.logsumexp(4)  # (B, heads, d, h, S)
        b_all, c_all = torch.logaddexp(b_real, b_pad), torch.logaddexp(c_real, c_pad)
        inside = torch.logaddexp(b_pad + c_all, b_real + c_pad)[..., :g]  # kw real: kd or kh is padded
        outside = (b_all + c_all)[..., g:]  # kw padded: every (kd, kh)
        of_plane = torch.cat([inside, outside], dim=-1)
        return (a + of_plane[:, :, :, :, None]).logsumexp(-1)


def _in_two(logit: Tensor, dtype: torch.dtype) -> Tensor:
    """Two logits (..., 2) in a 16-bit type whose exponentials add up to that of one in float32, (..., 1).

    The padding's logit is about 8, which bf16 rounds by up to 0.03: 3 % of the padding's share. The first logit is
    therefore taken lower by more than the rounding, and the second makes up for the difference.
    """
    first = (logit - logit.abs() / 128 - 1 / 64).to(dtype)
    second = logit + torch.log(-torch.expm1(first.float() - logit))
    return torch.cat([first, second.to(dtype)], dim=-1)
