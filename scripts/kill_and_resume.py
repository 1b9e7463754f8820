"""Kill a training run repeatedly, resume it with the same command, and compare the result with an uninterrupted run.

python scripts/kill_and_resume.py [--kills 20] [--seed 0] [--work FOLDER]

Kills happen at random times within a chosen phase: building the embedding cache, a training step, writing a checkpoint
(its hidden folder exists), or validation. Exit code 1 if the exported model or the metrics differ by a single byte, or
if unreadable files remain.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from safetensors import safe_open

from sammed3d_ft.phantom.cohort import write_cohort
from sammed3d_ft.provenance import file_hash
from sammed3d_ft.training.checkpoints import list_checkpoints

# For each phase: how its start is recognised (name of a progress bar, or "" for a file), and the maximum delay of the
# kill after that, in seconds.
PHASES = {
    "cache": ("embeddings:", 0.4),
    "step": ("training:", 2.0),
    "checkpoint": ("", 0.01),
    "validation": ("val:", 0.5),
}
ROOT = Path(__file__).resolve().parents[1]
CONFIG = """
run: {{dir: "{run}"}}
data: {{manifest: "{manifest}"}}
model: {{variant: mini, weights: random, spacing_mm: 4.0}}
clicks: {{rounds: 2}}
tune: {{method: decoder}}
cache: {{views: 6}}
optim: {{epochs: 5, batch_size: 2, warmup: 0.2}}
validate: {{every_epochs: 1, clicks: [1, 5], test: false}}
checkpoint: {{every_steps: 1}}
track: {{log_every_steps: 1}}
"""


@dataclass(frozen=True)
class Kill:
    """One kill: the chosen phase, seconds since the start, and the newest checkpoint at that time."""

    phase: str
    seconds: float
    checkpoint: str


class Run:
    """A training process with monitored progress."""

    def __init__(self, run: Path, manifest: Path) -> None:
        self.folder = run
        config = run.with_suffix(".yaml")
        config.write_text(CONFIG.format(run=run, manifest=manifest))
        command = [sys.executable, "-m", "sammed3d_ft.recipes.train", "--config", str(config)]
        # One thread, because the last bits of a sum depend on the number of threads.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.started, self.started_ns = time.monotonic(), time.time_ns()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.said = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        while piece := os.read(self.process.stderr.fileno(), 4096):
            self.said += piece

    def finish(self) -> None:
        code = self.process.wait()
        self._reader.join()
        if code:
            raise SystemExit(f"the run ended with code {code}:\n{self.said.decode()[-2000:]}")

    def kill_in(self, phase: str, generator: random.Random) -> Kill | None:
        """Kill the run at a random time after the phase has started; None if the run ended before."""
        marker, longest = PHASES[phase]
        while not self._has_begun(phase, marker):
            if self.process.poll() is not None:
                self.finish()
                return None
            time.sleep(0.0005)
        time.sleep(generator.uniform(0, longest))
        if self.process.poll() is not None:
            self.finish()
            return None
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        kept = list_checkpoints(self.folder / "checkpoints")
        return Kill(phase, time.monotonic() - self.started, kept[-1].name if kept else "none")

    def _has_begun(self, phase: str, marker: str) -> bool:
        if phase == "checkpoint":  # written by this process, not left over from a killed one
            with contextlib.suppress(FileNotFoundError):  # it may have been renamed in the meantime
                hidden = self.folder.glob("*/.step_*.incomplete/*")
                return any(path.stat().st_mtime_ns > self.started_ns for path in hidden)
            return False
        return marker.encode() in self.said


def unreadable(run: Path) -> list[str]:
    """Unfinished or unreadable files of a run."""
    wrong = []
    for path in sorted(run.rglob("*")):
        try:
            if path.name.endswith(".incomplete"):
                raise ValueError("unfinished")
            if path.suffix == ".safetensors":
                with safe_open(path, "pt") as file:
                    for name in file.keys():  # noqa: SIM118 (not a dict)
                        file.get_tensor(name)
            elif path.suffix == ".json":
                json.loads(path.read_text())
        except Exception as error:
            wrong.append(f"{path}: {error}")
    return wrong


def kill_and_resume(work: Path, kills: int, seed: int) -> tuple[list[Kill], list[str]]:
    """Do both runs; returns the kills, and a list of problems (empty if the runs agree)."""
    manifest = write_cohort(work / "data", cases=5, val=1, test=0, seed=3, tracer="psma", field="pelvis")
    undisturbed = Run(work / "undisturbed", manifest)
    undisturbed.finish()

    generator = random.Random(seed)
    # The cache is built only once, so its kills come first, with short delays that leave work for the next kill.
    phases = ["cache"] * min(4, kills // 4)
    phases += [("step", "checkpoint", "validation")[number % 3] for number in range(kills - len(phases))]
    rest = phases[kills // 4 :]
    generator.shuffle(rest)
    done = []
    for phase in phases[: kills // 4] + rest:
        kill = Run(work / "killed", manifest).kill_in(phase, generator)
        if kill is None:
            break
        done.append(kill)
        print(f"kill {len(done)}: {kill.phase}, after {kill.seconds:.1f} s, newest checkpoint {kill.checkpoint}")
    Run(work / "killed", manifest).finish()

    wrong = [] if len(done) == kills else [f"the run ended after {len(done)} kills of {kills}"]
    for name in ("export/model.safetensors", "metrics.jsonl", "val_cases.csv"):
        hashes = [file_hash(work / run / name) for run in ("undisturbed", "killed")]
        print(f"{name}: SHA-256 {hashes[0][:16]}... undisturbed, {hashes[1][:16]}... killed {len(done)} times")
        if hashes[0] != hashes[1]:
            wrong.append(f"{name} differs")
    return done, wrong + unreadable(work / "killed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="empty folder for both runs; default: a temporary folder")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        kills, wrong = kill_and_resume(given.work or Path(temporary), given.kills, given.seed)
    table = Table(title=f"{len(kills)} kills")
    for column in ("phase", "kills", "newest checkpoint then"):
        table.add_column(column)
    for phase in PHASES:
        members = [kill for kill in kills if kill.phase == phase]
        table.add_row(phase, str(len(members)), ", ".join(kill.checkpoint for kill in members))
    Console().print(table)
    print("\n".join(wrong) or "identical to the undisturbed run, byte for byte; no unreadable files")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
