"""Prediction of a cohort: failures are reported and do not stop the others; finished cases are skipped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from prompts import Click, write_clicks
from sammed3d_ft.dataset.manifest import Case, write_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.weights import save_safetensors
from sammed3d_ft.prompted.clicked_scan import ClickedScan
from sammed3d_ft.recipes.predict_cohort import run
from tests.support.tiny_cases import write_case

ROOT = Path(__file__).resolve().parents[2]


def cohort(folder: Path, count: int) -> tuple[Path, Path, Path]:
    """Manifest, folder of clicks, weights."""
    cases: list[Case] = []
    for number in range(count):
        case = write_case(folder / "data", f"case_{number:02d}", [((12.0, 12.0, 12.0), 15.0)], split="test")
        cases.append(Case(case.id, case.images, None, "test", None))
        affine = nib.load(case.images["PT"]).affine
        position = affine[:3, :3] @ np.full(3, 12.0) + affine[:3, 3]
        write_clicks(folder / "clicks" / f"{case.id}.json", [Click(tuple(position.tolist()), 1, 1)])
    write_manifest(folder / "manifest.json", cases)
    save_safetensors(folder / "model.safetensors", seeded_model("mini", seed=1).state_dict(), {})
    return folder / "manifest.json", folder / "clicks", folder / "model.safetensors"


def command(folder: Path, *launcher: str) -> list[str]:
    given = ["--clicks", str(folder / "clicks"), "--checkpoint", str(folder / "model.safetensors")]
    start = [sys.executable, *(launcher or ("-m",)), "sammed3d_ft.cli.main", "predict-cohort"]
    return [*start, str(folder / "manifest.json"), *given, "--out", str(folder / "out"), "--device", "cpu"]


ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}


def test_thirty_cases_of_which_three_are_broken_killed_and_restarted(tmp_path: Path) -> None:
    cohort(tmp_path, 30)
    whole = (tmp_path / "data" / "case_03_pt.nii.gz").read_bytes()
    (tmp_path / "data" / "case_03_pt.nii.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "clicks" / "case_11.json").unlink()
    write_clicks(tmp_path / "clicks" / "case_20.json", [Click((9e3, 0.0, 0.0), 1)])

    process = subprocess.Popen(
        command(tmp_path), cwd=tmp_path, env=ENVIRONMENT, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    records = tmp_path / "out" / "masks"
    while len(list(records.glob("case_*.predict.json"))) < 5:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = {path: path.stat().st_mtime_ns for path in records.glob("case_*.predict.json")}
    assert 5 <= len(before) < 27

    ended = subprocess.run(command(tmp_path), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode == 3
    assert f"{27 - len(before)} predicted, {len(before)} already done, 3 failed" in ended.stdout
    assert ended.stdout.endswith("(accumulated clicks)\n")
    told = [line for line in ended.stderr.splitlines() if line.startswith("failed: ")]
    assert [line.split(": ")[1] for line in told] == ["case_03", "case_11", "case_20"]
    assert "no click file" in told[1]
    assert "lies outside the image" in told[2]
    assert all(path.stat().st_mtime_ns == when for path, when in before.items())
    assert len(list(records.glob("case_*.nii.gz"))) == 27
    assert len(list((tmp_path / "out" / "lesions").glob("*.csv"))) == 27


def test_a_case_is_done_again_when_its_clicks_or_the_model_changed(tmp_path: Path) -> None:
    manifest, clicks, weights = cohort(tmp_path, 2)
    out = tmp_path / "out"

    def again(**more: bool | float) -> tuple[int, int]:
        outcome = run(manifest, clicks, weights, out, device="cpu", **more)  # type: ignore[arg-type]
        assert outcome.failed == {}
        return outcome.done, outcome.done_before

    assert again() == (2, 0)
    assert again() == (0, 2)
    assert again(figures=True) == (2, 0)
    assert len(list((out / "figures").glob("*.png"))) == 2
    write_clicks(clicks / "case_00.json", [Click((-10.0, 0.0, 80.0), 1, 1)])
    assert again() == (1, 1)
    (out / "masks" / "case_01.nii.gz").unlink()
    assert again() == (1, 1)
    record = out / "masks" / "case_01.predict.json"
    for name, now in (("flips", "false"), ("zoom", "true"), ("obey", "true")):
        was = {"true": "false", "false": "true"}[now]
        assert f'"{name}": {now}' in record.read_text()
        record.write_text(record.read_text().replace(f'"{name}": {now}', f'"{name}": {was}'))
        assert again() == (1, 1)
    record.write_text("{")
    assert again() == (1, 1)
    assert again(spacing_mm=4.0) == (2, 0)
    assert again(spacing_mm=4.0) == (0, 2)
    assert again(spacing_mm=4.0, accumulate=True) == (0, 2)
    assert again(spacing_mm=4.0, accumulate=False) == (2, 0)
    assert {row.split(",")[-1] for row in (out / "lesions" / "case_00.csv").read_text().split()[1:]} == {"false"}
    save_safetensors(weights, seeded_model("mini", seed=2).state_dict(), {})
    assert again() == (2, 0)


def test_what_is_wrong_for_all_cases_is_said_at_once(tmp_path: Path) -> None:
    manifest, clicks, weights = cohort(tmp_path, 1)
    with pytest.raises(InputError, match="no cases in split 'val'"):
        run(manifest, clicks, weights, tmp_path / "out", split="val")
    with pytest.raises(InputError, match="no such folder; expected one with a click file per case, such as case_00"):
        run(manifest, tmp_path / "nowhere", weights, tmp_path / "out")
    with pytest.raises(InputError, match="no weights at"):
        run(manifest, clicks, tmp_path / "no.pth", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_share_the_cases(tmp_path: Path) -> None:
    cohort(tmp_path, 5)
    (tmp_path / "clicks" / "case_01.json").unlink()  # the second process's
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0", "-m"]
    ended = subprocess.run(command(tmp_path, *launcher), cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True)
    assert ended.returncode != 0
    assert "4 predicted, 0 already done, 1 failed" in ended.stdout, ended.stderr[-2000:]
    assert ended.stderr.count("failed: case_01: no click file") == 1
    assert len(list((tmp_path / "out" / "masks").glob("*.nii.gz"))) == 4


def test_a_card_out_of_memory_on_one_case_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest, clicks, weights = cohort(tmp_path, 2)

    def segment(model: object, scan: ClickedScan, *others: object) -> None:
        if "case_00" in str(scan.image):
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB.")

    monkeypatch.setattr("sammed3d_ft.recipes.predict_cohort.segment", segment)
    outcome = run(manifest, clicks, weights, tmp_path / "out", device="cpu")
    assert outcome.failed == {"case_00": "CUDA out of memory. Tried to allocate 2 GiB."}
    assert outcome.done == 1
