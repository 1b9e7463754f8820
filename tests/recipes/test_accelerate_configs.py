"""The shipped launcher configs: accelerate accepts each, and the SLURM script starts one launcher per node."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import DistributedType

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "accelerate"
SLURM = FOLDER / "slurm.sh"
EXPECTED = {  # distributed type, machines, processes
    "one_gpu.yaml": (DistributedType.NO, 1, 1),
    "several_gpus.yaml": (DistributedType.MULTI_GPU, 1, 4),
    "several_nodes.yaml": (DistributedType.MULTI_GPU, 2, 8),
}


def test_all_launcher_configs_are_known() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {*EXPECTED, "slurm.sh"}


@pytest.mark.parametrize("name", EXPECTED)
def test_accelerate_accepts_a_config_and_the_command_that_it_opens_with(name: str) -> None:
    config = load_config_from_file(str(FOLDER / name))
    assert (config.distributed_type, config.num_machines, config.num_processes) == EXPECTED[name]

    commands = [line[1:].split() for line in (FOLDER / name).read_text().splitlines() if "# " in line]
    command = next(words for words in commands if words[:2] == ["accelerate", "launch"])
    assert command[2:4] == ["--config_file", f"configs/accelerate/{name}"]
    given = launch_command_parser().parse_args([*command[2:3], str(FOLDER / name), *command[4:]])
    arguments, defaults, _ = _validate_launch_command(given)
    assert defaults == config
    assert arguments.multi_gpu == (config.distributed_type is DistributedType.MULTI_GPU)
    assert arguments.training_script == "finetune.py"
    assert (ROOT / arguments.training_script_args[1]).is_file()


# As SLURM's commands answer on a job of two nodes; each launcher writes its arguments to a file instead of training.
STAND_INS = {
    "scontrol": 'case $1 in show) printf "node7\\nnode8\\n";; *) echo "$@" > "$PROBE/scontrol";; esac',
    "srun": 'shift; for node in 0 1; do SLURM_NODEID=$node "$@" & done; wait -n; code=$?; wait; exit $code',
    "accelerate": 'printf "%s\\n" "$@" > "$PROBE/node$SLURM_NODEID"; sleep "$SECONDS_EACH"; exit "$CODE"',
}


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of the batch script on a job of two nodes with four GPUs each."""
    for name, text in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n")
        (tmp_path / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "81234", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2"}
    job |= {"SLURM_GPUS_ON_NODE": "4", "PROBE": str(tmp_path), "SECONDS_EACH": "0", "CODE": "0"}
    return {**os.environ, **job, "PATH": f"{tmp_path}:{os.environ['PATH']}"}


needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")


@needs_bash
@pytest.mark.parametrize("code", [0, 1])
def test_the_slurm_script_starts_one_launcher_per_node(code: int, job: dict[str, str], tmp_path: Path) -> None:
    command = ["bash", str(SLURM), "configs/lora.yaml", "data.manifest=my data/manifest.json", "optim.epochs=3"]
    ended = subprocess.run(command, env={**job, "CODE": str(code)}, cwd=ROOT, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (code, "")
    for node in range(2):
        words = (tmp_path / f"node{node}").read_text().splitlines()
        assert words[0] == "launch"
        arguments, _, _ = _validate_launch_command(launch_command_parser().parse_args(words[1:]))
        assert (arguments.num_machines, arguments.machine_rank, arguments.num_processes) == (2, node, 8)
        assert (arguments.main_process_ip, arguments.main_process_port) == ("node7", 21234)
        assert arguments.training_script == "finetune.py"
        settings = ["--config", "configs/lora.yaml", "data.manifest=my data/manifest.json", "optim.epochs=3"]
        assert arguments.training_script_args == settings


@needs_bash
def test_the_slurm_script_requeues_the_job_near_its_time_limit(job: dict[str, str], tmp_path: Path) -> None:
    process = subprocess.Popen(["bash", str(SLURM), "c.yaml"], env={**job, "SECONDS_EACH": "2"}, cwd=ROOT)
    while not (tmp_path / "node0").exists():
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(60) == 0  # of the launchers, which SLURM ends itself when it requeues the job
    assert (tmp_path / "scontrol").read_text() == "requeue 81234\n"
