"""L1DFL: soft Dice with voxels weighted by the rarity of their error, plus a focal term.

Definition: Dzikunu, Ahamed, Toosi, Li and Rahmim, "Adaptive Voxel-Weighted Loss Using L1 Norms in Deep Neural
Networks for Detection and Segmentation of Prostate Cancer Lesions in PET/CT Images", arXiv 2502.02756.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sammed3d_ft.errors import InputError
from sammed3d_ft.losses.bin_sums import BinSums, sums_per_bin

_SMOOTH = 1e-8


def check_shapes(logits: Tensor, target: Tensor) -> None:
    """Raise InputError unless logits are (B, C, *spatial), with 2 or 3 spatial axes, and target (B, 1, *spatial)."""
    got = f"the loss got logits of shape {tuple(logits.shape)} and a target of shape {tuple(target.shape)}"
    if logits.ndim not in (4, 5) or not logits.is_floating_point():
        raise InputError(f"{got}; logits must be floating point, (B, C, H, W) or (B, C, D, H, W)")
    expected = (logits.shape[0], 1, *logits.shape[2:])
    if tuple(target.shape) != expected:
        raise InputError(f"{got}; the target must have shape {expected}: class numbers in one channel")
    if logits.numel() == 0:
        raise InputError(f"{got}; they contain no voxels")


class L1DFL(nn.Module):
    """The adaptive voxel-weighted L1 Dice focal loss; `loss(logits, target)` returns a scalar.

    Let p be the class probabilities (softmax; one logit z means two classes with logits 0 and z), t the one-hot
    target including background, and g = |p - t|. The N errors of the whole batch are counted in bins centred on
    0, epsilon, ..., 1 (the first and last half as wide). A voxel's weight is N divided by the density of its bin,
    beta = N / (count / width). The loss is

        1 - mean over samples and classes of (2 sum(beta p t) + 1e-8) / (sum(beta (p^2 + t^2)) + 1e-8)
          + mean over voxels and classes of t (1 - p)^gamma * -log p

    No gradient flows through beta. Computed in float32 even under autocast (float64 stays float64), because the weights
    span five orders of magnitude.

    Args:
        gamma: exponent of the focal term, 0 or more.
        epsilon: distance between bin centres; 1/epsilon must be a whole number. The authors' earlier form is
            gamma=0, epsilon=0.1.
        sync_counts: sum the bin counts over the processes of torch.distributed, so that the weights are those of
            the joint batch. Every process must then call the loss equally often.

    Raises InputError for settings out of range, mismatched shapes, NaN or infinite logits, and target values that are
    not class numbers (checked with a single number per call: one synchronisation on a GPU).
    """

    def __init__(self, gamma: float = 2.0, epsilon: float = 0.05, sync_counts: bool = False) -> None:
        super().__init__()
        if not (math.isfinite(gamma) and gamma >= 0):
            raise InputError(f"L1DFL got gamma {gamma}; the focal exponent must be a finite number of at least 0")
        steps = round(1 / epsilon) if 0 < epsilon <= 1 else 0
        if steps < 1 or not math.isclose(steps * epsilon, 1, rel_tol=1e-6):
            raise InputError(f"L1DFL got epsilon {epsilon}; 1/epsilon must be a whole number, as for 0.05 or 0.1")
        self.gamma = float(gamma)
        self.epsilon = 1 / steps
        self.sync_counts = sync_counts
        self._steps = steps

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}, epsilon={self.epsilon}, sync_counts={self.sync_counts}"

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Scalar loss of logits (B, 1, *spatial) or (B, C, *spatial) for a target (B, 1, *spatial) of class numbers.

        Two or three spatial axes; the target may be bool, integer or float. One logit means classes 0 and 1.
        """
        check_shapes(logits, target)
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        with torch.autocast(logits.device.type, enabled=False):
            if logits.shape[1] > 2:
                return self._multi_class(logits.to(dtype), target)
            # Softmax over two classes depends only on the difference of their logits, which is the one logit.
            z = logits if logits.shape[1] == 1 else logits[:, 1:].to(dtype) - logits[:, :1].to(dtype)
            return self._one_logit(z, target)

    def _one_logit(self, logits: Tensor, target: Tensor) -> Tensor:
        counts, errors, squares, focal, fault = BinSums.apply(
            logits.flatten(1), target.flatten(1), self._steps, self.gamma
        )
        self._refuse_faults(fault, logits, target, 2)
        beta = self._weights(counts.sum((0, 1)))
        # For voxels with label c (the table's middle axis), p is 1 - g for their own class and g for the other.
        overlap = (beta * (counts - errors)).sum(2)
        own = (beta * (2 * counts - 2 * errors + squares)).sum(2)
        other = (beta * squares).sum(2).flip(1)
        dice = ((2 * overlap + _SMOOTH) / (own + other + _SMOOTH)).mean()
        return 1 - dice + focal / (2 * logits.numel())

    def _multi_class(self, logits: Tensor, target: Tensor) -> Tensor:
        n_classes = logits.shape[1]
        labels = target.long()
        wrong = (labels != target) | (labels < 0) | (labels >= n_classes)
        self._refuse_faults(wrong.sum() + logits.detach().sum() * 0, logits, target, n_classes)
        log_p = torch.log_softmax(logits, dim=1)
        p = log_p.exp()
        t = torch.zeros_like(p).scatter_(1, labels, 1)
        error = (p.detach() - t).abs_()
        index = error.mul(self._steps).add_(0.5).long().flatten(1)
        counts = sums_per_bin(index.clone(), self._steps + 1, error.flatten(1))[0].sum(0)
        beta = self._weights(counts)[index].view_as(p)
        overlap = (beta * p * t).flatten(2).sum(2)
        size = (beta * (p.square() + t)).flatten(2).sum(2)
        dice = ((2 * overlap + _SMOOTH) / (size + _SMOOTH)).mean()
        log_hit = log_p.gather(1, labels)
        # Kept above zero, where the derivative of the power is infinite for gamma below 1.
        miss = (1 - log_hit.exp()).clamp_min(torch.finfo(p.dtype).tiny)
        return 1 - dice - (miss.pow(self.gamma) * log_hit).mean() / n_classes

    def _over_processes(self, values: Tensor) -> Tensor:
        """Sum over processes if `sync_counts` is set."""
        if not (self.sync_counts and dist.is_available() and dist.is_initialized()):
            return values
        values = values.clone()
        dist.all_reduce(values)
        return values

    def _refuse_faults(self, fault: Tensor, logits: Tensor, target: Tensor, n_classes: int) -> None:
        """Raise InputError for invalid input. With `sync_counts`, all processes raise together, so that none hangs."""
        if self._over_processes(fault) != 0:
            _refuse(logits, target, n_classes)
            if self.sync_counts:
                raise InputError("the loss in another process got NaN or infinite logits, or invalid target values")

    def _weights(self, counts: Tensor) -> Tensor:
        """Weight of each bin, N * width / count, from the counts of the local batch or of all processes."""
        counts = self._over_processes(counts)
        width = torch.full_like(counts, self.epsilon)
        width[0] = width[-1] = self.epsilon / 2
        # The weight of an empty bin only multiplies zero sums, so any finite number will do.
        return counts.sum() * width / counts.clamp_min(1)


def _refuse(logits: Tensor, target: Tensor, n_classes: int) -> None:
    """Raise InputError with the reason after the cheap check failed; finite logits whose sum overflowed pass."""
    bad = int((~torch.isfinite(logits)).sum())
    if bad:
        raise InputError(
            f"{bad} of {logits.numel()} logits passed to the loss are NaN or infinite; check the intensities, "
            "lower the learning rate, or use bfloat16 or float32 instead of float16"
        )
    values = torch.unique(target).tolist()
    wrong = [v for v in values if v not in range(n_classes)]
    if wrong:
        shown = ", ".join(f"{v:g}" for v in wrong[:5]) + (", ..." if len(wrong) > 5 else "")
        raise InputError(
            f"the loss got target values {shown}; expected class numbers 0 to {n_classes - 1} (for one logit "
            "or two classes: 0 and 1); make the target binary, or give the network more classes"
        )
