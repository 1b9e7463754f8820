"""Benchmarks on one GPU: bf16 parity, speed and memory compared with medim, determinism, validation, a profile.

python scripts/bench_gpu.py [--batches 1 8] [--rounds 5] [--repeats 10] [--minutes 9]
python scripts/bench_gpu.py --device cpu --variant mini --batches 1 --repeats 1     # quick check that it runs

Uses one synthetic batch of crops, each with a ball; ours and medim's have equal weights and alternate. A training step
consists of encoder (unless cached), all rounds with L1DFL and clicks, backward pass and AdamW. In mode `decoder`, medim
encodes at every step without gradient, because it has no cache; it has no LoRA. Ours reads cached embeddings in mode
`decoder`; the cost of building the cache (one encoder pass per view, 4 views over 50 epochs) is added to its time. Both
run under the same autocast. `deterministic` is a step as with run.deterministic=true. On a GPU, the encoder is also
measured with torch.compile, and the synchronisations of a training step are counted. After --minutes, each measurement
is repeated only once. If memory runs out for a row, or it fails otherwise, it says so, and the others go on. Exit code
1 if a row fails for another reason than memory, or if bf16 differs from float32 by 2e-2 or more.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from published_training import published_loss
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from prompts.corrections import next_click
from sammed3d_ft.images.grids import from_array
from sammed3d_ft.losses import L1DFL
from sammed3d_ft.model.adapters import configure_tuning
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.prompted.predictor import Predictor
from sammed3d_ft.prompted.preprocessing import Preprocessing
from sammed3d_ft.prompted.simulated_user import simulate_case

CONSOLE = Console(width=120)
LOSS = L1DFL()
_VIEWS, _EPOCHS = 4, 50  # as in configs/decoder.yaml


def synthetic(batch: int, size: int, device: torch.device) -> dict[str, Tensor]:
    """Noise with a bright ball in the middle, the ball's mask and a click at its centre."""
    axis = torch.arange(size, device=device) - size // 2
    ball = (axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None] ** 2) < (size / 8) ** 2
    target = ball.expand(batch, 1, size, size, size).contiguous()
    noise = torch.randn(target.shape, generator=torch.Generator().manual_seed(0)).to(device)
    coords = torch.full((batch, 3), size / 2, device=device)
    return {
        "image": noise + 3 * target,
        "target": target,
        "coords": coords,
        "labels": torch.ones(batch, dtype=torch.long, device=device),
    }


def clicks(prediction: Tensor, target: Tensor, number: int) -> tuple[Tensor, Tensor]:
    keys = [(0, 0, index, number) for index in range(len(target))]
    coords, labels = next_click(prediction, target, strategy="error_random", keys=keys)
    return coords, labels


def our_loss(model: Any, batch: dict[str, Tensor], rounds: int, embedding: Tensor | None) -> Tensor:
    given = {"image": batch["image"]} if embedding is None else {"embedding": embedding}
    first = (batch["coords"], batch["labels"])
    loss: Tensor = model(batch["target"], first, clicks, LOSS, rounds=range(1, rounds + 1), **given).loss
    return loss


def their_loss(model: Any, batch: dict[str, Tensor], rounds: int, frozen_encoder: bool) -> Tensor:
    return published_loss(model, batch, rounds, LOSS, clicks, frozen_encoder)


class Bench:
    """Measure time and peak memory of functions on a device, alternating between them.

    Args:
        repeats: measurements of each function, after one to warm up.
        seconds: time after which each function is measured only once more.
    """

    def __init__(self, device: torch.device, repeats: int, seconds: float) -> None:
        self.device, self.repeats = device, repeats
        self.end = time.monotonic() + seconds
        self.failed = False  # whether a row failed for another reason than memory

    def synchronise(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def measure(self, title: str, unit: str, size: int, runs: dict[str, Callable[[], None]], **extra: float) -> None:
        """Print a table of median seconds, ``size`` units by second, and peak GB above the memory in use before.

        ``extra`` seconds are added to the rows that it names.
        """
        times: dict[str, list[float]] = {name: [] for name in runs}
        peaks = dict.fromkeys(runs, float("nan"))
        failed: dict[str, str] = {}
        for number in range(self.repeats + 1):  # the first is a warm-up
            if number > 1 and time.monotonic() > self.end:
                break
            for name, run in runs.items():
                if name in failed:
                    continue
                if self.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats(self.device)
                    before = torch.cuda.memory_allocated(self.device)
                self.synchronise()
                start = time.perf_counter()
                try:
                    run()
                    self.synchronise()
                except Exception as error:  # out of memory, or torch.compile, which needs a compiler
                    short = isinstance(error, torch.OutOfMemoryError)
                    failed[name] = "out of memory" if short else repr(error)[:60]
                    self.failed |= not short
                    gc.collect()
                    torch.cuda.empty_cache()
                    continue
                times[name].append(time.perf_counter() - start)
                if self.device.type == "cuda":
                    peaks[name] = (torch.cuda.max_memory_allocated(self.device) - before) / 1e9
        table = Table(title=title)
        for column in ("", "s", f"{unit} / s", "peak GB above weights"):
            table.add_column(column, justify="right" if column else "left")
        for name in runs:
            if name in failed:
                table.add_row(name, failed[name])
                continue
            seconds = statistics.median(times[name][1:]) + extra.get(name, 0)
            peak = f"{peaks[name]:.2f}" if self.device.type == "cuda" else "n/a"
            table.add_row(name, f"{seconds:.4f}", f"{size / seconds:.2f}", peak)
        CONSOLE.print(table)


def reference(variant: str, device: torch.device) -> Any:
    """medim's model with the same weights; None for a variant that it does not have."""
    if variant != "vit_b_ori":
        return None
    from medim.models.sam_med3d import build_sam3D_vit_b_ori

    model = build_sam3D_vit_b_ori().to(device)
    model.load_state_dict(seeded_model(variant, seed=0).state_dict(), strict=True)
    return model


def parity(variant: str, device: torch.device) -> bool:
    model = seeded_model(variant, seed=0).to(device).eval()
    batch = synthetic(1, model.image_size, device)
    exact = reference(variant, device) or model
    with torch.no_grad():
        expected = exact.image_encoder(batch["image"])
        points = (batch["coords"][:, None], batch["labels"][:, None])
        logits = model.decode(expected, *points)[0]
        with torch.autocast(device.type, torch.bfloat16):
            embedding = model.image_encoder(batch["image"]).float()
            low = model.decode(expected, *points)[0].float()
    errors = []
    whose = "medim's" if exact is not model else "our own"
    for name, got, wanted in (("encoder", embedding, expected), ("decoder", low, logits)):
        error = float((got - wanted).norm() / wanted.norm())
        errors.append(error)
        against = whose if name == "encoder" else "our own"
        CONSOLE.print(f"bf16 {name} compared with {against} float32: relative error {error:.1e}")
    return max(errors) < 2e-2


def steps(variant: str, batch: dict[str, Tensor], rounds: int, bench: Bench, precision: torch.dtype) -> None:
    device, size = bench.device, len(batch["image"])
    runs: dict[str, Callable[[], None]] = {}
    cache_seconds = 0.0

    def add(name: str, model: nn.Module, loss: Callable[[], Tensor], deterministic: bool = False) -> None:
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-5)

        def run() -> None:
            torch.use_deterministic_algorithms(deterministic)
            with torch.autocast(device.type, precision, enabled=precision != torch.float32):
                value = loss()
            value.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            torch.use_deterministic_algorithms(False)

        runs[name] = run

    for method in ("decoder", "lora", "full"):
        ours = seeded_model(variant, seed=0).to(device)
        configure_tuning(ours, method)
        ours.to(device).train()
        embedding = None
        if method == "decoder":
            bench.synchronise()
            start = time.perf_counter()
            with torch.no_grad():
                embedding = ours.image_encoder(batch["image"])
            bench.synchronise()
            cache_seconds = (time.perf_counter() - start) * _VIEWS / _EPOCHS
        for suffix in ("", ", deterministic"):
            add(
                f"ours, {method}{suffix}",
                ours,
                lambda m=ours, e=embedding: our_loss(m, batch, rounds, e),  # type: ignore[misc]
                deterministic=bool(suffix),
            )
        theirs = None if method == "lora" else reference(variant, device)
        if theirs is not None:
            frozen = method == "decoder"
            theirs.image_encoder.requires_grad_(not frozen)
            add(f"medim, {method}", theirs, lambda m=theirs, f=frozen: their_loss(m, batch, rounds, f))  # type: ignore[misc]
    title = f"training step, {variant}, batch {size}, {rounds} rounds, {precision}"
    cached = {name: cache_seconds for name in runs if name.startswith("ours, decoder")}
    bench.measure(title, "samples", size, runs, **cached)


def encoders(variant: str, batch: dict[str, Tensor], bench: Bench) -> None:
    device, size = bench.device, len(batch["image"])
    ours, theirs = seeded_model(variant, seed=0).to(device), reference(variant, device)
    models: dict[str, Any] = {"ours": ours.image_encoder}
    if device.type == "cuda":  # on a CPU, compiling takes minutes
        models["ours, compiled"] = torch.compile(ours.image_encoder)
    if theirs is not None:
        models["medim"] = theirs.image_encoder
    runs: dict[str, Callable[[], None]] = {}
    for whose, encoder in models.items():
        for precision in (torch.float32, torch.bfloat16):
            for backward in (False, True):

                def run(encoder: Any = encoder, precision: torch.dtype = precision, backward: bool = backward) -> None:
                    with (
                        torch.set_grad_enabled(backward),
                        torch.autocast(device.type, precision, enabled=precision != torch.float32),
                    ):
                        embedding = encoder(batch["image"])
                    if backward:
                        embedding.float().square().mean().backward()
                        encoder.zero_grad(set_to_none=True)

                what = "forward + backward" if backward else "forward"
                runs[f"{whose}, {str(precision).removeprefix('torch.')}, {what}"] = run
    bench.measure(f"image encoder, {variant}, batch {size}", "crops", size, runs)


def validation(variant: str, bench: Bench) -> None:
    """Simulated clicks on eight balls in one scan, without auto-zoom."""
    model = seeded_model(variant, seed=0)
    preprocessing = Preprocessing(("PT",), model.variant.spacing_mm)
    centres = np.array(np.meshgrid(*[(30, 90)] * 3)).reshape(3, -1).T
    index = np.moveaxis(np.indices((120, 120, 120)), 0, -1)
    balls = np.any([((index - centre) ** 2).sum(-1) < 36 for centre in centres], axis=0)
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    label, pet = (from_array(array, affine) for array in (balls.astype(np.uint8), 1 + 9 * balls.astype(np.float32)))
    predictor = Predictor(model, preprocessing, bench.device, zoom=False)

    def run() -> None:
        simulate_case(predictor, {"PT": pet}, label, [1, 5], case="balls")

    bench.measure(f"validation, {variant}, 5 clicks on each of 8 lesions", "lesions", len(centres), {"ours": run})


def largest_items(variant: str, batch: dict[str, Tensor], rounds: int, device: torch.device) -> None:
    """Profile of a full training step in bf16."""
    model = seeded_model(variant, seed=0).to(device).train()
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            loss = our_loss(model, batch, rounds, None)
        loss.backward()

    step()  # warm-up
    if device.type == "cuda":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            step()
            torch.cuda.set_sync_debug_mode("default")
        CONSOLE.print(f"synchronisations in a training step: {len(caught)}")
    with profile(activities=activities) as profiled:
        step()
    key = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    print(profiled.key_averages().table(sort_by=key, row_limit=8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--variant", default="vit_b_ori", choices=("vit_b_ori", "mini"))
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=9)
    given = parser.parse_args()
    if given.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("no CUDA device found; use --device cpu --variant mini for a quick check that the script runs")
    device = torch.device(given.device)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # for deterministic steps, before the GPU is first used
    bench = Bench(device, given.repeats, 60 * given.minutes)
    size = seeded_model(given.variant, seed=0).image_size
    close_enough = parity(given.variant, device)
    for number in given.batches:
        batch = synthetic(number, size, device)
        encoders(given.variant, batch, bench)
        for precision in (torch.float32, torch.bfloat16):
            steps(given.variant, batch, given.rounds, bench, precision)
    validation(given.variant, bench)
    largest_items(given.variant, synthetic(1, size, device), given.rounds, device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    CONSOLE.print(f"{name}, torch {torch.__version__}, medians of {given.repeats}")
    sys.exit(not close_enough or bench.failed)


if __name__ == "__main__":
    main()
