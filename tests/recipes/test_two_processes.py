"""Two processes train one model: gradients of the joint batch, equal replicas, the same validation scores.

On a CPU, by accelerate's launcher; each test first asserts that there were two.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from sammed3d_ft.recipes.train import load_config
from tests.support.tiny_cases import write_cohort
from tests.support.training_runs import ROOT, config_file, replayed_dice


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"), train=4, val=3)


def launch(
    processes: int, script: Path, config: Path, *overrides: str, probe: Path
) -> subprocess.CompletedProcess[str]:
    """Runs a script by accelerate on a CPU; `--cpu` would start one process, whatever the number."""
    probe.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PROBE": str(probe)}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(
        [*command, str(script), "--config", str(config), *overrides],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )


def probed(processes: int, folder: Path, manifest: Path, method: str, *overrides: str) -> Path:
    """A run of two joint batches of two; the folder with what the probe wrote. The run is in its subfolder `run`."""
    folder.mkdir()
    config = config_file(folder / "run", manifest, method)
    each = f"optim.batch_size={2 // processes}"
    ended = launch(
        processes, ROOT / "tests" / "support" / "gradient_probe.py", config, each, *overrides, probe=folder / "probe"
    )
    assert ended.returncode == 0, ended.stderr
    for rank in range(processes):
        assert (folder / "probe" / f"rank{rank}_world.txt").read_text() == str(processes)
    assert json.loads((folder / "run" / "run.json").read_text())["processes"] == processes
    return folder / "probe"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "loss"),
    [
        ("full", "loss.name=dice_ce"),
        ("full", "loss={name: l1dfl, options: {sync_counts: true}}"),
        ("decoder", "loss.name=dice_ce"),
        ("lora", "loss.name=dice_ce"),
    ],
)
def test_gradients_and_figures_are_those_of_one_process_with_the_joint_batch(
    method: str, loss: str, tmp_path: Path, manifest: Path
) -> None:
    """With a learning rate too small to move a weight, so that the validation figures are of equal weights.

    A batch of two and two batches of one differ by rounding. With L1DFL, an error that rounding moves over the edge of
    a bin changes the voxel's weight, hence the wider limit; a process left out would be an error of the order of 1.
    """
    limit = 1e-4 if "l1dfl" in loss else 1e-5
    settings = (loss, "optim.clip_norm=1e9", "optim.lr_decoder=1e-12", "optim.lr_encoder=1e-12")
    one = probed(1, tmp_path / "one", manifest, method, *settings)
    two = probed(2, tmp_path / "two", manifest, method, *settings)

    alone = load_file(one / "rank0_gradients.safetensors")
    assert alone
    for rank in range(2):
        joint = load_file(two / f"rank{rank}_gradients.safetensors")
        assert joint.keys() == alone.keys()
        whole, other = (torch.cat([g[name].flatten() for name in alone]) for g in (alone, joint))
        assert whole.abs().max() > 0
        assert float((other - whole).norm() / whole.norm()) < limit

    figures, logged = [], []
    for folder in (one, two):
        lines = (folder.parent / "run" / "metrics.jsonl").read_text().splitlines()
        logged.append(next(line for line in map(json.loads, lines) if "train/loss" in line))
        summary = json.loads((folder.parent / "run" / "summary.json").read_text())
        figures.append({key: value for key, value in summary["best"].items() if key.startswith("val/")})
    assert logged[1] == pytest.approx(logged[0], rel=1e-4)  # the highest probability among it
    assert figures[0]["val/dice@1"] > 0
    assert figures[1] == pytest.approx(figures[0], abs=1e-9)


def test_replicas_stay_equal_and_the_figures_are_those_of_the_export(tmp_path: Path, manifest: Path) -> None:
    probe = probed(2, tmp_path / "two", manifest, "full", "optim.lr_decoder=3e-5", "optim.lr_encoder=3e-5")
    first, second = (load_file(probe / f"rank{rank}_weights.safetensors") for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    summary = json.loads((tmp_path / "two" / "run" / "summary.json").read_text())
    assert summary["best"]["val/dice@1"] > 0  # otherwise scores would be equal for any replicas
    for k, dice in replayed_dice(tmp_path / "two" / "run", manifest, "val").items():
        assert summary["best"][f"val/dice@{k}"] == pytest.approx(dice, abs=1e-6)
        assert summary[f"val/dice@{k}"] == pytest.approx(dice, abs=1e-6)


@pytest.mark.slow
def test_two_processes_killed_and_started_again_end_in_the_same_bytes(tmp_path: Path, manifest: Path) -> None:
    """The whole group is killed as soon as the second step is saved, amid the second epoch."""
    summaries = []
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        config = config_file(tmp_path / name / "run", manifest, "full")
        more = ("optim.batch_size=1", "optim.epochs=2")
        if name == "killed":
            script = tmp_path / "dying.py"
            script.write_text(
                "import os, signal, sys\n"
                "from sammed3d_ft.recipes import train\n"
                "real = train.save_checkpoint\n"
                "def save(folder, step, *rest):\n"
                "    real(folder, step, *rest)\n"
                "    if step == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
                "train.save_checkpoint = save\n"
                "train.main(sys.argv[1:])\n"
            )
            ended = launch(2, script, config, *more, probe=tmp_path / "probe")
            assert ended.returncode != 0
            assert (tmp_path / name / "run" / "checkpoints" / "step_3").is_dir()
        ended = launch(2, ROOT / "finetune.py", config, *more, probe=tmp_path / "probe")
        assert ended.returncode == 0, ended.stderr
        summaries.append(json.loads((tmp_path / name / "run" / "summary.json").read_text()))
    assert summaries[0]["export_sha256"] == summaries[1]["export_sha256"]
    assert summaries[0]["best"] == summaries[1]["best"]


@pytest.mark.slow
def test_an_error_of_one_process_alone_is_reported_and_ends_the_run(tmp_path: Path, manifest: Path) -> None:
    """The second process reads a validation image that was damaged after the check; the first would wait for it."""
    script = tmp_path / "damaging.py"
    script.write_text(
        "import os, sys\n"
        "from sammed3d_ft.prompted import task as prompted_task\n"
        "from sammed3d_ft.recipes.train import main\n"
        "from prompts.errors import InputError\n"
        "def broken(*rest, **more): raise InputError('case val_1: cannot be read')\n"
        "if os.environ['RANK'] == '1': prompted_task.simulate_files = broken\n"
        "main(sys.argv[1:])\n"
    )
    config = config_file(tmp_path / "run", manifest, "full")
    ended = launch(2, script, config, "optim.batch_size=1", probe=tmp_path / "probe")
    assert ended.returncode != 0
    told = [line for line in ended.stderr.replace("\r", "\n").splitlines() if "error: " in line]
    assert any(line.endswith("error: process 1: case val_1: cannot be read") for line in told)
    assert all("cannot be read" in line or "lost contact with another process" in line for line in told)
    assert load_config(config).run.dir.joinpath("checkpoints").is_dir()


@pytest.mark.parametrize("dies", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_process_that_is_killed_ends_the_run_with_a_line_that_says_how_to_go_on(
    dies: int, tmp_path: Path, manifest: Path
) -> None:
    """As the system does when memory runs out."""
    script = tmp_path / "dying.py"
    script.write_text(
        "import os, signal, sys\n"
        "from sammed3d_ft.prompted import task as prompted_task\n"
        "from sammed3d_ft.recipes.train import main\n"
        "real, calls = prompted_task.PromptedTask.loss, []\n"
        "def loss(self, model, batch, *rest):\n"
        "    calls.append(batch)\n"
        f"    if len(calls) == 2 and os.environ['RANK'] == '{dies}': os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return real(self, model, batch, *rest)\n"
        "prompted_task.PromptedTask.loss = loss\n"
        "main(sys.argv[1:])\n"
    )
    config = config_file(tmp_path / "run", manifest, "full")
    ended = launch(2, script, config, "optim.batch_size=1", probe=tmp_path / "probe")
    assert ended.returncode != 0
    assert f"process {1 - dies} of 2 was stopped" in ended.stderr or "lost contact" in ended.stderr
    assert "Re-run the same command to resume" in ended.stderr
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_1"]


@pytest.mark.slow
def test_a_loss_that_is_no_number_on_one_process_stops_both_at_the_same_step(tmp_path: Path, manifest: Path) -> None:
    script = tmp_path / "no_number.py"
    script.write_text(
        "import os, sys\n"
        "from sammed3d_ft.prompted import task as prompted_task\n"
        "from sammed3d_ft.recipes.train import main\n"
        "real, calls = prompted_task.PromptedTask.loss, []\n"
        "def loss(self, model, batch, *rest):\n"
        "    value, values = real(self, model, batch, *rest)\n"
        "    calls.append(batch)\n"
        "    bad = os.environ['RANK'] == '1' and len(calls) == 2\n"
        "    return (value * float('nan') if bad else value), values\n"
        "prompted_task.PromptedTask.loss = loss\n"
        "main(sys.argv[1:])\n"
    )
    config = config_file(tmp_path / "run", manifest, "full")
    ended = launch(2, script, config, "optim.batch_size=1", probe=tmp_path / "probe")
    assert ended.returncode != 0
    told = [line for line in ended.stderr.replace("\r", "\n").splitlines() if "error: " in line]
    # The launcher ends the second process before it prints the same; on a busy machine it may be too late.
    assert len({line.partition("error: ")[2].removeprefix("process 1: ") for line in told}) == 1, told
    assert "step 1: the loss is NaN or infinite for train_" in told[0]
    assert told[0].count("train_") == 1
    assert (tmp_path / "run" / "checkpoints" / "step_1").is_dir()
