"""Two hosts, tried between two network namespaces: equal results, a killed host, a cut network.

Trains, predicts a cohort, evaluates it and runs a benchmark.

sudo python scripts/two_hosts.py [--work FOLDER] [--contact-seconds 20]

Needs Linux, root and `ip netns` (iproute2). Each host is a namespace with an address of its own that runs accelerate's
launcher; a virtual cable joins them, and both use this machine's disk as the shared file system. Exit code 1 if a
result differs or a run does not end in time.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from safetensors.numpy import load_file

from sammed3d_ft.files import write_whole
from sammed3d_ft.images.images import read_label
from sammed3d_ft.phantom.cohort import write_cohort
from sammed3d_ft.provenance import file_hash

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "sammed3d_ft" / "model" / "shipped" / "mini.safetensors"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
CONFIG = """
run: {{dir: "{run}"}}
data: {{manifest: "{manifest}", repeats: 2}}  # an even number of samples: no joint batch has to be padded
model: {{variant: mini, weights: mini, spacing_mm: 3.0}}
clicks: {{rounds: 1}}  # a later click follows the mask: rounding can move it, and the two trainings then differ
tune: {{method: decoder}}
loss: {{name: dice_ce}}
cache: {{views: 2}}
optim: {{epochs: 2, batch_size: {batch}}}
validate: {{every_epochs: 2, clicks: [1, 5], test: false}}
checkpoint: {{every_steps: 1}}
track: {{trackers: [], log_every_steps: 1}}
"""
BENCHMARK = """
out: "{out}"
manifest: "{manifest}"
folds: 3
clicks: [1]
reference: zero_shot
rows:
  trained: {{config: "{config}"}}
  zero_shot: {{checkpoint: mini}}
"""


def missing() -> str | None:
    """Why namespaces cannot be made here; None if they can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs Linux and root"
    if shutil.which("ip") is None:
        return "needs the command `ip` (package iproute2)"
    name = f"try{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return f"cannot make network namespaces: {tried.stderr.strip()}" if tried.returncode else None


class Hosts:
    """Two network namespaces joined by a virtual cable; the addresses exist only inside them."""

    def __init__(self) -> None:
        self.names = [f"sammed3d{os.getpid()}_{host}" for host in range(2)]

    def __enter__(self) -> Hosts:
        try:
            for name in self.names:
                _ip("netns", "add", name)
            first, second = self.names
            _ip("-n", first, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", second)
            for name, address in zip(self.names, ADDRESSES, strict=True):
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            self.connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for host, name in enumerate(self.names):
            self.kill(host)
            subprocess.run(["ip", "netns", "del", name], capture_output=True)  # takes the cable with it

    def command(self, host: int) -> list[str]:
        """What precedes a command that runs on a host."""
        return ["ip", "netns", "exec", self.names[host]]

    def kill(self, host: int) -> None:
        """SIGKILL for all processes of a host."""
        found = subprocess.run(["ip", "netns", "pids", self.names[host]], capture_output=True, text=True)
        for pid in found.stdout.split():
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(int(pid), signal.SIGKILL)

    def cut(self) -> None:
        """Take the cable out: packets are lost, and connections stay open."""
        _ip("-n", self.names[1], "link", "set", "eth0", "down")

    def connect(self) -> None:
        """Put the cable in."""
        for name in self.names:
            for interface in ("lo", "eth0"):
                _ip("-n", name, "link", "set", interface, "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@dataclass(frozen=True)
class Ended:
    """How a host's launcher ended: exit code (negative: it had to be killed), after how long, and what it said."""

    code: int
    seconds: float
    said: str

    @property
    def errors(self) -> list[str]:
        """The lines that tell the user what happened."""
        lines = self.said.replace("\r", "\n").splitlines()
        return [line.strip() for line in lines if "error: " in line or " was stopped, because" in line]


def _wait(process: subprocess.Popen[bytes]) -> tuple[int, float, str]:
    said, _ = process.communicate()
    return process.returncode, time.monotonic(), said.decode(errors="replace")


class Trial:
    """The runs, and the rows of the table that they give."""

    def __init__(self, work: Path, hosts: Hosts, contact_seconds: float) -> None:
        self.work, self.hosts, self.contact_seconds = work, hosts, contact_seconds
        self.manifest = write_cohort(work / "data", 5, val=2, seed=2, field="pelvis", scanner="older", outline="25%")
        self.rows: list[tuple[str, str, str]] = []
        self.wrong: list[str] = []
        self.environment = {
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",  # the last bits of a sum depend on the number of threads
            "PYTHONPATH": str(ROOT),
            "GLOO_SOCKET_IFNAME": "eth0",
            "SAMMED3D_CONTACT_SECONDS": str(contact_seconds),
        }

    def note(self, what: str, result: str, right: bool, screen: str = "") -> None:
        self.rows.append((what, result, screen))
        print(f"{'ok   ' if right else 'WRONG'} {what}: {result}\n      {screen}", flush=True)
        if not right:
            self.wrong.append(what)

    def run(self, commands: Sequence[Sequence[str]], disturb: Callable[[], None] | None = None) -> list[Ended]:
        """Run one command per host at the same time; without a disturbance, all must succeed."""
        processes = [
            subprocess.Popen(command, cwd=ROOT, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            for command in commands
        ]
        with ThreadPoolExecutor() as pool:
            waiting = [pool.submit(_wait, process) for process in processes]
            if disturb is not None:
                disturb()
            began = time.monotonic()
            wait(waiting, timeout=self.contact_seconds + 120 if disturb else 1200)
            for process in processes:
                process.kill()
            for host in (0, 1):
                self.hosts.kill(host)
        found = [Ended(code, at - began, said) for code, at, said in (each.result() for each in waiting)]
        if disturb is None and any(one.code for one in found):
            raise SystemExit("\n".join(f"exit code {one.code}: {one.said[-3000:]}" for one in found))
        return found

    def on_two_hosts(self, work: Sequence[str]) -> list[list[str]]:
        """A command of accelerate's launcher for each host."""
        launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--mixed_precision", "no"]
        launcher += ["--dynamo_backend", "no", "--num_machines", "2", "--num_processes", "2"]
        launcher += ["--main_process_ip", ADDRESSES[0], "--main_process_port", "29500", "--machine_rank"]
        return [[*self.hosts.command(host), *launcher, str(host), *work] for host in (0, 1)]

    def training(self, name: str, batch: int = 1) -> list[str]:
        run = self.work / name
        write_whole(run.with_suffix(".yaml"), CONFIG.format(run=run, manifest=self.manifest, batch=batch))
        return [str(ROOT / "finetune.py"), "--config", str(run.with_suffix(".yaml"))]

    def prediction(self, name: str) -> list[str]:
        """A cohort prediction of the validation cases, from the clicks that the first training recorded."""
        work = ["-m", "sammed3d_ft.cli.main", "predict-cohort", str(self.manifest), "--split", "val"]
        work += ["--clicks", str(self.work / "one" / "clicks" / "val"), "--out", str(self.work / name)]
        return [*work, "--checkpoint", str(self.export("one"))]

    def evaluation(self, name: str) -> list[str]:
        """The evaluation of the masks that one process predicted."""
        work = ["-m", "sammed3d_ft.cli.main", "evaluate", "--pred", str(self.work / "masks_one" / "masks")]
        return [*work, "--gt", str(self.manifest), "--split", "val", "--out", str(self.work / name)]

    def benchmark(self, name: str) -> list[str]:
        """A benchmark that trains on three folds; several calls at the same time share the work."""
        out = self.work / name
        text = BENCHMARK.format(out=out, manifest=self.manifest, config=self.work / "one.yaml")
        write_whole(out.with_suffix(".yaml"), text)
        return [sys.executable, "-m", "sammed3d_ft.cli.main", "benchmark", str(out.with_suffix(".yaml"))]

    def same_table(self, one: str, two: str) -> bool:
        """Whether two evaluations, or two benchmarks, scored every case alike."""
        return (self.work / one / "cases.csv").read_bytes() == (self.work / two / "cases.csv").read_bytes()

    def export(self, name: str) -> Path:
        return self.work / name / "export" / "model.safetensors"

    def same_result(self, name: str) -> bool:
        """Whether a run's weights or masks are exactly those of the undisturbed run on two hosts."""
        if (self.work / name / "masks").is_dir():
            found, expected = self.masks(name), self.masks("masks_two")
            return found.keys() == expected.keys() and all(
                np.array_equal(found[case], expected[case]) for case in found
            )
        return self.export(name).is_file() and file_hash(self.export(name)) == file_hash(self.export("two"))

    def masks(self, name: str) -> dict[str, np.ndarray]:
        return {path.name: read_label(path).array for path in (self.work / name / "masks").glob("*.nii.gz")}

    def compare(self) -> None:
        """Two hosts against one process: weights after training, masks of a cohort, scores, and the SLURM script."""
        self.run([[sys.executable, *self.training("one", batch=2)]])
        self.run(self.on_two_hosts(self.training("two")))
        one, two, start = load_file(self.export("one")), load_file(self.export("two")), load_file(MINI)
        apart, moved = ({n: float(np.abs(one[n] - of[n]).max()) for n in one} for of in (two, start))
        # The bias of an attention's keys adds the same to all scores of a query, so the output does not depend on it:
        # its gradient is rounding, which AdamW scales up.
        biases = max(apart.pop(name) for name in one if name.endswith(".k_proj.bias"))
        most, by = max(apart.values()), max(moved.values())
        result = f"differ by at most {most:.1e} (key biases {biases:.1e}); training moved them by up to {by:.1e}"
        self.note("weights, two hosts against one process", result, most < 1e-5 < by)
        self.run([[sys.executable, *self.prediction("masks_one")]])
        self.run(self.on_two_hosts(self.prediction("masks_two")))
        voxels = [int((mask > 0).sum()) for mask in self.masks("masks_one").values()]
        same = self.same_result("masks_one") and min(voxels) > 0
        self.note("masks, two hosts against one process", f"{'same' if same else 'other'} voxels: {voxels}", same)

        self.run([[sys.executable, *self.evaluation("scores_one")]])
        self.run(self.on_two_hosts(self.evaluation("scores_two")))
        same = self.same_table("scores_one", "scores_two")
        self.note("evaluation, two hosts against one process", "same scores" if same else "other scores", same)
        self.run([self.benchmark("table_one")])
        command = self.benchmark("table_two")
        shared = self.run([[*self.hosts.command(host), *command] for host in (0, 1)])
        self.run([command])
        left = [line for one in shared for line in one.said.splitlines() if line.startswith("left to another process")]
        same = self.same_table("table_one", "table_two")
        result = f"{'same' if same else 'other'} scores; left to the other host: {len(left)}"
        self.note("benchmark, two hosts against one", result, same and bool(left), "\n".join(left))

        self.run([self.slurm_script(self.training("slurm")[-1])])
        self.note("slurm.sh, its commands simulated", "weights of two hosts", self.same_result("slurm"))

    def slurm_script(self, config: str) -> list[str]:
        """The batch script, with stand-ins for SLURM's commands that run one task on each host."""
        hosts = "".join(f'SLURM_NODEID={host} {" ".join(self.hosts.command(host))} "$@" & ' for host in (0, 1))
        stand_ins = {"srun": f"shift; {hosts} wait -n && wait -n", "scontrol": f"printf '%s\\n' {' '.join(ADDRESSES)}"}
        for name, text in stand_ins.items():
            write_whole(self.work / "bin" / name, f"#!/bin/bash\n{text}\n")
            (self.work / "bin" / name).chmod(0o755)
        job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "host[0-1]", "SLURM_JOB_NUM_NODES": "2"}
        job["PATH"] = f"{self.work / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        given = [f"{name}={value}" for name, value in {**job, "SLURM_GPUS_ON_NODE": "1"}.items()]
        return ["env", *given, "bash", "configs/accelerate/slurm.sh", config]

    def once(self, name: str, file: str, act: Callable[[], None]) -> Callable[[], None]:
        """Do something as soon as a run has written a file."""

        def wait_and_act() -> None:
            until = time.monotonic() + 600
            while not any((self.work / name).glob(file)) and time.monotonic() < until:
                time.sleep(0.05)
            act()

        return wait_and_act

    def stall(self, name: str, file: str) -> None:
        """Take the cable out for a quarter of the contact limit: the training goes on by itself."""

        def act() -> None:
            self.hosts.cut()
            time.sleep(self.contact_seconds / 4)
            self.hosts.connect()

        ended = self.run(self.on_two_hosts(self.training(name)), self.once(name, file, act))
        right = not any(one.code for one in ended) and self.same_result(name)
        result = "the undisturbed result, bit for bit" if right else f"exit codes {[one.code for one in ended]}"
        said = "\n".join(line for one in ended for line in one.errors)
        self.note(f"network cut for {self.contact_seconds / 4:g} s", result, right, said)

    def disturb(
        self, what: str, work: Sequence[str], name: str, file: str, act: Callable[[], None], survivors: Sequence[int]
    ) -> None:
        """Disturb a run once a file of it exists; then run the same command again, and compare the result."""

        ended = self.run(self.on_two_hosts(work), self.once(name, file, act))
        self.hosts.connect()
        for host in survivors:
            one, errors = ended[host], ended[host].errors
            result = f"exit code {one.code} after {one.seconds:.0f} s"
            self.note(f"{what}, host {host}", result, one.code > 0 and len(errors) == 1, "\n".join(errors))
        self.run(self.on_two_hosts(work))
        same = self.same_result(name)
        self.note(f"{what}, run again", "the undisturbed result, bit for bit" if same else "another result", same)


def two_hosts(work: Path, contact_seconds: float) -> tuple[list[tuple[str, str, str]], list[str]]:
    """All trials; returns the rows of the table, and what went wrong (nothing if all is well)."""
    with Hosts() as hosts:
        trial = Trial(work, hosts, contact_seconds)
        trial.compare()
        step, mask, kill = "checkpoints/step_3", "masks/*.nii.gz", hosts.kill
        trial.disturb("host 1 killed", trial.training("killed1"), "killed1", step, lambda: kill(1), [0])
        trial.disturb("host 0 killed", trial.training("killed0"), "killed0", step, lambda: kill(0), [1])
        trial.disturb("network cut", trial.training("cut"), "cut", step, hosts.cut, [0, 1])
        trial.stall("stalled", step)
        cohort = trial.prediction("masks_cut")
        trial.disturb("network cut, cohort", cohort, "masks_cut", mask, hosts.cut, [0, 1])
        cohort = trial.prediction("masks_killed")
        trial.disturb("host 1 killed, cohort", cohort, "masks_killed", mask, lambda: kill(1), [0])
    return trial.rows, trial.wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="empty folder for the runs; default: a temporary folder")
    parser.add_argument("--contact-seconds", type=float, default=20)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the namespaces are removed
    if reason := missing():
        print(f"skipped: {reason}")
        return
    with tempfile.TemporaryDirectory() as temporary:
        rows, wrong = two_hosts(given.work or Path(temporary), given.contact_seconds)
    table = Table("what", "result", "on the screen", title="Two hosts")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    print("\n".join(f"WRONG: {what}" for what in wrong) or "all as it should be")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
