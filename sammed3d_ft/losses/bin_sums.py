"""Per-bin sums of voxel errors for a one-logit segmentation, in one memory-efficient pass, with gradient.

L1DFL weights each voxel by a number that depends only on the bin of its error. Every weighted sum over the volume is
therefore a sum over about twenty bins, and per-voxel weights are never stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

# On a CPU, the temporaries of one piece must fit in the cache, so that the volume is read from memory only once. An
# accelerator is faster with large pieces, limited so that temporaries stay far smaller than a batch.
_PIECE_VOXELS = {"cpu": 1 << 17}
_PIECE_VOXELS_ACCELERATOR = 1 << 22
# Partial histograms: one per row of voxels, for parallel threads and accurate float32 sums, times one per lane within
# the row, because neighbouring voxels mostly fall into the same bin and their additions would block each other.
_ROW = 1 << 13
_LANES = 16
# Above this threshold softplus(u) equals u even in float64; torch's default of 20 would cause an error of 2e-9.
_SOFTPLUS_EXACT = 40.0


def sums_per_bin(index: Tensor, n_bins: int, *values: Tensor) -> Tensor:
    """Counts per bin, and the sums of each of `values` (B, n) per bin: (1 + len(values), B, n_bins).

    Args:
        index: (B, n) int64 in 0..n_bins-1; overwritten.
    """
    batch, n = index.shape
    whole = n // _ROW * _ROW
    lane = torch.arange(_ROW, device=index.device).remainder_(_LANES).mul_(n_bins)
    summands = (values[0].new_ones(()).expand_as(index), *values)
    total = values[0].new_zeros(len(summands), batch, n_bins)
    for span, row in ((slice(0, whole), _ROW), (slice(whole, n), n - whole)):
        if span.start == span.stop:
            continue
        shape = (batch, -1, row)
        places = index[:, span].view(shape).add_(lane[:row])
        for number, value in enumerate(summands):
            partial = value.new_zeros(batch, places.shape[1], _LANES * n_bins)
            partial.scatter_add_(2, places, value[:, span].view(shape))
            total[number] += partial.view(batch, -1, n_bins).sum(1)
    return total


def _pieces(voxels: Tensor) -> Iterator[slice]:
    """Slices of the voxel axis of (B, V); all but the last consist of whole rows."""
    batch, n = voxels.shape
    size = _PIECE_VOXELS.get(voxels.device.type, _PIECE_VOXELS_ACCELERATOR)
    step = max(_ROW, size // batch // _ROW * _ROW)
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _margin_and_error(logits: Tensor, target: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Sign s = 1 - 2t, margin u = s z, and error |p - t| = sigmoid(u), accurate at both ends."""
    sign = target.to(dtype).mul(-2).add_(1)
    margin = logits.to(dtype) * sign
    return sign, margin, torch.sigmoid(margin)


def _label_and_bin(error: Tensor, sign: Tensor, steps: int) -> Tensor:
    """Index of each voxel in a table with steps + 1 bins for background, followed by as many for foreground.

    The bin is that of the nearest centre among 0, 1/steps, ..., 1. NaN is clamped into the table, because an index
    outside it would break the GPU context; NaN is detected through the sums.
    """
    n_bins = steps + 1
    place = error.mul(steps).add_(sign, alpha=-n_bins / 2).add_(0.5 + n_bins / 2)
    return place.to(torch.int64).clamp_(0, 2 * n_bins - 1)


class BinSums(torch.autograd.Function):
    """The sums L1DFL needs, from logits (B, V) and a target (B, V) of 0 and 1, in float32 or float64.

    Returns, per sample, label and bin, (B, 2, steps + 1) each: the number of voxels (no gradient) and the sums of
    their errors g = |p - t| and of g^2; then the sum over all voxels of the focal term g^gamma * -log(1 - g); and a
    validity flag: 0 if all logits are finite and all targets 0 or 1, otherwise NaN or above 0.

    The gradient is coded by hand, because autograd would keep about ten volumes: with u = (1 - 2t) z and
    g = sigmoid(u), dg/du = g (1 - g), so the two sums contribute g (1 - g) (d1[bin] + 2 g d2[bin]); and with
    -log(1 - g) = softplus(u), the focal term contributes g^gamma (gamma (1 - g) softplus(u) + g). Only z and t are
    saved; both passes recompute everything else.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, target: Tensor, steps: int, gamma: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        ctx.save_for_backward(logits, target)
        ctx.steps, ctx.gamma, ctx.dtype = steps, gamma, dtype
        n_bins = 2 * (steps + 1)
        table = torch.zeros(3, len(logits), n_bins, dtype=dtype, device=logits.device)
        focal = torch.zeros((), dtype=dtype, device=logits.device)
        fault = torch.zeros((), dtype=dtype, device=logits.device)
        for piece in _pieces(logits):
            sign, margin, error = _margin_and_error(logits[:, piece], target[:, piece], dtype)
            # A sum times zero is 0, or NaN if any term is not finite.
            fault += margin.sum() * 0
            if target.dtype != torch.bool:
                fault += sign.square().sub_(1).abs_().sum()
            focal += F.softplus(margin, threshold=_SOFTPLUS_EXACT).mul_(error.pow(gamma)).sum()
            table += sums_per_bin(_label_and_bin(error, sign, steps), n_bins, error, error.square())
        counts, errors, squares = table.view(3, len(logits), 2, steps + 1).unbind()
        ctx.mark_non_differentiable(counts, fault)
        return counts, errors, squares, focal, fault

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        logits, target = ctx.saved_tensors
        _, grad_errors, grad_squares, grad_focal, _ = grads
        n_bins = 2 * (ctx.steps + 1)
        linear, slope = grad_errors.reshape(-1), grad_squares.reshape(-1) * 2
        sample = torch.arange(len(logits), device=logits.device).mul_(n_bins)[:, None]
        result = torch.empty_like(logits)
        for piece in _pieces(logits):
            sign, margin, error = _margin_and_error(logits[:, piece], target[:, piece], ctx.dtype)
            place = _label_and_bin(error, sign, ctx.steps).add_(sample).view(-1)
            hit = 1 - error
            focal = torch.addcmul(error, F.softplus(margin, threshold=_SOFTPLUS_EXACT), hit, value=ctx.gamma)
            grad = linear.index_select(0, place).view_as(error)
            grad.addcmul_(slope.index_select(0, place).view_as(error), error).mul_(error).mul_(hit)
            grad.addcmul_(focal, error.pow(ctx.gamma).mul_(grad_focal))
            result[:, piece] = grad.mul_(sign)
        return result, None, None, None
