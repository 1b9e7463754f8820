"""Training: one linear loop from config to exported model, for every task and any number of processes."""

from __future__ import annotations

import argparse
import json
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    InitProcessGroupKwargs,
    gather_object,
    parse_flag_from_env,
    set_seed,
)
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm

from prompts.errors import InputError
from prompts.whole_files import INCOMPLETE, write_whole
from sammed3d_ft.data.check import check_manifest
from sammed3d_ft.data.manifest import Manifest, read_manifest
from sammed3d_ft.data.samples import collate, epoch_batches, loader_workers
from sammed3d_ft.figures import draw_training_curves
from sammed3d_ft.model.weights import sha256_of
from sammed3d_ft.recipes.automatic_task import AutomaticTask
from sammed3d_ft.recipes.config import BaselineConfig, TrainConfig, load_config
from sammed3d_ft.recipes.failures import explain_failure, print_error
from sammed3d_ft.recipes.prompted_task import PromptedTask
from sammed3d_ft.recipes.resume import (
    newest_checkpoint,
    refuse_changed_config,
    refuse_changed_facts,
    refuse_unequal_replicas,
    run_facts,
)
from sammed3d_ft.recipes.task import Task
from sammed3d_ft.training.checkpoints import (
    list_checkpoints,
    prune_checkpoints,
    read_checkpoint,
    read_state,
    save_checkpoint,
)
from sammed3d_ft.training.metrics_log import MetricsLog
from sammed3d_ft.training.optimizer import (
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    schedule_factor,
    set_learning_rates,
)
from sammed3d_ft.training.run_lock import locked_run
from sammed3d_ft.training.stopping import leave, tell_when_stopped


def build_task(config: TrainConfig | BaselineConfig, manifest: Manifest) -> Task:
    """What the config's kind of training asks for; the loop knows no more of it."""
    if isinstance(config, BaselineConfig):
        return AutomaticTask(config, manifest)
    return PromptedTask(config, manifest)


def train(config: TrainConfig | BaselineConfig) -> dict[str, Any]:
    """Runs or continues one training; returns the content of the run's ``summary.json``.

    Raises:
        InputError: anything wrong with config, data or weights, before training starts; a loss or gradient
            that is no number; a disk that is full. What was written before is whole in each case.
    """
    started = time.monotonic()
    accelerator = _accelerator(config)
    main_process = accelerator.is_main_process
    if accelerator.num_processes > 1 and accelerator.process_index < 2:  # two, since one may be the one that dies
        tell_when_stopped(
            f"process {accelerator.process_index} of {accelerator.num_processes} was told to stop: another one ended, "
            "or the job was cancelled. The launcher's report names the first that ended and its signal (SIGKILL: "
            "often out of memory). The same command goes on from the last checkpoint"
        )

    manifest = read_manifest(config.data.manifest)
    if main_process:
        check_manifest(manifest, config.data.modalities, connectivity=config.data.connectivity).raise_if_bad()
    with locked_run(config.run.dir) if main_process else nullcontext():
        accelerator.wait_for_everyone()
        return _train(config, manifest, accelerator, started)


def _train(
    config: TrainConfig | BaselineConfig, manifest: Manifest, accelerator: Accelerator, started: float
) -> dict[str, Any]:
    run, main_process = config.run.dir, accelerator.is_main_process

    # 1. What there is: an earlier run is recognised before it is written to.
    checkpoint = newest_checkpoint(run)
    if checkpoint is not None:
        refuse_changed_config(config, run, tell=main_process)
        if read_state(checkpoint)["epoch"] == config.optim.epochs and (run / "summary.json").exists():
            return _finished(config, main_process)
    accelerator.wait_for_everyone()  # all have read the earlier run's config before it is written anew
    if main_process:
        for left in run.rglob(f".*{INCOMPLETE}"):  # by a process that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        write_whole(run / "config.yaml", yaml.safe_dump(config.as_plain(), sort_keys=False))
    accelerator.wait_for_everyone()

    # 2. Model and data.
    set_seed(config.run.seed)
    task = build_task(config, manifest)
    if main_process:
        for line in task.lines():
            print(line)
    task.prepare(accelerator)
    facts = run_facts(config, task, accelerator)
    if checkpoint is not None:
        refuse_changed_facts(facts, run, tell=main_process)
    accelerator.wait_for_everyone()
    if main_process:
        write_whole(run / "run.json", json.dumps(facts, indent=1))
    optimizer = build_optimizer(task.model.named_parameters(), task.learning_rates, config.optim.weight_decay)
    model = accelerator.prepare_model(task.model)
    if accelerator.num_processes == 1:
        task.model.to(accelerator.device)

    # 3. Where to go on.
    epoch, batch_in_epoch, step = 0, 0, 0
    best: dict[str, Any] = {"score": -1.0, "step": -1}
    if checkpoint is not None:
        found = read_checkpoint(checkpoint)
        task.load_state(found.model)
        load_optimizer_tensors(optimizer, found.optimizer)
        epoch, batch_in_epoch, step = (found.state[name] for name in ("epoch", "batch", "step"))
        best = found.state["best"]
        if best["step"] >= 0 and not (run / "best" / f"step_{best['step']}").is_dir():
            raise InputError(
                f"{run / 'best'} lacks step_{best['step']}, the best model so far by {checkpoint}: restore it, or "
                f"remove {run} to begin anew"
            )
        refuse_unequal_replicas(accelerator, step, task.state())
        if main_process:
            print(f"resumed at step {step} (epoch {epoch + 1}) from {found.path}")
    saved_step = step
    if main_process:  # what was best after the checkpoint will be found again
        for later in list_checkpoints(run / "best"):
            if int(later.name[5:]) > best["step"]:
                shutil.rmtree(later)
    log = MetricsLog(run / "metrics.jsonl", None if checkpoint is None else step) if main_process else None
    if config.track.trackers:
        accelerator.init_trackers("tracking", init_kwargs={"tensorboard": {"purge_step": step + 1}})

    # 4. The loop.
    batches_per_epoch = len(
        epoch_batches(task.sample_count, config.optim.batch_size, 0, 0, 0, accelerator.num_processes)
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
        nonlocal saved_step
        saved_step = step
        if main_process:
            state = {"epoch": epoch, "batch": batch_in_epoch, "step": step, "best": best, "seed": config.run.seed}
            folder = run / "checkpoints"
            save_checkpoint(folder, step, task.state(), optimizer_tensors(optimizer), state)
            prune_checkpoints(folder, run / "best", config.checkpoint.keep)
        accelerator.wait_for_everyone()

    def stop_unless_finite(losses: list[float], norm: float, cases: list[list[str]]) -> None:
        """Once a step, before the optimiser's; all processes stop together. Losses and cases by micro-batch."""
        if not _all_agree(accelerator, all(map(math.isfinite, (*losses, norm)))):
            optimizer.zero_grad(set_to_none=True)
            pairs = list(zip(losses, cases, strict=True))
            wrong = [case for loss, ids in pairs if not math.isfinite(loss) for case in ids]
            what, names = "loss", _gathered(accelerator, wrong)
            if not names:
                what, names = "gradient", _gathered(accelerator, [case for ids in cases for case in ids])
            save()
            raise InputError(
                f"step {step}: the {what} is not a finite number, for {', '.join(sorted(set(names)))}; the weights "
                f"from before this step are in {run / 'checkpoints' / f'step_{step}'}. Look at these cases, or begin "
                f"anew with a lower {' and '.join(config.optim.learning_rate_keys)}"
            )

    def validate() -> None:
        nonlocal best
        summary = task.summary(task.score(accelerator, "val"), "val")
        score = task.selection(summary)
        if math.isnan(score):
            raise InputError("no lesion in any validation case, so no best model can be chosen: see the manifest")
        record({**summary, "epoch": epoch})
        if score > best["score"]:
            best = {"score": score, "step": step, "epoch": epoch, **summary}
            if main_process:
                save_checkpoint(run / "best", step, task.state(), {}, {"best": best})
        if main_process:
            when = f"epoch {epoch}" if epoch else "before training"
            tqdm.write(f"{when}: {task.validation_line(summary)}")
        save()
        if main_process:
            draw_training_curves(run)

    with bar:
        if checkpoint is None and task.starts_trained:
            validate()  # what training has to beat; if it never does, these weights are the best
        while epoch < config.optim.epochs:
            model.train()
            batches = epoch_batches(
                task.sample_count,
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
                    num_workers=loader_workers(config.data.workers, accelerator.device),
                    pin_memory=accelerator.device.type == "cuda",
                )
            )
            while batches:
                group, batches = batches[: config.optim.accumulate], batches[config.optim.accumulate :]
                torch.manual_seed(config.run.seed * 1_000_003 + step)  # LoRA's dropout draws from torch's generator
                losses: list[Tensor] = []
                values: list[dict[str, Tensor]] = []
                cases: list[list[str]] = []
                # The last group of an epoch may be short: the mean is over what it holds, and nothing is dropped.
                for position in range(len(group)):
                    batch = _to_device(next(loader), accelerator.device)
                    last = position == len(group) - 1
                    with nullcontext() if last else accelerator.no_sync(model):
                        with accelerator.autocast():
                            loss, numbers = task.loss(model, batch, epoch, step / total_steps)
                        accelerator.backward(loss / len(group))
                    losses.append(loss.detach().float())
                    values.append(numbers)
                    cases.append(task.case_ids(batch))
                norm = accelerator.clip_grad_norm_(task.model.parameters(), config.optim.clip_norm or math.inf)
                *loss_values, norm = torch.stack([*losses, norm.float()]).tolist()  # the step's only synchronisation
                stop_unless_finite(loss_values, norm, cases)
                factor = schedule_factor(step, config.optim.warmup, total_steps)
                set_learning_rates(optimizer, factor)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                step += 1
                batch_in_epoch += len(group)
                bar.update()
                if step % config.track.log_every_steps == 0:
                    shown = _over_the_step(accelerator, values)
                    record({**shown, "train/grad_norm": norm, "train/lr_factor": factor, "epoch": epoch + 1})
                    bar.set_postfix(**{label: f"{shown[name]:.3f}" for label, name in task.shown.items()})
                if step - saved_step >= config.checkpoint.every_steps and batches:
                    save()
            epoch, batch_in_epoch = epoch + 1, 0
            if epoch % config.validate_.every_epochs == 0 or epoch == config.optim.epochs:
                validate()
            elif step - saved_step >= config.checkpoint.every_steps:
                save()

    # 5. The best model: exported, and tested once.
    return _finish(config, task, accelerator, best, time.monotonic() - started)


def _finish(
    config: TrainConfig | BaselineConfig, task: Task, accelerator: Accelerator, best: dict[str, Any], seconds: float
) -> dict[str, Any]:
    run = config.run.dir
    accelerator.wait_for_everyone()
    task.load_state(read_checkpoint(run / "best" / f"step_{best['step']}").model)
    summary: dict[str, Any] = {"best": best, "seconds": round(seconds, 1)}  # of the last start
    scores = {"val": task.score(accelerator, "val")}
    if config.validate_.test and task.cases.test:
        scores["test"] = task.score(accelerator, "test")
    for split, split_scores in scores.items():
        summary.update(task.summary(split_scores, split))
    if accelerator.is_main_process:
        path = task.export(run / "export", {"best_step": best["step"], "val_score": round(best["score"], 6)})
        summary["export"], summary["export_sha256"] = str(path), sha256_of(path)
        for split, split_scores in scores.items():
            task.write_scores(run, split, split_scores)
        write_whole(run / "summary.json", json.dumps(summary, indent=1))
        _print_summary(summary, config)
    accelerator.end_training()
    return summary


def _accelerator(config: TrainConfig | BaselineConfig) -> Accelerator:
    precision = config.optim.precision
    if precision == "auto":
        on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
        has_bf16 = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)  # emulated it would be slow
        precision = "bf16" if has_bf16 else "no"
    try:
        accelerator = Accelerator(
            mixed_precision=precision,
            log_with=list(config.track.trackers) or None,
            project_dir=str(config.run.dir),
            # The first process checks the data, and shares of a validation differ: others may wait for long.
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=6))],
        )
    except ValueError as error:  # an unknown tracker, or one that is not installed
        raise InputError(f"track.trackers {list(config.track.trackers)}: {' '.join(str(error).split())}") from error
    if accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise InputError(
            f"started with {accelerator.distributed_type.value}, which shards a model that fits every card "
            "(100 M parameters): launch with `accelerate launch --multi_gpu`; for memory, lower optim.batch_size"
        )
    return accelerator


def _finished(config: TrainConfig | BaselineConfig, main_process: bool) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((config.run.dir / "summary.json").read_text())
    if main_process:
        print(f"{config.run.dir} is finished; nothing is left to do")
        _print_summary(summary, config)
    return summary


def _to_device(batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
    return {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in batch.items()
    }


def _all_agree(accelerator: Accelerator, mine: bool) -> bool:
    """Whether it holds on every process."""
    if accelerator.num_processes == 1:
        return mine
    wrong = torch.tensor(float(not mine), device=accelerator.device)
    return accelerator.reduce(wrong, "sum").item() == 0


def _gathered(accelerator: Accelerator, mine: list[str]) -> list[str]:
    """Of all processes."""
    return gather_object(mine) if accelerator.num_processes > 1 else mine


def _over_the_step(accelerator: Accelerator, values: list[dict[str, Tensor]]) -> dict[str, float]:
    """Mean over the step's micro-batches and the processes, as of the optimised loss; of ``max_...`` the maximum."""
    stacked = torch.stack([torch.stack([value.detach().float() for value in each.values()]) for each in values])
    if accelerator.num_processes > 1:
        stacked = accelerator.gather(stacked)
    means, highest = torch.stack([stacked.mean(0), stacked.amax(0)]).tolist()
    return {
        name: top if name.startswith("train/max_") else mean
        for name, mean, top in zip(values[0], means, highest, strict=True)
    }


def _print_summary(summary: dict[str, Any], config: TrainConfig | BaselineConfig) -> None:
    task = AutomaticTask if isinstance(config, BaselineConfig) else PromptedTask
    console = Console()
    console.print(task.results(summary))
    console.print(f"best at epoch {summary['best'].get('epoch')}, {summary['seconds']:.0f} s in all")
    for name in ("export/model.safetensors", "curves.png", "val_cases.csv"):
        console.print(f"  {config.run.dir / name}", soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line of ``finetune.py``. Wrong input: one line on stderr, exit code 2."""
    parser = argparse.ArgumentParser(
        prog="finetune.py",
        description="Fine-tune SAM-Med3D, or train a baseline. "
        "Start with: accelerate launch finetune.py --config configs/decoder.yaml",
    )
    parser.add_argument("--config", type=Path, required=True, help="YAML file, such as configs/decoder.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings to change")
    given = parser.parse_args(arguments)
    try:
        config = load_config(given.config, given.overrides)
        try:
            train(config)
        except RuntimeError as error:
            explained = explain_failure(error, config)
            if explained is None:
                raise
            raise InputError(explained) from error
    except InputError as error:
        # One that a loader process raised comes with that process's traceback before it.
        print_error(str(error).strip().rpartition("InputError: ")[2])
        leave(2)
    leave(0)


if __name__ == "__main__":
    main()
