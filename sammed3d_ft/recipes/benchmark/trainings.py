"""The trainings of a benchmark: which are done, and each one started in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from prompts.errors import InputError
from prompts.whole_files import write_whole
from sammed3d_ft.model.weights import sha256_of
from sammed3d_ft.recipes.baseline_config import BaselineConfig
from sammed3d_ft.recipes.benchmark.config import BenchmarkConfig, TrainedRow
from sammed3d_ft.recipes.config import TrainConfig, differences, load_config
from sammed3d_ft.training.run_lock import locked_run

# Where a run lies says nothing about its result; its cases are compared by the manifest's hash. Nor do the numbers of
# clicks at which it scores itself: the best model is always chosen at 1 and 5, and masks are made at any.
_WITHOUT_EFFECT = (("run", "dir"), ("data", "manifest"), ("validate", "clicks"))


@dataclass(frozen=True)
class Training:
    """One training of one row."""

    row: str
    fold: str
    seed: int
    folder: Path
    config: TrainConfig | BaselineConfig

    def is_done(self) -> bool:
        """Whether its result is there; `InputError` if that was made with other settings or folds."""
        if not (self.folder / "summary.json").exists():
            return False
        before = yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))
        changed, _ = differences(_comparable(self._completed(before)), _comparable(self.config.as_plain()))
        if (self.folder / "manifest.sha256").read_text(encoding="utf-8") != sha256_of(self.config.data.manifest):
            changed.append("the fold's cases")
        if changed:
            raise InputError(
                f"{self.folder} was made with other settings ({'; '.join(changed)}): remove it, or choose another out"
            )
        return True

    def _completed(self, before: dict[str, Any]) -> dict[str, Any]:
        """An earlier version's config with the settings that have come since, at their defaults."""
        try:
            completed: dict[str, Any] = type(self.config).model_validate(before).as_plain()
        except ValueError:
            return before
        return completed

    def run(self, launch: list[str]) -> str | None:
        """Trains, in a process of its own; its screen goes to a log beside the run. None, or what went wrong.

        Nothing is done where another process has ended this training since.

        Raises:
            RunHeldError: another process is writing this run.
            InputError: it has ended with other settings or cases.
        """
        with locked_run(self.folder, ".launch.lock"):  # from before the training takes its own lock until it has ended
            return None if self.is_done() else self._launch(launch)

    def _launch(self, launch: list[str]) -> str | None:
        written, log = self.folder.with_suffix(".yaml"), self.folder.with_suffix(".log")
        with locked_run(self.folder):  # a training whose launcher was killed may still be at it, and write its log
            write_whole(written, yaml.safe_dump(self.config.as_plain(), sort_keys=False))
            write_whole(self.folder / "manifest.sha256", sha256_of(self.config.data.manifest))
            screen = log.open("wb")
        command = [sys.executable, "-m", "accelerate.commands.launch", *launch, "-m", "sammed3d_ft.recipes.train"]
        with screen:
            ended = subprocess.run(
                [*command, "--config", str(written)], stdout=screen, stderr=subprocess.STDOUT, check=False
            )
        if ended.returncode == 0:
            return None
        lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
        told = [line for line in lines if "error: " in line] or [line for line in lines if line.strip()]
        return f"{told[0].strip() if told else 'no output'} (exit code {ended.returncode}, {log})"


def _comparable(plain: dict[str, Any]) -> dict[str, Any]:
    return {
        section: {key: value for key, value in values.items() if (section, key) not in _WITHOUT_EFFECT}
        if isinstance(values, dict)
        else values
        for section, values in plain.items()
    }


def training_of(config: BenchmarkConfig, name: str, fold: str, manifest: Path, seed: int) -> Training:
    """The training of a row on one fold with one seed.

    Raises:
        InputError: a config or an override that is wrong, with the row's name.
    """
    row = config.rows[name]
    assert isinstance(row, TrainedRow)
    folder = run_folder(config, name, fold, seed)
    settings = [*row.overrides, f"run.dir={folder}", f"run.seed={seed}", f"data.manifest={manifest}"]
    try:
        loaded = load_config(row.config, settings)
        # A prompted model is tested as the benchmark's first form did, so that its trainings are found as done.
        clicks = sorted({*config.clicks, 1, 5})
        prompted = isinstance(loaded, TrainConfig)
        ending = [f"validate.clicks={clicks}", "validate.test=true"] if prompted else ["validate.test=false"]
        loaded = load_config(row.config, [*settings, *ending])
    except InputError as error:
        raise InputError(f"row {name}: {error}") from error
    return Training(name, fold, seed, folder, loaded)


def run_folder(config: BenchmarkConfig, name: str, fold: str, seed: int) -> Path:
    """Where everything of one row, fold and seed is kept."""
    return config.out / "runs" / name / f"fold{fold}_seed{seed}"
