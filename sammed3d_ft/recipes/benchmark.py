"""Benchmark: rows (ways to segment) x folds x seeds, each run on its own and resumable, to one table.

Every patient is tested once per seed, by the model that saw none of him: fold k is the test set, fold k + 1
validation, the others train. Seeds are averaged per patient before anything is compared.
"""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn
from tqdm import tqdm

from prompts.errors import InputError
from prompts.whole_files import write_whole
from sammed3d_ft.data.manifest import Case, read_json, read_manifest, write_manifest
from sammed3d_ft.evaluation.paired import bonferroni, holm, paired_test
from sammed3d_ft.evaluation.statistics import summarise
from sammed3d_ft.inference.predictor import Predictor
from sammed3d_ft.inference.simulation import simulate_files
from sammed3d_ft.model.weights import sha256_of, state_hash
from sammed3d_ft.recipes.config import TrainConfig, differences, load_config

_ONE_PROCESS = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RowConfig(_Section):
    """One row: a training config with overrides, or a checkpoint that is used as it is."""

    config: Path | None = None
    overrides: list[str] = Field(default_factory=list, alias="set")
    checkpoint: str | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> RowConfig:
        if (self.config is None) == (self.checkpoint is None):
            raise ValueError("give either config (to train) or checkpoint (to use as it is)")
        return self


class BenchmarkConfig(_Section):
    """What is compared, on which folds, with which seeds."""

    out: Path
    manifest: Path
    folds: Path
    folds_key: str | None = None
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    clicks: list[int] = Field(default_factory=lambda: [1, 3, 5, 10], min_length=1)
    reference: str
    rows: dict[str, RowConfig]
    launch: list[str] = Field(default_factory=lambda: list(_ONE_PROCESS))
    """Arguments of ``accelerate launch``."""

    @model_validator(mode="after")
    def _known_reference(self) -> BenchmarkConfig:
        if self.reference not in self.rows:
            raise ValueError(f"reference {self.reference!r} is no row: choose one of {', '.join(self.rows)}")
        return self


@dataclass(frozen=True)
class Failure:
    """A run that ended without a result."""

    run: str
    reason: str


def run(path: Path, limit: int | None = None) -> tuple[str, list[Failure]]:
    """Does what is not done yet of a benchmark and writes ``table.md``, ``table.csv`` and ``cases.csv``.

    Args:
        path: YAML, see `BenchmarkConfig`; paths in it are relative to the present folder.
        limit: at most so many trainings in this call; the rest waits for the next.

    Returns:
        The table as Markdown, and the runs that failed: they are tried again by the next call.

    Raises:
        InputError: a config that is wrong, folds that do not fit the manifest.
    """
    config = load_benchmark(path)
    folds = _write_folds(config)
    # Whatever is wrong in any row is said before hours are spent on another.
    trainings = [
        _training(config, name, row, fold, folds[fold], seed)
        for seed in config.seeds
        for name, row in config.rows.items()
        if row.config is not None
        for fold in folds
    ]
    lesions = _common_lesions(trainings)
    uses = [
        _Use(name, row.checkpoint, Predictor.from_pretrained(row.checkpoint), *lesions)
        for name, row in config.rows.items()
        if row.checkpoint is not None
    ]
    failures = []
    todo = [training for training in trainings if not training.is_done()]
    for use in tqdm(uses, "as they are", unit="model", leave=False):
        failures += _use_checkpoint(config, use)
    for training in tqdm(todo[:limit], "runs", unit="run"):
        failures += _train(config, training)
    for failure in failures:
        tqdm.write(f"failed: {failure.run}: {failure.reason}")
    return _write_tables(config, folds), failures


@dataclass(frozen=True)
class _Training:
    """One run of one row."""

    name: str
    fold: str
    seed: int
    folder: Path
    config: TrainConfig

    def is_done(self) -> bool:
        """Whether its result is there; `InputError` if that was made with other settings or folds."""
        if not (self.folder / "summary.json").exists():
            return False
        before = yaml.safe_load((self.folder / "config.yaml").read_text())
        changed, _ = differences(before, self.config.as_plain())
        if (self.folder / "manifest.sha256").read_text() != sha256_of(self.config.data.manifest):
            changed.append("the fold's cases")
        if changed:
            raise InputError(
                f"{self.folder} was made with other settings ({'; '.join(changed)}): remove it, or choose another out"
            )
        return True


@dataclass(frozen=True)
class _Use:
    """A row that is not trained here."""

    name: str
    checkpoint: str
    predictor: Predictor
    targets: str
    connectivity: int


def _training(config: BenchmarkConfig, name: str, row: RowConfig, fold: str, manifest: Path, seed: int) -> _Training:
    assert row.config is not None
    folder = _run_folder(config, name, fold, seed)
    settings = [
        *row.overrides,
        f"run.dir={folder}",
        f"run.seed={seed}",
        f"data.manifest={manifest}",
        f"validate.clicks={sorted({*config.clicks, 1, 5})}",
        "validate.test=true",
    ]
    try:
        return _Training(name, fold, seed, folder, load_config(row.config, settings))
    except InputError as error:
        raise InputError(f"row {name}: {error}") from error


def _common_lesions(trainings: Sequence[_Training]) -> tuple[str, int]:
    """What a click is given for; rows that differ in it cannot be compared at equal numbers of clicks."""
    rules = {training.name: (training.config.data.targets, training.config.data.connectivity) for training in trainings}
    if len(set(rules.values())) > 1:
        told = "; ".join(f"{name}: {targets}, {connectivity}" for name, (targets, connectivity) in rules.items())
        raise InputError(f"rows differ in data.targets or data.connectivity ({told}): clicks would not be comparable")
    return next(iter(rules.values()), ("each", 18))


def load_benchmark(path: Path) -> BenchmarkConfig:
    """Reads a benchmark's YAML; `InputError` in one line for what is wrong."""
    if not path.is_file():
        raise InputError(f"no benchmark config {path}")
    try:
        return BenchmarkConfig.model_validate(yaml.safe_load(path.read_text()))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise InputError(f"{path}: {'; '.join(problems)}") from None


def _write_folds(config: BenchmarkConfig) -> dict[str, Path]:
    """A manifest per fold."""
    manifest = read_manifest(config.manifest)
    content = read_json(config.folds)
    content = content.get(config.folds_key) if config.folds_key and isinstance(content, dict) else content
    named = content if isinstance(content, dict) else dict(enumerate(content or []))
    if len(named) < 3 or not all(isinstance(ids, list) for ids in named.values()):
        raise InputError(f"{config.folds}: expected at least 3 folds, each a list of case ids (folds_key: an entry)")
    fold_of = {str(case): str(fold) for fold, ids in named.items() for case in ids}
    missing = sorted(case.id for case in manifest.cases if case.id not in fold_of)
    unknown = sorted(fold_of.keys() - {case.id for case in manifest.cases})
    if missing or unknown or sum(map(len, named.values())) != len(fold_of):
        raise InputError(
            f"{config.folds} does not fit {config.manifest}: {len(missing)} cases in no fold {missing[:3]}, "
            f"{len(unknown)} ids that are no case {unknown[:3]}, or a case in two folds"
        )
    order = [str(fold) for fold in named]
    manifests = {}
    for number, fold in enumerate(order):
        split_of = {fold: "test", order[(number + 1) % len(order)]: "val"}
        cases = [replace(case, split=split_of.get(fold_of[case.id], "train")) for case in manifest.cases]
        manifests[fold] = config.out / "folds" / f"{fold}.json"
        write_manifest(manifests[fold], cases)
    return manifests


def _run_folder(config: BenchmarkConfig, name: str, fold: str, seed: int) -> Path:
    return config.out / "runs" / name / f"fold{fold}_seed{seed}"


def _train(config: BenchmarkConfig, training: _Training) -> list[Failure]:
    """One training in a process of its own; its screen goes to a log beside the run."""
    written, log = training.folder.with_suffix(".yaml"), training.folder.with_suffix(".log")
    write_whole(written, yaml.safe_dump(training.config.as_plain(), sort_keys=False))
    write_whole(training.folder / "manifest.sha256", sha256_of(training.config.data.manifest))
    command = [sys.executable, "-m", "accelerate.commands.launch", *config.launch, "-m", "sammed3d_ft.recipes.train"]
    with log.open("wb") as screen:
        ended = subprocess.run([*command, "--config", str(written)], stdout=screen, stderr=screen, check=False)
    if ended.returncode == 0:
        return []
    lines = log.read_text(errors="replace").replace("\r", "\n").splitlines()
    told = [line for line in lines if "error: " in line] or [line for line in lines if line.strip()] or ["no output"]
    run = f"{training.name}, fold {training.fold}, seed {training.seed}"
    return [Failure(run, f"{told[0].strip()} (exit code {ended.returncode}, {log})")]


def _use_checkpoint(config: BenchmarkConfig, use: _Use) -> list[Failure]:
    """Scores a model that is not trained here on every case, by the simulated user of validation."""
    out = config.out / "runs" / use.name / "test_cases.csv"
    model = use.predictor.model
    assert isinstance(model, nn.Module)
    made_of = {
        "model": state_hash(model.state_dict()),
        "preprocessing": use.predictor.preprocessing.to_json(),
        "manifest": sha256_of(config.manifest),
        "clicks": config.clicks,
        "targets": use.targets,
        "connectivity": use.connectivity,
    }
    record = out.with_name("made_of.json")
    if out.exists() and record.exists() and json.loads(record.read_text()) == made_of:
        return []
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["case", "lesion", *(f"dice@{k}" for k in config.clicks)])
    try:
        for case in tqdm(read_manifest(config.manifest).cases, use.name, unit="case", leave=False):
            score = simulate_files(
                use.predictor, case, config.clicks, connectivity=use.connectivity, targets=use.targets
            )
            writer.writerow([case.id, "all", *((score.dice or {}).get(k, "") for k in config.clicks)])
    except InputError as error:
        return [Failure(use.name, str(error))]
    write_whole(out, text.getvalue())
    write_whole(record, json.dumps(made_of))
    return []


def _scores(config: BenchmarkConfig, folds: Sequence[str], cases: Sequence[Case]) -> dict[str, dict[int, np.ndarray]]:
    """By row and clicks: Dice of every case, the mean over seeds; NaN where a run is missing or it is not defined."""
    place = {case.id: number for number, case in enumerate(cases)}
    found = {}
    for name, row in config.rows.items():
        if row.checkpoint is not None:
            seeds: list[list[Path]] = [[config.out / "runs" / name / "test_cases.csv"]]
        else:
            seeds = [[_run_folder(config, name, f, seed) / "test_cases.csv" for f in folds] for seed in config.seeds]
        values = np.full((len(seeds), len(config.clicks), len(cases)), np.nan)
        for number, files in enumerate(seeds):
            for file in (file for file in files if file.exists()):
                with file.open(newline="") as text:
                    for line in csv.DictReader(text):
                        if line["lesion"] == "all":
                            numbers = [float(line[f"dice@{k}"] or "nan") for k in config.clicks]
                            values[number, :, place[line["case"]]] = numbers
        means = values.mean(axis=0)  # NaN unless all seeds are there: no patient is averaged over fewer than others
        found[name] = {k: means[number] for number, k in enumerate(config.clicks)}
    return found


def _write_tables(config: BenchmarkConfig, folds: dict[str, Path]) -> str:
    cases = read_manifest(config.manifest).cases
    scores = _scores(config, list(folds), cases)
    patients = sorted({case.group or case.id for case in cases})
    rows: list[dict[str, Any]] = []
    for k in config.clicks:
        by_patient = _by_patient({name: scores[name][k] for name in config.rows}, cases, patients)
        block: list[dict[str, Any]] = []
        summaries = summarise(by_patient, patients)
        for name in config.rows:
            of, test = summaries[name], None
            if name != config.reference:
                test = paired_test(by_patient[name], by_patient[config.reference])
            block.append(
                {
                    "clicks": k,
                    "row": name,
                    "patients": of.n,
                    "missing": of.not_defined,
                    "mean": of.mean,
                    "ci_low": of.ci_low,
                    "ci_high": of.ci_high,
                    "median": of.median,
                    "pairs": "" if test is None else test.n,
                    "difference": "" if test is None else test.mean_difference,
                    "p": float("nan") if test is None else test.p,
                }
            )
        for column, correct in (("p_holm", holm), ("p_bonferroni", bonferroni)):
            for line, p in zip(block, correct([float(line["p"]) for line in block]), strict=True):
                line[column] = p
        rows += block
    _csv(config.out / "table.csv", list(rows[0]), [list(row.values()) for row in rows])
    columns = ["case", "patient", *(f"{name} dice@{k}" for name in config.rows for k in config.clicks)]
    lines = [
        [case.id, case.group or case.id, *(scores[name][k][number] for name in config.rows for k in config.clicks)]
        for number, case in enumerate(cases)
    ]
    _csv(config.out / "cases.csv", columns, lines)
    table = _markdown(rows, config)
    write_whole(config.out / "table.md", table)
    write_whole(config.out / "benchmark.json", json.dumps(config.model_dump(mode="json", by_alias=True), indent=1))
    return table


def _by_patient(
    scores: dict[str, np.ndarray], cases: Sequence[Case], patients: Sequence[str]
) -> dict[str, list[float]]:
    """Mean per patient, whose scans are not independent; NaN where any of his scans is missing in that row.

    A scan without lesions, for which no row has a Dice, belongs to no mean.
    """
    of = np.array([case.group or case.id for case in cases])
    defined = ~np.all([np.isnan(values) for values in scores.values()], axis=0)
    return {
        name: [
            float(values[chosen].mean()) if chosen.any() else float("nan")
            for chosen in ((of == patient) & defined for patient in patients)
        ]
        for name, values in scores.items()
    }


def _csv(path: Path, header: list[str], lines: list[list[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([["" if value != value else value for value in line] for line in lines])
    write_whole(path, text.getvalue())


def _number(value: Any) -> str:
    return "" if value == "" or value != value else f"{value:.3f}"


def _markdown(rows: list[dict[str, Any]], config: BenchmarkConfig) -> str:
    lines = [
        "Dice on the scans' own grids after so many simulated clicks per lesion, averaged per patient and over seeds",
        f"{config.seeds}. 95 % CI: bootstrap over patients. Difference to {config.reference}; p: Wilcoxon, paired",
        "by patient; Holm's correction over the rows of a block.",
        "",
        "| clicks | row | patients | mean (95 % CI) | median | difference | p | p (Holm) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        missing = f" ({row['missing']} missing)" if row["missing"] else ""
        lines.append(
            f"| {row['clicks']} | {row['row']} | {row['patients']}{missing} | {_number(row['mean'])} "
            f"({_number(row['ci_low'])} to {_number(row['ci_high'])}) | {_number(row['median'])} | "
            f"{_number(row['difference'])} | {_number(row['p'])} | {_number(row['p_holm'])} |"
        )
    return "\n".join(lines) + "\n"
