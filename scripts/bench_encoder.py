"""Compare speed and peak memory of our image encoder with medim's, with equal weights, alternating runs.

python scripts/bench_encoder.py [--threads 2] [--repeats 5]
"""

from __future__ import annotations

import argparse
import platform
import resource
import statistics
import subprocess
import sys
import time

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from sammed3d_ft.model.build import seeded_model

OURS, THEIRS = "ours", "medim"
FORWARD, BOTH = "forward", "forward + backward"


def encoder_of(whose: str) -> nn.Module:
    """The image encoder of `vit_b_ori` with random float32 weights; only the requested one is built, to save memory."""
    if whose == OURS:
        return seeded_model("vit_b_ori", seed=0).image_encoder
    from medim.models.sam_med3d import build_sam3D_vit_b_ori

    return build_sam3D_vit_b_ori().eval().image_encoder


def crop() -> Tensor:
    return torch.randn(1, 1, 128, 128, 128, generator=torch.Generator().manual_seed(0))


def run(encoder: nn.Module, image: Tensor, what: str) -> Tensor:
    """One forward pass without gradient, or a forward and backward pass to all weights; returns the embedding."""
    if what == FORWARD:
        with torch.no_grad():
            return encoder(image)
    encoder.zero_grad(set_to_none=True)
    embedding = encoder(image)
    embedding.square().mean().backward()
    return embedding.detach()


def peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def print_peak(whose: str, what: str) -> None:
    """Run in a separate process: print the peak memory of one run in bytes, above model and input."""
    encoder, image = encoder_of(whose), crop()
    before = peak_bytes()
    run(encoder, image, what)
    print(peak_bytes() - before)


def peak_in_a_process(whose: str, what: str, threads: int) -> int:
    """Call `print_peak` in a new process, because the recorded peak of a process never decreases."""
    command = [sys.executable, __file__, "--threads", str(threads), "--peak", whose, what]
    return int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def seconds(encoder: nn.Module, image: Tensor, what: str) -> float:
    start = time.perf_counter()
    run(encoder, image, what)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds, each encoder once per round")
    parser.add_argument("--peak", nargs=2, metavar=("WHOSE", "WHAT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak:
        print_peak(*args.peak)
        return

    # Done first, while this process is small: on Linux, a child's peak starts at its parent's.
    peaks = {
        (whose, what): peak_in_a_process(whose, what, args.threads)
        for what in (FORWARD, BOTH)
        for whose in (OURS, THEIRS)
    }
    encoders = {OURS: encoder_of(OURS), THEIRS: encoder_of(THEIRS)}
    encoders[THEIRS].load_state_dict(encoders[OURS].state_dict(), strict=True)
    image = crop()
    ours, theirs = (run(encoders[whose], image, FORWARD) for whose in (OURS, THEIRS))  # also serves as warm-up
    error = float((ours - theirs).abs().max() / theirs.abs().max())

    times: dict[tuple[str, str], list[float]] = {key: [] for key in peaks}
    for _ in range(args.repeats):
        for whose, what in times:
            times[whose, what].append(seconds(encoders[whose], image, what))

    table = Table(title="image encoder of vit_b_ori, batch 1, float32", caption="medians; spread: min to max")
    for column in ("", OURS, THEIRS, "ratio"):
        table.add_column(column, justify="right" if column else "left")
    for what in (FORWARD, BOTH):
        mine, reference = times[OURS, what], times[THEIRS, what]
        ratio = statistics.median(reference) / statistics.median(mine)
        table.add_row(f"{what}, s", spread(mine), spread(reference), f"{ratio:.1f} times faster")
    for what in (FORWARD, BOTH):
        mine_gb, reference_gb = peaks[OURS, what] / 1e9, peaks[THEIRS, what] / 1e9
        ratio = mine_gb / reference_gb
        table.add_row(f"{what}, peak GB above weights", f"{mine_gb:.2f}", f"{reference_gb:.2f}", f"{ratio:.2f}")
    console = Console(width=110)
    console.print(table)
    console.print(
        f"{args.repeats} rounds, {args.threads} threads, torch {torch.__version__}, {platform.machine()}; "
        f"relative difference of the embeddings {error:.1e}"
    )


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
