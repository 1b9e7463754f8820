"""A cohort in several processes, stopped and resumed: the same tables, and no case evaluated twice."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation import kept_cases
from sammed3d_ft.evaluation.cohort import evaluate_pairs, workers_that_help
from sammed3d_ft.evaluation.pairing import CasePaths, pair_folders
from sammed3d_ft.recipes.evaluate import run
from tests.support.cohort_files import lesion, save, write_cohort

ROOT = Path(__file__).resolve().parents[2]
TABLES = ("cases.csv", "lesions.csv")
COMPAT = ("l1dfl", "brats-mets")


@pytest.fixture
def cohort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    # The page has its own tests; drawing it takes longer than all else here.
    monkeypatch.setattr("sammed3d_ft.recipes.evaluate.write_page", lambda *_: None)
    return write_cohort(tmp_path)


Evaluated = Callable[[], list[str]]


@pytest.fixture
def evaluated(cohort: Path) -> Evaluated:
    """The ids of the cases evaluated since the last call: those whose stored result was written."""
    seen: dict[Path, int] = {}

    def since() -> list[str]:
        now = {path: path.stat().st_mtime_ns for path in sorted((cohort / "out" / "cases").glob("*.json"))}
        new = [path.stem for path in now if seen.get(path) != now[path]]
        seen.update(now)
        return new

    return since


def tables(folder: Path) -> list[str]:
    """The content of an evaluation, without its time and folders."""
    summary = json.loads((folder / "summary.json").read_text())
    del summary["written"]
    return [*((folder / name).read_text() for name in TABLES), json.dumps(summary)]


def evaluate(cohort: Path, **changed: Any) -> list[str]:
    arguments = {
        "pet": cohort / "pet",
        "probabilities": cohort / "probability",
        "compat": COMPAT,
        "figures": False,
        **changed,
    }
    run(cohort / "pred", cohort / "gt", cohort / "out", **arguments)
    return tables(cohort / "out")


def test_a_second_start_does_nothing_again(cohort: Path, evaluated: Evaluated) -> None:
    first = evaluate(cohort)
    assert evaluated() == ["a", "b", "c"]
    assert evaluate(cohort) == first
    assert evaluated() == []


def test_a_stopped_evaluation_resumes(cohort: Path, evaluated: Evaluated) -> None:
    def stopped(cases: Iterable[CasePaths]) -> Iterator[CasePaths]:
        yield next(iter(cases))
        raise KeyboardInterrupt

    pairs = pair_folders(cohort / "pred", cohort / "gt", cohort / "pet", probability_dir=cohort / "probability")
    with pytest.raises(KeyboardInterrupt):
        evaluate_pairs(pairs, progress=stopped, compat=COMPAT, keep_in=cohort / "out" / "cases")
    assert evaluated() == ["a"]
    gone_on = evaluate(cohort)
    assert evaluated() == ["b", "c"]
    for file in (cohort / "out" / "cases").iterdir():
        file.unlink()
    assert evaluate(cohort) == gone_on


def test_what_changed_is_done_again(cohort: Path, evaluated: Evaluated, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate(cohort)
    assert evaluated() == ["a", "b", "c"]
    save(cohort / "pred" / "b.nii.gz", lesion((0, 2)))
    save(cohort / "probability" / "b.nii.gz", lesion((0, 2)) * np.float32(0.8))
    evaluate(cohort)
    assert evaluated() == ["b"]
    evaluate(cohort, connectivity=26)
    assert evaluated() == ["a", "b", "c"]
    monkeypatch.setattr(kept_cases, "EVALUATION_FORMAT", kept_cases.EVALUATION_FORMAT + 1)
    evaluate(cohort, connectivity=26)
    assert evaluated() == ["a", "b", "c"]
    kept = cohort / "out" / "cases" / "c.json"
    kept.write_text(kept.read_text()[:-20])  # as written by no process of ours
    evaluate(cohort, connectivity=26)
    assert evaluated() == ["c"]
    evaluate(cohort, connectivity=26, figures=True)  # the figures are not there yet
    assert evaluated() == ["a", "b", "c"]
    evaluate(cohort, connectivity=26, figures=True)
    assert evaluated() == []


def test_a_figure_is_never_of_files_that_have_changed_since(cohort: Path, evaluated: Evaluated) -> None:
    figure = cohort / "out" / "figures" / "a.png"
    evaluate(cohort, figures=True, probabilities=None)
    before = figure.read_bytes()
    assert evaluated() == ["a", "b", "c"]
    save(cohort / "pred" / "a.nii.gz", lesion((8, 10)))
    evaluate(cohort, figures=False, probabilities=None)  # the result is kept, the figure is still the old one
    assert evaluated() == ["a"]
    evaluate(cohort, figures=True, probabilities=None)
    assert evaluated() == ["a"]
    assert figure.read_bytes() != before
    evaluate(cohort, figures=False, probabilities=None)
    evaluate(cohort, figures=True, probabilities=None)
    assert evaluated() == []


@pytest.mark.parametrize("folder", ["cases", "figures"])
def test_a_folder_that_cannot_be_made_stops_before_any_case(cohort: Path, evaluated: Evaluated, folder: str) -> None:
    (cohort / "out").mkdir()
    (cohort / "out" / folder).write_text("a file")
    with pytest.raises(InputError, match=f"{folder}: cannot be written"):
        evaluate(cohort, figures=True)
    assert evaluated() == []


def test_a_failed_case_is_tried_again(cohort: Path, evaluated: Evaluated) -> None:
    good = (cohort / "pred" / "a.nii.gz").read_bytes()
    (cohort / "pred" / "a.nii.gz").write_bytes(good[:-30])
    assert "case a" in evaluate(cohort)[0]
    (cohort / "pred" / "a.nii.gz").write_bytes(good)
    assert evaluated() == ["b", "c"]
    assert "case a" not in evaluate(cohort)[0]
    assert evaluated() == ["a"]


def test_a_mhd_file_has_changed_when_its_voxels_have(tmp_path: Path) -> None:
    sitk = pytest.importorskip("SimpleITK")
    for name in ("gt", "pred"):
        (tmp_path / name).mkdir()
        sitk.WriteImage(sitk.GetImageFromArray(lesion((0, 3)).T), str(tmp_path / name / "a.mhd"))
    pairs = pair_folders(tmp_path / "pred", tmp_path / "gt")
    (before,) = evaluate_pairs(pairs, keep_in=tmp_path / "kept")
    sitk.WriteImage(sitk.GetImageFromArray(lesion((0, 1)).T), str(tmp_path / "pred" / "a.mhd"))
    (after,) = evaluate_pairs(pairs, keep_in=tmp_path / "kept")
    assert before.result is not None
    assert after.result is not None
    assert (before.result.dice, after.result.dice) == (1, pytest.approx(2 * 2 / 6))


def test_odd_case_ids_become_file_names(tmp_path: Path) -> None:
    save(tmp_path / "t.nii.gz", lesion((0, 3)))
    case = CasePaths("site 1/scan:2", tmp_path / "t.nii.gz", tmp_path / "t.nii.gz", None, "p")
    (done,) = evaluate_pairs([case], keep_in=tmp_path / "kept", figures=tmp_path / "figures")
    assert done.error is None
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["site 1%2Fscan%3A2.json"]
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["site 1%2Fscan%3A2.png"]


def test_two_workers_give_the_tables_of_one(cohort: Path) -> None:
    save(cohort / "pred" / "a.nii.gz", lesion((0, 3)) * 2)  # a failed case crosses processes as well
    one = evaluate(cohort)
    for file in (cohort / "out" / "cases").iterdir():
        file.unlink()
    assert evaluate(cohort, workers=2) == one


def test_workers_that_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    assert [workers_that_help(cases) for cases in (0, 1, 3, 4, 9, 400)] == [0, 0, 0, 2, 4, 8]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert workers_that_help(400) == 4


_STARTED = """
import multiprocessing, sys, time
from pathlib import Path
from sammed3d_ft.evaluation.cohort import evaluate_pairs
from sammed3d_ft.evaluation.pairing import pair_folders

def progress(cases):
    for number, case in enumerate(cases):
        if number == 1:
            print(*(child.pid for child in multiprocessing.active_children()), flush=True)
            time.sleep({seconds})
        yield case

if __name__ == "__main__":
    folder = Path(sys.argv[1])
    try:
        evaluate_pairs(pair_folders(folder / "pred", folder / "gt"), progress=progress, workers=2, keep_in=folder / "k")
    except Exception as error:
        print(type(error).__name__, error, flush=True)
"""


@pytest.fixture
def started(cohort: Path) -> Callable[[float], tuple[subprocess.Popen[str], list[int]]]:
    """An evaluation with two workers that waits after its first case; its process, and those of its workers."""

    def start(seconds: float) -> tuple[subprocess.Popen[str], list[int]]:
        script = cohort / "started.py"
        script.write_text(_STARTED.replace("{seconds}", str(seconds)))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, str(script), str(cohort)], stdout=subprocess.PIPE, text=True, env=environment
        )
        assert process.stdout is not None
        workers = [int(pid) for pid in process.stdout.readline().split()]
        assert len(workers) == 2
        return process, workers

    return start


@pytest.mark.skipif(sys.platform != "linux", reason="looks at processes in /proc")
def test_no_worker_outlives_a_killed_evaluation(
    started: Callable[[float], tuple[subprocess.Popen[str], list[int]]],
) -> None:
    process, workers = started(60)
    process.send_signal(signal.SIGKILL)
    process.wait()
    until = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in workers) and time.monotonic() < until:
        time.sleep(0.1)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]


def test_a_worker_ended_from_outside_is_said_in_one_line(
    cohort: Path, started: Callable[[float], tuple[subprocess.Popen[str], list[int]]]
) -> None:
    for name in "defghijk":  # enough cases for the lost process to be noticed
        for folder in ("gt", "pred"):
            save(cohort / folder / f"{name}.nii.gz", lesion((0, 3)))
    for folder in ("gt", "pred"):
        save(cohort / folder / "z.nii.gz", np.zeros((260, 260, 260), np.uint8))
    process, workers = started(0)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=60)
    assert "InputError an evaluation process was killed" in output
    assert (cohort / "k" / "a.json").is_file()
    evaluate_pairs(pair_folders(cohort / "pred", cohort / "gt"), keep_in=cohort / "k")


def test_a_folder_is_written_by_one_evaluation_at_a_time(cohort: Path) -> None:
    from sammed3d_ft.training.run_lock import locked_run

    with locked_run(cohort / "out"), pytest.raises(InputError, match="another process"):
        evaluate(cohort)
