"""The trainings of a benchmark: checks which are done, and runs each of the others in a separate process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from sammed3d_ft.automatic.config import AutomaticConfig
from sammed3d_ft.benchmark.config import BenchmarkConfig, TrainedRow
from sammed3d_ft.errors import InputError
from sammed3d_ft.files import write_whole
from sammed3d_ft.prompted.config import PromptedConfig
from sammed3d_ft.provenance import file_hash
from sammed3d_ft.recipes.train import load_config
from sammed3d_ft.training.config_file import differences, read_yaml
from sammed3d_ft.training.run_lock import locked_run

# Settings that do not affect the result of a training: the run's folder; the manifest's path, as cases are compared by
# the manifest's hash; and the numbers of clicks of the validation, as the best model is always chosen at 1 and 5.
_WITHOUT_EFFECT = (("run", "dir"), ("data", "manifest"), ("validate", "clicks"))


@dataclass(frozen=True)
class Training:
    """The training of one method on one fold with one seed."""

    row: str
    fold: str
    seed: int
    folder: Path
    config: PromptedConfig | AutomaticConfig

    def is_done(self) -> bool:
        """Whether its result exists; `InputError` if that was made with other settings or folds."""
        if not (self.folder / "summary.json").exists():
            return False
        before = read_yaml(self.folder / "config.yaml")
        changed, _ = differences(_comparable(self._completed(before)), _comparable(self.config.as_plain()))
        if (self.folder / "manifest.sha256").read_text(encoding="utf-8") != file_hash(self.config.data.manifest):
            changed.append("the fold's cases")
        if changed:
            raise InputError(
                f"{self.folder} was made with other settings ({'; '.join(changed)}): delete it, or choose another out"
            )
        return True

    def _completed(self, before: dict[str, Any]) -> dict[str, Any]:
        """A config from an earlier version, with settings added since then at their defaults."""
        try:
            completed: dict[str, Any] = type(self.config).model_validate(before).as_plain()
        except ValueError:
            return before
        return completed

    def run(self, arguments: list[str], train: Callable[[Training, list[str]], str | None]) -> str | None:
        """Train by ``train``, such as `Training.launch`, unless another process has finished it in the meantime.

        Returns:
            None, or the error message of a failed training.

        Raises:
            RunHeldError: another process is writing this run.
            InputError: another process has finished it with other settings or cases.
        """
        with locked_run(self.folder, ".launch.lock"):  # held from before the training takes its own lock until it ends
            return None if self.is_done() else train(self, arguments)

    def launch(self, arguments: list[str]) -> str | None:
        """Train by ``accelerate launch`` in a separate process, whose output goes to a log beside the run.

        Returns:
            None, or the error message of a failed training.
        """
        written, log = self.folder.with_suffix(".yaml"), self.folder.with_suffix(".log")
        with locked_run(self.folder):  # a training whose launcher was killed may still be running and writing its log
            write_whole(written, yaml.safe_dump(self.config.as_plain(), sort_keys=False))
            write_whole(self.folder / "manifest.sha256", file_hash(self.config.data.manifest))
            screen = log.open("wb")
        command = [sys.executable, "-m", "accelerate.commands.launch", *arguments, "-m", "sammed3d_ft.recipes.train"]
        with screen:
            ended = subprocess.run(
                [*command, "--config", str(written)], stdout=screen, stderr=subprocess.STDOUT, check=False
            )
        if ended.returncode == 0:
            return None
        lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
        shown = [line for line in lines if "error: " in line] or [line for line in lines if line.strip()]
        return f"{shown[0].strip() if shown else 'no output'} (exit code {ended.returncode}, {log})"


def _comparable(plain: dict[str, Any]) -> dict[str, Any]:
    return {
        section: {key: value for key, value in values.items() if (section, key) not in _WITHOUT_EFFECT}
        if isinstance(values, dict)
        else values
        for section, values in plain.items()
    }


def training_of(config: BenchmarkConfig, name: str, fold: str, manifest: Path, seed: int) -> Training:
    """The training of a method on one fold with one seed.

    Raises:
        InputError: an invalid config or override; the message names the method.
    """
    row = config.rows[name]
    assert isinstance(row, TrainedRow)
    folder = run_folder(config, name, fold, seed)
    settings = [*row.overrides, f"run.dir={folder}", f"run.seed={seed}", f"data.manifest={manifest}"]
    try:
        loaded = load_config(row.config, settings)
        # Prompted models are tested as in the benchmark's first version, so that its trainings still count as done.
        clicks = sorted({*config.clicks, 1, 5})
        prompted = isinstance(loaded, PromptedConfig)
        ending = [f"validate.clicks={clicks}", "validate.test=true"] if prompted else ["validate.test=false"]
        loaded = load_config(row.config, [*settings, *ending])
    except InputError as error:
        raise InputError(f"method {name}: {error}") from error
    return Training(name, fold, seed, folder, loaded)


def run_folder(config: BenchmarkConfig, name: str, fold: str, seed: int) -> Path:
    """The folder of one method, fold and seed."""
    return config.out / "runs" / name / f"fold{fold}_seed{seed}"
