"""Compare the speed of decoder tuning with the published procedure, and profile a training run.

python scripts/bench_training.py [--rounds 11] [--batch 2] [--repeats 3] [--threads 2]

1. Samples per second of vit_b_ori at 128^3, alternating in one process, with the same crops, clicks and loss: ours
   (cached embeddings; the cost of the cache is spread over the configured epochs and views) compared with medim's
   model, which encodes at every step with the encoder frozen and without gradient.
2. Forward and backward pass of decoder, upsampling and loss separately.
3. The share of each stage in a complete run of the recipe: cache, loading, steps, validation, checkpoints, export.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import platform
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from medim.models.sam_med3d import build_sam3D_vit_b_ori
from published_training import published_loss
from rich.console import Console
from rich.table import Table
from torch import Tensor

from prompts.corrections import next_click
from sammed3d_ft.dataset.manifest import read_manifest
from sammed3d_ft.losses import L1DFL
from sammed3d_ft.model import sam_med3d
from sammed3d_ft.model.image_encoder import ImageEncoder
from sammed3d_ft.model.upsampling import upsample
from sammed3d_ft.phantom.cohort import write_cohort
from sammed3d_ft.prompted import task as prompted_task
from sammed3d_ft.prompted.config import PromptedConfig
from sammed3d_ft.prompted.embedding_cache import CachedSamples, EmbeddingCache
from sammed3d_ft.prompted.samples import LesionSamples
from sammed3d_ft.prompted.task import PromptedTask
from sammed3d_ft.recipes import train as recipe
from sammed3d_ft.training.batches import collate
from sammed3d_ft.training.optimizer import build_optimizer

CONSOLE = Console(width=110)


def config_of(work: Path, manifest: Path, rounds: int, batch: int, **sections: Any) -> PromptedConfig:
    """configs/decoder.yaml, except for weights, batch size, and rounds as in the published training."""
    shipped = recipe.load_config(
        Path("configs/decoder.yaml"),
        ["model.weights=random", f"run.dir={work / 'run'}", f"data.manifest={manifest}", "track.trackers=[]"],
    ).as_plain()
    shipped["clicks"].update(rounds=rounds, gradient_rounds=None, start_masks=0.0)
    shipped["optim"]["batch_size"] = batch
    for name, values in sections.items():
        shipped[name].update(values)
    return PromptedConfig.model_validate(shipped)


class Ours:
    """Training steps of our recipe on cached embeddings."""

    def __init__(self, config: PromptedConfig, accelerator: Accelerator) -> None:
        self.config = config
        self.task = PromptedTask(config, read_manifest(config.data.manifest))
        built: list[float] = []
        real = EmbeddingCache.build

        def timed(*arguments: Any, **named: Any) -> Iterator[int]:
            start = time.perf_counter()
            yield from real(*arguments, **named)
            built.append(time.perf_counter() - start)

        EmbeddingCache.build = timed  # type: ignore[method-assign]
        self.task.prepare(accelerator)
        EmbeddingCache.build = real  # type: ignore[method-assign]
        assert self.task.store is not None
        assert self.task.cache is not None
        self.seconds_per_view = built[0] / (len(self.task.store) * config.cache.views)
        self.samples = CachedSamples(self.task.cache, epoch=0)
        self.optimizer = build_optimizer(self.task.model.named_parameters(), self.task.learning_rates, 0.01)

    def step(self, indices: list[int]) -> float:
        start = time.perf_counter()
        batch: Any = collate([self.samples[index] for index in indices])
        loss, _ = self.task.loss(self.task.model, batch, epoch=0, step=0, progress=0.0)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start


class Reference:
    """Training steps of the published procedure with medim's model: encode, then click, decode, upsample, loss."""

    def __init__(self, ours: Ours) -> None:
        self.config, self.criterion = ours.config, ours.task.criterion.chosen
        self.model = build_sam3D_vit_b_ori()
        self.model.load_state_dict(ours.task.model.state_dict(), strict=True)
        self.model.image_encoder.requires_grad_(False)
        assert ours.task.store is not None
        self.samples = LesionSamples(ours.task.store, ours.task.samples, epoch=0)
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], 2e-4)

    def step(self, indices: list[int]) -> float:
        start = time.perf_counter()
        batch: Any = collate([self.samples[index] for index in indices])
        given = {**batch, "coords": batch["coords_vox"], "labels": batch["label"]}

        def clicks(prediction: Tensor, target: Tensor, number: int) -> tuple[Tensor, Tensor]:
            keys = [(self.config.run.seed, 0, index, number) for index in indices]
            new, sign = next_click(prediction, target, strategy=self.config.clicks.next, keys=keys)
            return new, sign

        rounds = self.config.clicks.rounds
        published_loss(self.model, given, rounds, self.criterion, clicks, frozen_encoder=True).backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return time.perf_counter() - start


def compare(config: PromptedConfig, shipped: PromptedConfig, repeats: int) -> Ours:
    """Build one view of the cache (its cost is spread over the shipped config's views and epochs) and compare steps."""
    ours = Ours(config, Accelerator(cpu=True))
    reference = Reference(ours)
    batch = config.optim.batch_size
    count = len(ours.samples)
    mine, theirs = [], []
    for repeat in range(repeats + 1):  # the first is a warm-up
        indices = [(repeat * batch + i) % count for i in range(batch)]
        mine.append(ours.step(indices))
        theirs.append(reference.step(indices))
    step, reference_step = (statistics.median(times[1:]) / batch for times in (mine, theirs))
    views, epochs = shipped.cache.views, shipped.optim.epochs
    cache = ours.seconds_per_view * views / epochs
    table = Table(title=f"decoder tuning, vit_b_ori, {config.clicks.rounds} rounds, batch {batch}")
    for column in ("seconds per sample", "ours", "medim, encoding every step"):
        table.add_column(column, justify="left" if column[0] == "s" else "right")
    table.add_row("step (load to optimiser)", f"{step:.2f}", f"{reference_step:.2f}")
    spread_over = f"cache: {ours.seconds_per_view:.2f} s x {views} views / {epochs} epochs"
    table.add_row(spread_over, f"{cache:.2f}", "")
    table.add_row("samples per second", f"{1 / (step + cache):.3f}", f"{1 / reference_step:.3f}")
    table.add_row("ratio", f"{reference_step / (step + cache):.1f} times more", "")
    CONSOLE.print(table)
    return ours


def parts_alone(ours: Ours, repeats: int) -> None:
    """Time the forward and backward pass of each part of a round, for one sample."""
    model, size = ours.task.model, ours.task.model.image_size
    batch: Any = collate([ours.samples[0]])
    target, coords, labels = batch["target"], batch["coords_vox"][:, None], batch["label"][:, None]
    low = torch.randn(1, 1, size // 4, size // 4, size // 4, requires_grad=True)
    logits = torch.randn(1, 1, size, size, size, requires_grad=True)
    parts: dict[str, Callable[[], Tensor]] = {
        "prompt encoder and decoder": lambda: model.decode(batch["embedding"], coords, labels)[0].sum(),
        "upsampling to 128^3": lambda: upsample(low, size).sum(),
        "L1DFL": lambda: ours.task.criterion.chosen(logits, target),
    }
    times: dict[str, list[float]] = defaultdict(list)
    for _ in range(repeats + 1):
        for name, part in parts.items():
            start = time.perf_counter()
            part().backward()
            times[name].append(time.perf_counter() - start)
    table = Table(title="one round of one sample: forward and backward, each part alone")
    table.add_column("part")
    table.add_column("s", justify="right")
    for name, values in times.items():
        table.add_row(name, f"{statistics.median(values[1:]):.3f}")
    CONSOLE.print(table)


class Stages:
    """Sum the time spent in functions, excluding time in nested functions that are also timed."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._stack: list[list[Any]] = []

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        entry: list[Any] = [name, time.perf_counter(), 0.0]
        self._stack.append(entry)
        try:
            yield
        finally:
            self._stack.pop()
            spent = time.perf_counter() - entry[1]
            self.seconds[name] += spent - entry[2]
            if self._stack:
                self._stack[-1][2] += spent

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        real = getattr(owner, attribute)

        @functools.wraps(real)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.stage(name):
                return real(*arguments, **named)

        setattr(owner, attribute, timed)


def shares(config: PromptedConfig) -> None:
    """Run the recipe with timed functions."""
    stages = Stages()
    stages.watch(recipe, "check_manifest", "check of the data")
    stages.watch(prompted_task, "prepare_case", "extracting lesions")
    stages.watch(LesionSamples, "__getitem__", "cache: crops")
    stages.watch(ImageEncoder, "forward", "encoder")
    stages.watch(CachedSamples, "__getitem__", "loading")
    stages.watch(sam_med3d.SAMMed3D, "decode", "prompt encoder and decoder, forward")
    stages.watch(sam_med3d, "upsample", "upsampling, forward")
    stages.watch(L1DFL, "forward", "loss, forward")
    stages.watch(prompted_task, "next_click", "clicks")
    stages.watch(Accelerator, "backward", "backward pass")
    stages.watch(Accelerator, "clip_grad_norm_", "optimiser")
    stages.watch(torch.optim.AdamW, "step", "optimiser")
    stages.watch(recipe, "save_checkpoint", "checkpoints")
    stages.watch(recipe, "draw_training_curves", "curves")
    stages.watch(PromptedTask, "score", "validation, without encoder and decoder")
    stages.watch(PromptedTask, "export", "export")
    with stages.stage("everything else"):
        recipe.train(config)
    total = sum(stages.seconds.values())
    table = Table(title=f"a run of {config.optim.epochs} epochs, {total:.0f} s")
    for column in ("stage", "s", "share"):
        table.add_column(column, justify="left" if column == "stage" else "right")
    for name, seconds in sorted(stages.seconds.items(), key=lambda pair: -pair[1]):
        table.add_row(name, f"{seconds:.1f}", f"{seconds / total:.1%}")
    CONSOLE.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=11, help="decoder passes per step")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3, help="timed steps of each")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        manifest = write_cohort(work / "data", cases=3, val=1, test=0, seed=3, field="pelvis")
        shipped = config_of(work, manifest, given.rounds, given.batch)
        short = config_of(work, manifest, given.rounds, given.batch, optim={"epochs": 4}, cache={"views": 1})
        parts_alone(compare(short, shipped, given.repeats), given.repeats)
        shares(short.model_copy(update={"run": shipped.run.model_copy(update={"dir": work / "whole"})}))
    CONSOLE.print(f"{given.threads} threads, torch {torch.__version__}, {platform.machine()}")


if __name__ == "__main__":
    main()
