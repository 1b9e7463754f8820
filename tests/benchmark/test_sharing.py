"""Simultaneous calls of one benchmark share the trainings and report what they left to another call."""

from __future__ import annotations

from pathlib import Path

import pytest

from sammed3d_ft.benchmark import runner
from sammed3d_ft.benchmark.config import load_benchmark
from sammed3d_ft.benchmark.folds import write_folds
from sammed3d_ft.benchmark.trainings import Training, training_of
from sammed3d_ft.training.run_lock import RunHeldError, locked_run
from tests.support.benchmark_cases import Done, line_of, write_config
from tests.support.command import command


def test_a_run_that_another_process_is_at_is_left_to_it(folder: Path) -> None:
    rule = {"rule": {"suv_at_least": 5}}
    config = write_config(folder, rows={"a": rule, "b": rule})
    with locked_run(folder / "out" / "runs" / "b" / "foldx_seed0"):  # as the one that makes its masks holds it
        told = command("benchmark", config)
    assert "left to another process: b, fold x, seed 0: " in told
    assert "(pid " in told
    assert "re-run the command when they have finished" in told
    assert line_of(folder / "out", "b", "1 click per lesion")["failed"] == "2"
    assert runner.run(config)[1] == []
    assert line_of(folder / "out", "b", "1 click per lesion")["failed"] == "0"


def test_two_calls_share_the_trainings(folder: Path, trained: Done) -> None:
    config = write_config(folder, seeds=[0])
    left = []

    def train(training: Training, arguments: list[str]) -> str | None:
        if not trained.trainings:  # while the first one runs, another call does all others
            trained.trainings.append("begun")
            left.extend(trained.run(config)[1])
        return trained.train(training, arguments)

    _, failures = runner.run(config, train=train, open_trained=trained.open_trained)
    assert failures == []
    assert [(failure.run, failure.held) for failure in left] == [("a, fold x, seed 0", True)]
    assert trained.trainings == ["begun", "a y 0", "a z 0", "b x 0", "b y 0", "b z 0", "a x 0"]
    assert line_of(folder / "out", "b", "1 click per lesion")["failed"] == "0"


def test_a_limit_counts_the_trainings_of_this_call(folder: Path, trained: Done) -> None:
    config = write_config(folder, seeds=[0])
    with locked_run(folder / "out" / "runs" / "a" / "foldx_seed0", ".launch.lock"):
        trained.run(config, limit=2)
    assert trained.trainings == ["a y 0", "a z 0"]


def test_a_training_whose_launcher_was_killed_is_left_alone(folder: Path) -> None:
    loaded = load_benchmark(write_config(folder))
    training = training_of(loaded, "a", "x", write_folds(loaded)["x"], 0)
    log = training.folder.with_suffix(".log")
    with locked_run(training.folder):
        log.write_text("under way")
        with pytest.raises(RunHeldError, match="another process"):
            training.run([], Training.launch)
    assert log.read_text() == "under way"
