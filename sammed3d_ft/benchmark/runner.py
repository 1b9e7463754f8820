"""Runs a benchmark: pending trainings, masks and scores, then the tables and the page."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from sammed3d_ft.benchmark.config import BenchmarkConfig, CascadeRow, load_benchmark
from sammed3d_ft.benchmark.folds import write_folds
from sammed3d_ft.benchmark.results_page import write_page
from sammed3d_ft.benchmark.scores import read_scores
from sammed3d_ft.benchmark.segmenters import OpenTrained, source_trained
from sammed3d_ft.benchmark.table_text import write_tables
from sammed3d_ft.benchmark.tables import build_tables
from sammed3d_ft.benchmark.trainings import Training, training_of
from sammed3d_ft.benchmark.units import Failure, Unit, check_row, failure_of, is_ready, run_unit, units_of
from sammed3d_ft.dataset.manifest import read_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.files import write_whole
from sammed3d_ft.prompted.config import PromptedConfig
from sammed3d_ft.training.run_lock import RunHeldError


def run(
    path: Path,
    limit: int | None = None,
    *,
    train: Callable[[Training, list[str]], str | None] = Training.launch,
    open_trained: OpenTrained = source_trained,
) -> tuple[str, list[Failure]]:
    """Run what is pending; write ``table.md``, ``table.csv``, ``table.html``, ``sizes.csv`` and ``cases.csv``.

    Args:
        path: YAML, see `BenchmarkConfig`; its paths are relative to the current folder.
        limit: maximum number of trainings in this call, not counting other calls' trainings; the next call continues.
        train: runs one training with ``accelerate launch``'s arguments; returns None, or the error message.
        open_trained: opens a trained model, given its run folder and whether it is prompted.

    Returns:
        The table as Markdown, and the runs without a result, which the next call retries: they failed, or another
        process is working on them.

    Raises:
        InputError: an invalid config, folds that do not fit the manifest, or results made with other settings.
    """
    config = load_benchmark(path)
    folds = write_folds(config)
    # Check all methods before hours are spent on one of them.
    trainings = [
        training_of(config, name, fold, folds[fold], seed)
        for seed in sorted({seed for name in config.rows for seed in config.seeds_of(name)})
        for name in config.rows
        if config.is_trained(name) and seed in config.seeds_of(name)
        for fold in folds
    ]
    make = partial(run_unit, config, _common_lesions(trainings), open_trained)
    for name in config.rows:
        check_row(config, name)
    todo = [training for training in trainings if not training.is_done()]

    units = [unit for name in config.rows for unit in units_of(config, name, folds)]
    cascades = [unit for unit in units if isinstance(config.rows[unit.row], CascadeRow)]
    others = [unit for unit in units if unit not in cascades]
    failures = _units(make, [unit for unit in others if is_ready(config, unit)], config.workers, "masks")
    failures += _train_all(config, todo, folds, limit, train, make)
    failures += _units(make, [unit for unit in cascades if is_ready(config, unit)], config.workers, "cascades")
    tested = [case for manifest in folds.values() for case in read_manifest(manifest).split("test")]
    scores = read_scores(config, folds, tested)
    tables = build_tables(config, scores)
    write_page(config, scores, tables)
    write_whole(config.out / "benchmark.json", json.dumps(config.model_dump(mode="json", by_alias=True), indent=1))
    return write_tables(config, scores, tables), failures


def _common_lesions(trainings: Sequence[Training]) -> tuple[str, int]:
    """What is clicked, and the connectivity; methods must agree in them to be compared at equal numbers of clicks."""
    connectivity = {training.row: training.config.data.connectivity for training in trainings}
    targets = {t.row: t.config.data.targets for t in trainings if isinstance(t.config, PromptedConfig)}
    if len(set(connectivity.values())) > 1 or len(set(targets.values())) > 1:
        settings = "; ".join(f"{name}: {targets.get(name, 'each')}, {n}" for name, n in connectivity.items())
        raise InputError(f"methods differ in data.targets or data.connectivity ({settings}): clicks are not comparable")
    return next(iter(targets.values()), "each"), next(iter(connectivity.values()), 18)


def _train_all(
    config: BenchmarkConfig,
    todo: Sequence[Training],
    folds: dict[str, Path],
    limit: int | None,
    train: Callable[[Training, list[str]], str | None],
    make: Callable[[Unit], list[Failure]],
) -> list[Failure]:
    """Run at most ``limit`` trainings, each followed by its model's masks; runs held by others do not count."""
    failures: list[Failure] = []
    started = 0
    for training in tqdm(todo, "trainings", unit="run"):
        if limit is not None and started >= limit:
            break
        unit = Unit(training.row, training.fold, training.seed, folds[training.fold])
        try:
            started += not training.is_done()
            problem = training.run(config.launch, train)
            failures += make(unit) if problem is None else [Failure(str(unit), problem)]
        except InputError as error:
            started -= isinstance(error, RunHeldError)
            failures.append(failure_of(unit, error))
    return failures


def _units(make: Callable[[Unit], list[Failure]], units: Sequence[Unit], workers: int, what: str) -> list[Failure]:
    workers = min(workers, len(units))
    if workers <= 1:
        return [failure for unit in _bar(units, what, len(units)) for failure in make(unit)]
    failures: list[Failure] = []
    threads = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (threads,)) as pool:
        asked = {pool.submit(make, unit): unit for unit in units}
        for ended in _bar(as_completed(asked), what, len(units)):
            try:
                failures += ended.result()
            except BrokenProcessPool:
                reason = "a process making masks was killed, often for lack of memory; lower workers, and re-run"
                failures.append(Failure(str(asked[ended]), reason))
    return failures


def _bar(items: Iterable[Any], what: str, total: int) -> Iterable[Any]:
    return tqdm(items, what, total=total, unit="run", disable=not total)
