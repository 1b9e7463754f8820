"""Train: one linear loop from config to exported model, for every task and any number of processes."""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, parse_flag_from_env, set_seed
from rich.console import Console
from torch import Tensor
from tqdm import tqdm

from sammed3d_ft.automatic.config import AutomaticConfig
from sammed3d_ft.automatic.report import AutomaticReport
from sammed3d_ft.automatic.task import AutomaticTask
from sammed3d_ft.dataset.check import check_manifest
from sammed3d_ft.dataset.manifest import Manifest, read_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.figures.curves import draw_training_curves
from sammed3d_ft.files import INCOMPLETE, write_whole
from sammed3d_ft.prompted.config import PromptedConfig
from sammed3d_ft.prompted.report import PromptedReport
from sammed3d_ft.prompted.task import PromptedTask
from sammed3d_ft.provenance import file_hash
from sammed3d_ft.training.batches import EpochLoader, epoch_batches, loader_workers
from sammed3d_ft.training.checkpoints import (
    list_checkpoints,
    prune_checkpoints,
    read_checkpoint,
    read_state,
    save_checkpoint,
)
from sammed3d_ft.training.config_file import checked, find_config, read_content
from sammed3d_ft.training.contact import in_contact
from sammed3d_ft.training.failures import explain_failure, print_error
from sammed3d_ft.training.metrics_log import MetricsLog
from sammed3d_ft.training.optimizer import (
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    schedule_factor,
    set_learning_rates,
)
from sammed3d_ft.training.processes import all_agree, gathered, logged_values
from sammed3d_ft.training.resume import (
    newest_checkpoint,
    refuse_changed_config,
    refuse_changed_facts,
    refuse_unequal_replicas,
    run_facts,
)
from sammed3d_ft.training.run_lock import locked_run
from sammed3d_ft.training.stopping import leave, tell_when_stopped
from sammed3d_ft.training.task import Report, Task

_ENOUGH_TO_SELECT = 3  # validation cases


def load_config(path: Path, overrides: Sequence[str] = ()) -> PromptedConfig | AutomaticConfig:
    """Read a YAML config and apply overrides. A config with a section ``network`` trains a baseline.

    Args:
        path: a file; names such as ``configs/decoder.yaml`` are also looked up among the shipped configs.
        overrides: ``key.path=value``, with values in YAML.

    Raises:
        InputError: an invalid config; one line lists all errors, with suggestions for unknown keys.
    """
    file = find_config(path)
    content = read_content(file, overrides)
    if "network" in content:
        return checked(AutomaticConfig, content, file)
    return checked(PromptedConfig, content, file)


def build_task(config: PromptedConfig | AutomaticConfig, manifest: Manifest) -> Task:
    """The task of a config: everything that the loop needs to know about the kind of training."""
    if isinstance(config, AutomaticConfig):
        return AutomaticTask(config, manifest)
    return PromptedTask(config, manifest)


def build_report(config: PromptedConfig | AutomaticConfig) -> Report:
    """The report of a config's scores."""
    return AutomaticReport() if isinstance(config, AutomaticConfig) else PromptedReport(config.validate_.clicks)


def train(config: PromptedConfig | AutomaticConfig) -> dict[str, Any]:
    """Start or resume a training run; return the content of its ``summary.json``.

    Raises:
        InputError: before training, an error in config, data or weights; during training, a NaN loss or gradient, or a
            full disk. Files written before remain intact.
    """
    started = time.monotonic()
    if config.run.deterministic:
        _allow_only_deterministic_kernels()
    with in_contact(lambda: _accelerator(config)) as accelerator:
        main_process, rank, world = accelerator.is_main_process, accelerator.process_index, accelerator.num_processes
        if world > 1 and rank < 2:  # two, because one of them may be the one killed
            tell_when_stopped(
                f"process {rank} of {world} was stopped, because another process ended or the job was cancelled. The "
                "launcher's report names the first process that ended and its signal (SIGKILL: often out of memory). "
                "Re-run the same command to resume from the last checkpoint"
            )
        manifest = read_manifest(config.data.manifest)
        if main_process:
            check_manifest(manifest, config.data.modalities, connectivity=config.data.connectivity).raise_if_bad()
        with locked_run(config.run.dir) if main_process else nullcontext():
            accelerator.wait_for_everyone()
            summary = _train(config, manifest, accelerator, started)
    accelerator.end_training()
    return summary


@dataclass
class _Run:
    """State of a running training: its parts and its progress."""

    config: PromptedConfig | AutomaticConfig
    task: Task
    report: Report
    accelerator: Accelerator
    optimizer: torch.optim.Optimizer
    epoch: int = 0  # completed epochs
    batch: int = 0  # completed batches of the current epoch
    step: int = 0  # completed optimiser steps
    saved_step: int = 0
    best: dict[str, Any] = field(default_factory=lambda: {"score": -1.0, "step": -1})
    log: MetricsLog | None = None  # only in the main process

    @property
    def folder(self) -> Path:
        return self.config.run.dir


def _train(
    config: PromptedConfig | AutomaticConfig, manifest: Manifest, accelerator: Accelerator, started: float
) -> dict[str, Any]:
    folder, main_process = config.run.dir, accelerator.is_main_process

    # 1. Find an earlier run and check that it may be resumed, before anything is written.
    checkpoint = newest_checkpoint(folder)
    if checkpoint is not None:
        refuse_changed_config(config.as_plain(), folder, tell=main_process)
        if read_state(checkpoint)["epoch"] == config.optim.epochs and (folder / "summary.json").exists():
            return _finished(config, main_process)
    accelerator.wait_for_everyone()  # all processes have read the earlier config before it is overwritten
    if main_process:
        for left in folder.rglob(f".*{INCOMPLETE}"):  # incomplete files of a killed process
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        write_whole(folder / "config.yaml", yaml.safe_dump(config.as_plain(), sort_keys=False))
    accelerator.wait_for_everyone()

    # 2. Model and data.
    set_seed(config.run.seed)
    task = build_task(config, manifest)
    if main_process:
        for line in task.lines():
            print(line)
        if (count := len(task.cases.val)) < _ENOUGH_TO_SELECT:
            print(
                f"validation cases: {count}; with fewer than {_ENOUGH_TO_SELECT}, which epoch is best is mostly chance"
            )
    task.prepare(accelerator)
    facts = run_facts(config.run.seed, config.data.manifest, task, accelerator)
    if checkpoint is not None:
        refuse_changed_facts(facts, folder, tell=main_process)
    accelerator.wait_for_everyone()
    if main_process:
        write_whole(folder / "run.json", json.dumps(facts, indent=1))
    optimizer = build_optimizer(task.model.named_parameters(), task.learning_rates, config.optim.weight_decay)
    model = accelerator.prepare_model(task.model)
    if accelerator.num_processes == 1:
        task.model.to(accelerator.device)

    # 3. Starting point.
    run = _Run(config, task, build_report(config), accelerator, optimizer)
    if checkpoint is not None:
        _restore(run, checkpoint)
    if main_process:
        for later in list_checkpoints(folder / "best"):  # best models after the checkpoint will be found again
            if int(later.name[5:]) > run.best["step"]:
                shutil.rmtree(later)
        run.log = MetricsLog(folder / "metrics.jsonl", None if checkpoint is None else run.step)
    if config.track.trackers:
        accelerator.init_trackers("tracking", init_kwargs={"tensorboard": {"purge_step": run.step + 1}})

    # 4. The loop.
    rank, world, batch_size = accelerator.process_index, accelerator.num_processes, config.optim.batch_size
    batches_per_epoch = len(epoch_batches(task.sample_count, batch_size, 0, 0, 0, world))
    total_steps = -(-batches_per_epoch // config.optim.accumulate) * config.optim.epochs
    workers = loader_workers(config.data.workers, accelerator.device)
    loader = EpochLoader(task.datasets(), workers, pin_memory=accelerator.device.type == "cuda")
    show = accelerator.is_local_main_process
    with tqdm(total=total_steps, initial=run.step, desc="training", unit="step", disable=not show) as bar:
        if checkpoint is None and task.starts_trained:
            _validate(run)  # if training never improves on the initial weights, they remain the best
        while run.epoch < config.optim.epochs:
            model.train()
            batches = epoch_batches(task.sample_count, batch_size, config.run.seed, run.epoch, rank, world)[run.batch :]
            loaded = loader.batches(run.epoch, batches)
            while batches:
                group, batches = batches[: config.optim.accumulate], batches[config.optim.accumulate :]
                torch.manual_seed(config.run.seed * 1_000_003 + run.step)  # LoRA's dropout draws from torch's generator
                losses: list[Tensor] = []
                values: list[dict[str, Tensor]] = []
                cases: list[list[str]] = []
                # The last group of an epoch may be smaller; its mean is over its own batches, and none is dropped.
                for position in range(len(group)):
                    batch = _to_device(next(loaded), accelerator.device)
                    last = position == len(group) - 1
                    with nullcontext() if last else accelerator.no_sync(model):
                        with accelerator.autocast():
                            progress = run.step / total_steps
                            loss, numbers = task.loss(model, batch, run.epoch, run.step, progress)
                        accelerator.backward(loss / len(group))
                    losses.append(loss.detach().float())
                    values.append(numbers)
                    cases.append(task.case_ids(batch))
                norm = accelerator.clip_grad_norm_(task.model.parameters(), config.optim.clip_norm or math.inf)
                *loss_values, norm = torch.stack([*losses, norm.float()]).tolist()  # a single device synchronisation
                _stop_unless_finite(run, loss_values, norm, cases)
                factor = schedule_factor(run.step, config.optim.warmup, total_steps)
                set_learning_rates(optimizer, factor)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                run.step += 1
                run.batch += len(group)
                bar.update()
                if run.step % config.track.log_every_steps == 0:
                    shown = logged_values(accelerator, values)
                    _record(run, {**shown, "train/grad_norm": norm, "train/lr_factor": factor, "epoch": run.epoch + 1})
                    bar.set_postfix(**{label: f"{shown[name]:.3f}" for label, name in run.report.shown.items()})
                if run.step - run.saved_step >= config.checkpoint.every_steps and batches:
                    _save(run)
            run.epoch, run.batch = run.epoch + 1, 0
            if run.epoch % config.validate_.every_epochs == 0 or run.epoch == config.optim.epochs:
                _validate(run)
            elif run.step - run.saved_step >= config.checkpoint.every_steps:
                _save(run)

    # 5. Export the best model and test it once.
    return _finish(run, time.monotonic() - started)


def _restore(run: _Run, checkpoint: Path) -> None:
    found = read_checkpoint(checkpoint)
    run.task.load_state(found.model)
    load_optimizer_tensors(run.optimizer, found.optimizer)
    run.epoch, run.batch, run.step, run.best = (found.state[name] for name in ("epoch", "batch", "step", "best"))
    run.saved_step = run.step
    if run.best["step"] >= 0 and not (run.folder / "best" / f"step_{run.best['step']}").is_dir():
        raise InputError(
            f"{run.folder / 'best'} does not contain step_{run.best['step']}, the best model so far according to "
            f"{checkpoint}: restore it, or remove {run.folder} to start again"
        )
    refuse_unequal_replicas(run.accelerator, run.step, run.task.state())
    if run.accelerator.is_main_process:
        print(f"resumed at step {run.step} (epoch {run.epoch + 1}) from {found.path}")


def _save(run: _Run) -> None:
    run.saved_step = run.step
    if run.accelerator.is_main_process:
        state = {name: getattr(run, name) for name in ("epoch", "batch", "step", "best")}
        tensors = run.task.state(), optimizer_tensors(run.optimizer)
        save_checkpoint(run.folder / "checkpoints", run.step, *tensors, {**state, "seed": run.config.run.seed})
        prune_checkpoints(run.folder / "checkpoints", run.folder / "best", run.config.checkpoint.keep)
    run.accelerator.wait_for_everyone()


def _record(run: _Run, values: dict[str, float]) -> None:
    if run.log is not None:
        run.log.write(run.step, values)
    run.accelerator.log(values, step=run.step)


def _validate(run: _Run) -> None:
    """Score the model, keep it if it is the best so far, and save a checkpoint."""
    summary = run.report.summary(run.task.score(run.accelerator, "val", selecting=True), "val")
    score = run.report.selection(summary)
    if math.isnan(score):
        raise InputError("no lesions in any validation case, so no best model can be selected: check the labels")
    _record(run, {**summary, "epoch": run.epoch})
    if score > run.best["score"]:
        run.best = {"score": score, "step": run.step, "epoch": run.epoch, **summary}
        if run.accelerator.is_main_process:
            save_checkpoint(run.folder / "best", run.step, run.task.state(), {}, {"best": run.best})
    if run.accelerator.is_main_process:
        when = f"epoch {run.epoch}" if run.epoch else "before training"
        tqdm.write(f"{when}: {run.report.validation_line(summary)}")
    _save(run)
    if run.accelerator.is_main_process:
        draw_training_curves(run.folder)


def _stop_unless_finite(run: _Run, losses: list[float], norm: float, cases: list[list[str]]) -> None:
    """Stop all processes before the optimiser step if a loss or the gradient is NaN or infinite, and name the cases.

    Args:
        losses, cases: by micro-batch.
        norm: of the gradient.
    """
    if all_agree(run.accelerator, all(map(math.isfinite, (*losses, norm)))):
        return
    run.optimizer.zero_grad(set_to_none=True)
    pairs = list(zip(losses, cases, strict=True))
    wrong = [case for loss, ids in pairs if not math.isfinite(loss) for case in ids]
    what, names = "loss", gathered(run.accelerator, wrong)
    if not names:
        what, names = "gradient", gathered(run.accelerator, [case for ids in cases for case in ids])
    _save(run)
    raise InputError(
        f"step {run.step}: the {what} is NaN or infinite for {', '.join(sorted(set(names)))}; the weights before this "
        f"step are in {run.folder / 'checkpoints' / f'step_{run.step}'}. Check these cases, or start again with a "
        f"lower {' and '.join(run.config.optim.learning_rate_keys)}"
    )


def _finish(run: _Run, seconds: float) -> dict[str, Any]:
    config, task, accelerator, best = run.config, run.task, run.accelerator, run.best
    accelerator.wait_for_everyone()
    task.load_state(read_checkpoint(run.folder / "best" / f"step_{best['step']}").model)
    summary: dict[str, Any] = {"best": best, "seconds": round(seconds, 1)}  # since the last start
    scores = {"val": task.score(accelerator, "val")}
    if config.validate_.test and task.cases.test:
        scores["test"] = task.score(accelerator, "test")
    for split, split_scores in scores.items():
        summary.update(run.report.summary(split_scores, split))
    if accelerator.is_main_process:
        path = task.export(run.folder / "export", {"best_step": best["step"], "val_score": round(best["score"], 6)})
        summary["export"], summary["export_sha256"] = str(path), file_hash(path)
        for split, split_scores in scores.items():
            run.report.write_scores(run.folder, split, split_scores)
        write_whole(run.folder / "summary.json", json.dumps(summary, indent=1))
        _print_summary(summary, config)
    return summary


def _allow_only_deterministic_kernels() -> None:
    """From now on, use kernels that give equal results in every run. Call before the GPU is first used."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # required by cuBLAS, which reads it at its start
    torch.use_deterministic_algorithms(True)


def _accelerator(config: PromptedConfig | AutomaticConfig) -> Accelerator:
    for name in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if parse_flag_from_env(f"ACCELERATE_USE_{name}"):
            raise InputError(
                f"started with {name}, which shards models that do not fit on one GPU; this one (100 M parameters) "
                "does: use `accelerate launch --multi_gpu`; to save memory, lower optim.batch_size"
            )
    precision = config.optim.precision
    if precision == "auto":
        on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
        has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)  # emulation is slow
        precision = "bf16" if has_bf16 else "no"
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with=list(config.track.trackers) or None,
            project_dir=str(config.run.dir),
            # Processes may wait long for each other: the first one checks the data, and validation cases differ.
            # `in_contact` notices earlier if one is lost.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
        )
    except ValueError as error:  # a tracker that is unknown or not installed
        raise InputError(f"track.trackers {list(config.track.trackers)}: {' '.join(str(error).split())}") from error
    return accelerator


def _finished(config: PromptedConfig | AutomaticConfig, main_process: bool) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((config.run.dir / "summary.json").read_text())
    if main_process:
        print(f"{config.run.dir} is finished; nothing to do")
        _print_summary(summary, config)
    return summary


def _to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _print_summary(summary: dict[str, Any], config: PromptedConfig | AutomaticConfig) -> None:
    console = Console()
    console.print(build_report(config).results(summary))
    console.print(f"best epoch: {summary['best'].get('epoch')}; {summary['seconds']:.0f} s in total")
    for name in ("export/model.safetensors", "curves.png", "val_cases.csv"):
        console.print(f"  {config.run.dir / name}", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``finetune.py``. Invalid input: one line on stderr, exit code 2."""
    parser = argparse.ArgumentParser(
        prog="finetune.py",
        description="Fine-tune SAM-Med3D, or train a baseline. If interrupted, re-run the same command to resume.",
        epilog="Example: accelerate launch finetune.py --config configs/decoder.yaml data.manifest=manifest.json "
        "optim.epochs=20",
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file, such as configs/decoder.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings that override the file")
    given = parser.parse_args(arguments)
    try:
        config = load_config(given.config, given.overrides)
        try:
            train(config)
        except RuntimeError as error:
            explained = explain_failure(error, config.memory_savers)
            if explained is None:
                raise
            raise InputError(explained) from error
    except InputError as error:
        # An error from a data-loading process is preceded by that process's traceback.
        print_error(" ".join(str(error).strip().rpartition("InputError: ")[2].splitlines()))
        leave(2)
    except OSError as error:  # such as a full disk, or a folder without permission
        print_error(f"{'' if error.filename is None else f'{error.filename}: '}{error.strerror or error}")
        leave(2)
    leave(0)


if __name__ == "__main__":
    main()
