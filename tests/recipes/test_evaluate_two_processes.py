"""Two processes of a launcher share the cases of an evaluation and write the tables of one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.cohort_files import lesion, save, write_cohort

ROOT = Path(__file__).resolve().parents[2]

# Notes which process stores which case: results are written whole, by renaming.
_COMMAND = """
import os, sys
from pathlib import Path
from sammed3d_ft.cli.main import main

def watch(event, arguments):
    if event == "os.rename" and Path(arguments[1]).parent.name == "cases":
        name = f"{os.environ['RANK']}_of_{os.environ['WORLD_SIZE']}_{Path(arguments[1]).stem}"
        Path(os.environ["PROBE"], name).touch()

if __name__ == "__main__":
    sys.addaudithook(watch)
    main()
"""


def launched(processes: int, cohort: Path, out: Path) -> tuple[subprocess.CompletedProcess[str], set[str]]:
    """Runs the command by accelerate on a CPU; what each process evaluated."""
    script, probe = cohort / "command.py", out.with_suffix(".probe")
    script.write_text(_COMMAND)
    probe.mkdir()
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(processes)]
    launcher += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    launcher += ["--multi_gpu", "--main_process_port", "0"] if processes > 1 else []
    arguments = ["evaluate", "--pred", cohort / "pred", "--gt", cohort / "gt", "--pet", cohort / "pet", "--out", out]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [*launcher, script, *arguments, "--compat", "autopet", "--no-figures", "--workers", "1"],
        env={**environment, "PROBE": str(probe), "RANK": "0", "WORLD_SIZE": "1"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    return ended, {path.name for path in probe.iterdir()}


@pytest.mark.skipif(sys.platform == "win32", reason="the launcher's processes need gloo")
@pytest.mark.slow
def test_two_processes_give_the_tables_of_one(tmp_path: Path) -> None:
    cohort = write_cohort(tmp_path / "cohort")
    one, did = launched(1, cohort, tmp_path / "one")
    assert one.returncode == 0, one.stderr[-3000:]
    assert did == {"0_of_1_a", "0_of_1_b", "0_of_1_c"}
    two, did = launched(2, cohort, tmp_path / "two")
    assert two.returncode == 0, two.stderr[-3000:]
    assert did == {"0_of_2_a", "1_of_2_b", "0_of_2_c"}  # both worked, each on its share

    for name in ("cases.csv", "lesions.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()
    summaries = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("one", "two")]
    for summary in summaries:
        del summary["written"]
    assert summaries[0] == summaries[1]
    assert two.stdout.count("3 cases of 3 patients") == 1  # reported only by the first process
    assert (tmp_path / "two" / "report.html").is_file()

    save(cohort / "pred" / "b.nii.gz", lesion((0, 3)) * 2)  # the second process's case
    failed, did = launched(2, cohort, tmp_path / "failed")
    assert failed.returncode != 0
    assert "failed b" in failed.stdout
    assert (tmp_path / "failed" / "cases.csv").read_text().count("not binary") == 1
