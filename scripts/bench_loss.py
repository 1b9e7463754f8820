"""Compare the speed of L1DFL, MONAI's DiceFocalLoss and a plain two-channel L1DFL, forward and backward.

python scripts/bench_loss.py [--size 128] [--threads 2] [--repeats 15] [--device cpu]
"""

from __future__ import annotations

import argparse
import platform
import runpy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sammed3d_ft.losses.choice import build_loss

PLAIN = Path(__file__).resolve().parents[1] / "tests" / "support" / "plain_l1dfl.py"


def lesion_case(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """One logit (1, 1, size, size, size) that roughly predicts a ball of radius size/8, and the ball's mask."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.arange(size) - size / 2
    radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).sqrt()
    target = (radius < size / 8).float()[None, None]
    logits = torch.randn(target.shape, generator=generator) * 2 + 4 * target - 4
    return logits.to(device), target.to(device)


def seconds(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, target: Tensor) -> float:
    """Wall time of one forward and backward pass."""
    logits = logits.detach().requires_grad_()
    finish = torch.cuda.synchronize if logits.is_cuda else lambda: None
    finish()
    start = time.perf_counter()
    loss(logits, target).backward()
    finish()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=128, help="voxels per axis")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds, each loss once per round")
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logits, target = lesion_case(args.size, torch.device(args.device))

    plain = runpy.run_path(str(PLAIN))["plain_l1dfl"]
    losses: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "MONAI DiceFocalLoss": build_loss("dice_focal"),
        "L1DFL": build_loss("l1dfl"),
        "L1DFL, plain form on two channels": lambda z, t: plain(z, t)[0],
    }
    times: dict[str, list[float]] = {name: [] for name in losses}
    for turn in range(args.repeats + 2):
        for name, loss in losses.items():
            took = seconds(loss, logits, target)
            if turn >= 2:  # the first two rounds are warm-up
                times[name].append(took)

    base = times["MONAI DiceFocalLoss"]
    table = Table(title=f"forward + backward, one logit, {args.size}^3, {args.device}, {args.threads} thread(s)")
    for column in ("loss", "median ms", "fastest ms", "median ratio to MONAI"):
        table.add_column(column, justify="left" if column == "loss" else "right")
    for name, values in times.items():
        ratio = statistics.median(value / other for value, other in zip(values, base, strict=True))
        table.add_row(name, f"{1e3 * statistics.median(values):.1f}", f"{1e3 * min(values):.1f}", f"{ratio:.2f}")
    console = Console(width=110)
    console.print(table)
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else platform.machine()
    console.print(f"{args.repeats} alternating rounds; torch {torch.__version__}; {device}")


if __name__ == "__main__":
    main()
