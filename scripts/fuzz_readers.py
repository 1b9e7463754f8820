"""Feed mutated files to the readers, and report what they do not answer with an `InputError`.

python scripts/fuzz_readers.py [--seconds 600] [--reader nifti ...] [--seed 0] [--out fuzz]

Readers: nifti, itk (NRRD and MetaImage), dicom (series, SUV, RTSTRUCT, SEG), clicks (every click file format) and
checkpoint (torch.save, safetensors, LoRA adapter). Each runs in a process of its own, for the given time. A crash is
any exception other than `InputError`, a process that dies, one that answers nothing for a minute, or one that needs
2 GiB more memory than it had at its start. Crashes with the same origin count once; an input of each is kept in
OUT/READER, with the traceback. Exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sammed3d_ft.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # for the package of tests, which is not installed

from tests.hostile.mutated_files import READERS  # noqa: E402

_MEMORY = 2 << 30
_SILENCE_S = 60.0


def origin(error: BaseException) -> str:
    """Type of the exception, and the last lines of this project and of any library that it passed through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    ours = [frame for frame in frames if frame.filename.startswith((f"{ROOT}/sammed3d_ft", f"{ROOT}/prompts"))]
    named = dict.fromkeys(f"{Path(f.filename).name}:{f.lineno}" for f in (*ours[-1:], *frames[-1:]))
    return f"{type(error).__name__} at {' < '.join(named)}"


def _work(name: str, seed: int, first: int, folder: Path, report: Any) -> None:
    """Read mutated files until killed. Reports each input before it is read, and what came of it."""
    reader = READERS[name](folder)
    status = Path("/proc/self/status")
    if status.exists():
        size = int(re.search(r"VmSize:\s*(\d+)", status.read_text())[1]) * 1024  # type: ignore[index]
        resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))
    report.send(("ready", first, ""))
    number = first
    while True:
        paths = reader.make(random.Random(f"{seed} {name} {number}"))
        outcome, detail = "read", ""
        try:
            reader.read(paths)
        except InputError as error:
            outcome = "refused" if "\n" not in str(error) else "crash"
            detail = "" if outcome == "refused" else f"message of several lines\n{error}"
        except Exception as error:
            outcome, detail = "crash", f"{origin(error)}\n{traceback.format_exc()}"
        number += 1
        if outcome == "crash":
            kept = folder / f"crash_{number}"
            for path in paths:
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, f"{kept}_{path.name}")
        report.send((outcome, number, detail))


def _events(name: str, seconds: float, seed: int, folder: Path) -> Iterator[tuple[str, int, str]]:
    """What came of each input; a worker that dies or hangs is replaced, and its input counts as a crash."""
    context = multiprocessing.get_context("spawn")
    number, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(name, seed, number, folder, sender), daemon=True)
        worker.start()
        sender.close()
        ready = False
        try:
            while time.monotonic() < end:
                if not receiver.poll(_SILENCE_S):
                    yield "crash", number + 1, f"no answer in {_SILENCE_S:g} s\n"
                    break
                outcome, number, detail = receiver.recv()
                if outcome == "ready":
                    ready, end = True, end if number else time.monotonic() + seconds
                else:
                    yield outcome, number, detail
        except EOFError:
            worker.join()
            if not ready:
                raise SystemExit(f"{name}: the reader could not be set up") from None
            yield "crash", number + 1, f"the process died (exit code {worker.exitcode})\n"
        worker.kill()
        worker.join()
        number += 1


def fuzz(name: str, seconds: float, seed: int, out: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Fuzz one reader; returns counts of outcomes, and of crashes by origin."""
    outcomes = {"read": 0, "refused": 0, "crash": 0}
    crashes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for outcome, number, detail in _events(name, seconds, seed, folder):
            outcomes[outcome] += 1
            if outcome == "crash":
                where = detail.splitlines()[0]
                if where not in crashes:
                    kept = out / name / f"{len(crashes)}"
                    kept.mkdir(parents=True, exist_ok=True)
                    (kept / "traceback.txt").write_text(detail)
                    # A worker that died or hangs has left its input in place.
                    found = list(folder.glob(f"crash_{number}_*")) or [*folder.glob("x.*"), *folder.glob("dicom")]
                    for path in found:
                        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, kept / path.name)
                crashes[where] = crashes.get(where, 0) + 1
            for path in folder.glob(f"crash_{number}_*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return outcomes, crashes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="time per reader (default: 600)")
    parser.add_argument("--reader", action="append", choices=READERS, help="repeatable; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="folder for inputs that crash")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for name in given.reader or READERS:
        outcomes, crashes = fuzz(name, given.seconds, given.seed, given.out)
        found[name] = {"executions": sum(outcomes.values()), **outcomes, "origins": crashes}
        print(
            f"{name}: {sum(outcomes.values())} executions in {given.seconds:g} s, {outcomes['read']} read, "
            f"{outcomes['refused']} refused, {outcomes['crash']} crashes of {len(crashes)} origins",
            flush=True,
        )
        for where, count in crashes.items():
            print(f"  {count} x {where}", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "summary.json").write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(any(one["crash"] for one in found.values()))


if __name__ == "__main__":
    main()
