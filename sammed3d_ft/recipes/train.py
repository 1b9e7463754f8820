"""Training: one linear loop from config to exported model, for every task and any number of processes."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import set_seed
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader
from tqdm import tqdm

import sammed3d_ft
from prompts.errors import InputError
from sammed3d_ft.data.check import check_manifest
from sammed3d_ft.data.manifest import read_manifest
from sammed3d_ft.data.samples import collate, epoch_batches
from sammed3d_ft.figures import draw_training_curves
from sammed3d_ft.inference.simulation import CaseScore
from sammed3d_ft.model.adapters import load_trainable_state, trainable_state
from sammed3d_ft.model.weights import sha256_of
from sammed3d_ft.recipes.config import TrainConfig, differences, load_config
from sammed3d_ft.recipes.prompted_task import PromptedTask
from sammed3d_ft.training.checkpoints import list_checkpoints, read_checkpoint, save_checkpoint
from sammed3d_ft.training.metrics_log import MetricsLog
from sammed3d_ft.training.optimizer import (
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    schedule_factor,
    set_learning_rates,
)

_log = logging.getLogger(__name__)


def train(config: TrainConfig) -> dict[str, Any]:
    """Runs or continues one fine-tuning; returns the content of the run's ``summary.json``.

    Raises:
        InputError: anything wrong with config, data or weights, before training starts.
    """
    started = time.monotonic()
    run = config.run.dir
    device_has_bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    precision = (
        ("bf16" if device_has_bf16 else "no") if config.optim.precision == "auto" else config.optim.precision
    )
    accelerator = Accelerator(
        mixed_precision=precision, log_with=list(config.track.trackers) or None, project_dir=str(run)
    )
    main_process = accelerator.is_main_process

    # 1. What there is: data checked before a model is loaded, an earlier run recognised before it is written to.
    manifest = read_manifest(config.data.manifest)
    if main_process:
        check_manifest(manifest, config.data.modalities, connectivity=config.data.connectivity).raise_if_bad()
    accelerator.wait_for_everyone()
    checkpoints = list_checkpoints(run / "checkpoints")
    _refuse_changed_config(config, run, resuming=bool(checkpoints))
    accelerator.wait_for_everyone()  # all have read the earlier run's config before it is written anew
    if main_process:
        run.mkdir(parents=True, exist_ok=True)
        (run / "config.yaml").write_text(yaml.safe_dump(config.as_plain(), sort_keys=False))

    # 2. Model and data.
    set_seed(config.run.seed)
    task = PromptedTask(config, manifest)
    if main_process:
        for line in task.tuning.lines():
            print(line)
        (run / "run.json").write_text(json.dumps(_run_facts(config, task, accelerator), indent=1))
    task.prepare(accelerator)
    assert task.store is not None
    optimizer = build_optimizer(task.model.named_parameters(), task.learning_rates, config.optim.weight_decay)
    model = accelerator.prepare_model(task.model)
    if accelerator.num_processes == 1:
        task.model.to(accelerator.device)

    # 3. Where to go on.
    epoch, batch_in_epoch, step = 0, 0, 0
    best: dict[str, Any] = {"score": -1.0, "step": -1}
    if checkpoints:
        found = read_checkpoint(checkpoints[-1])
        load_trainable_state(task.model, found.model)
        load_optimizer_tensors(optimizer, found.optimizer)
        epoch, batch_in_epoch, step = (found.state[name] for name in ("epoch", "batch", "step"))
        best = found.state["best"]
        if main_process:
            print(f"resumed at step {step} (epoch {epoch + 1}) from {found.path}")
    elif main_process:  # checkpoints were removed by hand: their best does not belong to this run
        shutil.rmtree(run / "best", ignore_errors=True)
    log = MetricsLog(run / "metrics.jsonl", resume_step=step) if main_process else None
    if config.track.trackers:
        accelerator.init_trackers("tracking")

    # 4. The loop.
    batches_per_epoch = len(
        epoch_batches(len(task.store), config.optim.batch_size, 0, 0, 0, accelerator.num_processes)
    )
    steps_per_epoch = -(-batches_per_epoch // config.optim.accumulate)
    total_steps = steps_per_epoch * config.optim.epochs
    bar = tqdm(
        total=total_steps,
        initial=step,
        desc="training",
        unit="step",
        disable=not accelerator.is_local_main_process,
    )

    def record(values: dict[str, float]) -> None:
        if log is not None:
            log.write(step, values)
        accelerator.log(values, step=step)

    def save() -> None:
        if main_process:
            state = {
                "epoch": epoch,
                "batch": batch_in_epoch,
                "step": step,
                "best": best,
                "seed": config.run.seed,
            }
            save_checkpoint(
                run / "checkpoints",
                step,
                trainable_state(task.model),
                optimizer_tensors(optimizer),
                state,
                config.checkpoint.keep,
            )
        accelerator.wait_for_everyone()

    model.train()
    while epoch < config.optim.epochs:
        batches = epoch_batches(
            len(task.store),
            config.optim.batch_size,
            config.run.seed,
            epoch,
            accelerator.process_index,
            accelerator.num_processes,
        )[batch_in_epoch:]
        loader = iter(
            DataLoader(
                task.dataset(epoch),
                batch_sampler=batches,
                collate_fn=collate,
                num_workers=config.data.workers,
                pin_memory=accelerator.device.type == "cuda",
            )
        )
        while batches:
            group, batches = batches[: config.optim.accumulate], batches[config.optim.accumulate :]
            torch.manual_seed(
                config.run.seed * 1_000_003 + step
            )  # LoRA's dropout draws from torch's generator
            # The last group of an epoch may be short: the mean is over what it holds, and nothing is dropped.
            for position in range(len(group)):
                batch = _to_device(next(loader), accelerator.device)
                last = position == len(group) - 1
                with nullcontext() if last else accelerator.no_sync(model), accelerator.autocast():
                    loss, values = task.loss(model, batch, epoch)
                    if not torch.isfinite(loss):
                        raise InputError(
                            f"step {step}: the loss is {loss.item()} for {', '.join(task.case_ids(batch))}; "
                            f"the last checkpoint is intact. Lower optim.lr_*, or look at these cases"
                        )
                    accelerator.backward(loss / len(group))
            norm = accelerator.clip_grad_norm_(task.model.parameters(), config.optim.clip_norm)
            factor = schedule_factor(step, config.optim.warmup_steps, total_steps)
            set_learning_rates(optimizer, factor)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            step += 1
            batch_in_epoch += len(group)
            bar.update()
            if step % config.track.log_every_steps == 0:
                numbers = {name: value.item() for name, value in values.items()}
                record(
                    {**numbers, "train/grad_norm": float(norm), "train/lr_factor": factor, "epoch": epoch + 1}
                )
                bar.set_postfix(loss=f"{numbers['train/loss']:.3f}", dice=f"{numbers['train/dice_last']:.3f}")
            if step % config.checkpoint.every_steps == 0 and batches:
                save()
        epoch, batch_in_epoch = epoch + 1, 0
        if epoch % config.validate_.every_epochs == 0 or epoch == config.optim.epochs:
            summary = task.summary(task.score(accelerator, "val"), "val")
            score = (summary["val/dice@1"] + summary["val/dice@5"]) / 2
            if math.isnan(score):
                raise InputError("no lesion in any validation case, so no best model can be chosen: see the manifest")
            record({**summary, "epoch": epoch})
            if score > best["score"]:
                best = {"score": score, "step": step, "epoch": epoch, **summary}
                if main_process:
                    save_checkpoint(
                        run / "best", step, trainable_state(task.model), {}, {"best": best}, keep=1
                    )
            if main_process:
                tqdm.write(_validation_line(epoch, summary, config))
                draw_training_curves(run)
            save()
            model.train()
    bar.close()

    # 5. The best model: exported, and tested once.
    return _finish(config, task, accelerator, best, time.monotonic() - started)


def _finish(
    config: TrainConfig, task: PromptedTask, accelerator: Accelerator, best: dict[str, Any], seconds: float
) -> dict[str, Any]:
    run = config.run.dir
    accelerator.wait_for_everyone()
    chosen = list_checkpoints(run / "best")
    if chosen:
        load_trainable_state(task.model, read_checkpoint(chosen[-1]).model)
    summary: dict[str, Any] = {"best": best, "seconds": round(seconds, 1)}
    scores = {"val": task.score(accelerator, "val")}
    if config.validate_.test and task.test_cases:
        scores["test"] = task.score(accelerator, "test")
    for split, split_scores in scores.items():
        summary.update(task.summary(split_scores, split))
    if accelerator.is_main_process:
        path = task.export(run / "export", {"best_step": best["step"], "val_score": round(best["score"], 6)})
        summary["export"], summary["export_sha256"] = str(path), sha256_of(path)
        for split, split_scores in scores.items():
            _write_scores(run / f"{split}_cases.csv", split_scores, config.validate_.clicks)
            task.export_clicks(run / "clicks" / split, split_scores)
        (run / "summary.json").write_text(json.dumps(summary, indent=1))
        _print_summary(summary, run, config)
    accelerator.end_training()
    return summary


def _refuse_changed_config(config: TrainConfig, run: Path, resuming: bool) -> None:
    """A run goes on with the settings it began with; anything else would be another run under its name."""
    file = run / "config.yaml"
    if not resuming:
        return
    if config.run.resume == "never":
        raise InputError(
            f"{run} holds an earlier run and run.resume is never: choose another run.dir or remove it"
        )
    changed = differences(yaml.safe_load(file.read_text()), config.as_plain()) if file.exists() else []
    if changed:
        raise InputError(
            f"{run} holds a run with other settings ({'; '.join(changed)}): choose another run.dir, "
            f"or give the settings it began with"
        )


def _run_facts(config: TrainConfig, task: PromptedTask, accelerator: Accelerator) -> dict[str, Any]:
    import platform

    return {
        "sammed3d_ft": sammed3d_ft.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": str(accelerator.device),
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "seed": config.run.seed,
        "base_hash": task.base_hash,
        "manifest_sha256": sha256_of(config.data.manifest),
        "tuning": task.tuning.lines(),
    }


def _to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, torch.Tensor) else value
        for name, value in batch.items()
    }


def _validation_line(epoch: int, summary: dict[str, float], config: TrainConfig) -> str:
    figures = "  ".join(f"{k}: {summary[f'val/dice@{k}']:.3f}" for k in config.validate_.clicks)
    return f"epoch {epoch}: validation Dice at clicks  {figures}"


def _write_scores(path: Path, scores: Sequence[CaseScore], clicks: Sequence[int]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["case", "lesion", "volume_ml", *(f"dice@{k}" for k in clicks)])
        for score in scores:
            whole = score.dice or {}
            writer.writerow([score.case, "all", "", *(whole.get(k, "") for k in clicks)])
            for lesion in score.lesions:
                writer.writerow(
                    [score.case, lesion.lesion, lesion.volume_ml, *(lesion.dice[k] for k in clicks)]
                )


def _print_summary(summary: dict[str, Any], run: Path, config: TrainConfig) -> None:
    table = Table(title="Mean Dice per case on the scans' own grids, by clicks per lesion")
    table.add_column("split")
    for k in config.validate_.clicks:
        table.add_column(str(k), justify="right")
    for split in ("val", "test"):
        if f"{split}/dice@1" in summary:
            table.add_row(split, *(f"{summary[f'{split}/dice@{k}']:.3f}" for k in config.validate_.clicks))
    console = Console()
    console.print(table)
    console.print(f"best at epoch {summary['best'].get('epoch')}, {summary['seconds']:.0f} s in all")
    for name in ("export/model.safetensors", "curves.png", "val_cases.csv"):
        console.print(f"  {run / name}", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``finetune.py``. Wrong input: one line on stderr, exit code 2."""
    parser = argparse.ArgumentParser(
        prog="finetune.py",
        description="Fine-tune SAM-Med3D. Start with: accelerate launch finetune.py --config configs/decoder.yaml",
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file, such as configs/decoder.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings to change")
    given = parser.parse_args(arguments)
    try:
        train(load_config(given.config, given.overrides))
    except InputError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


if __name__ == "__main__":
    main()
