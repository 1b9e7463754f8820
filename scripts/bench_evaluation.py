"""Compare speed and peak memory of evaluating one whole-body case with MONAI, surface-distance and panoptica.

python scripts/bench_evaluation.py [--lesions 5 50 200] [--repeats 3] [--threads 1] [--panoptica-python PYTHON]
python scripts/bench_evaluation.py --shape 60 60 80 --lesions 5 --repeats 1      # quick check that it runs

The synthetic case has 16 million voxels (200 x 200 x 400 of 2 mm), ellipsoid lesions of 0.1 to 50 ml, and a prediction
with shifted, missed, split, merged and spurious lesions. Ours computes all of `evaluate_case`, with PET; MONAI
computes Dice, HD95 and NSD; surface-distance NSD and HD95; panoptica, in the interpreter that has it, DSC, IoU, NSD and
HD95 of matched lesions. Tools alternate; each measurement runs in its own process, with the arrays loaded and the tool
warmed up (Linux only). Times are of the call only; memory is its peak resident memory above the value before.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

SPACING_MM = (2.0, 2.0, 2.0)
LEAST_ML, MOST_ML = 0.1, 50.0
NSD_MM = 2.0


def synthetic(shape: tuple[int, int, int], lesions: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Ground truth and prediction (bool) and PET (float32) of a case with the given number of lesions."""
    rng = np.random.default_rng(seed)
    truth, pred = np.zeros(shape, bool), np.zeros(shape, bool)
    taken = np.zeros(shape, bool)
    pet = rng.gamma(2.0, 0.4, shape).astype(np.float32)
    voxel_ml = float(np.prod(SPACING_MM)) / 1000
    placed = 0
    while placed < lesions:
        volume = np.exp(rng.uniform(np.log(LEAST_ML), np.log(MOST_ML)))
        radii = (volume / voxel_ml * 0.75 / np.pi) ** (1 / 3) * np.array([1.0, 1.25, 0.8])[rng.permutation(3)]
        centre = rng.uniform(radii + 2, np.array(shape) - radii - 3)
        box, ball = ellipsoid(shape, centre, radii)
        if (taken[box] & ball).any():
            continue
        truth[box] |= ball
        pet[box][ball] += np.float32(rng.uniform(3, 30))
        box, margin = ellipsoid(shape, centre, radii + 3)
        taken[box] |= margin
        placed += 1
        fate = rng.random()
        if fate < 0.15:  # missed
            continue
        box, guess = ellipsoid(shape, centre + rng.normal(0, 0.15, 3) * radii, radii * rng.uniform(0.75, 1.2, 3))
        if fate < 0.25 and guess.shape[2] > 3:  # split in two
            guess[:, :, guess.shape[2] // 2] = False
        pred[box] |= guess
        if fate > 0.93:  # merged with its neighbourhood
            box, bridge = ellipsoid(shape, centre + np.array([0, 0, radii[2] + 3]), np.array([1.5, 1.5, 6.0]))
            pred[box] |= bridge
        if rng.random() < 0.2:  # spurious
            box, ball = ellipsoid(shape, rng.uniform(5, np.array(shape) - 6), rng.uniform(1.0, 4.0, 3))
            pred[box] |= ball
    return {"truth": truth, "pred": pred, "pet": pet}


def around(shape: tuple[int, int, int], centre: np.ndarray, radii: np.ndarray) -> tuple[slice, slice, slice]:
    first = np.maximum(np.floor(centre - radii), 0).astype(int)
    last = np.minimum(np.ceil(centre + radii), np.array(shape) - 1).astype(int)
    return slice(first[0], last[0] + 1), slice(first[1], last[1] + 1), slice(first[2], last[2] + 1)


def ellipsoid(
    shape: tuple[int, int, int], centre: np.ndarray, radii: np.ndarray
) -> tuple[tuple[slice, slice, slice], np.ndarray]:
    """The bounding box of an ellipsoid in the volume, and a mask of its voxels."""
    box = around(shape, centre, radii)
    distance: Any = sum(((axis - c) / r) ** 2 for axis, c, r in zip(np.ogrid[box], centre, radii, strict=True))
    return box, distance <= 1


def ours(truth: np.ndarray, pred: np.ndarray, pet: np.ndarray) -> Callable[[], Any]:
    from sammed3d_ft.evaluation import evaluate_case

    return lambda: evaluate_case(truth, pred, SPACING_MM, pet)


def monai(truth: np.ndarray, pred: np.ndarray, pet: np.ndarray) -> Callable[[], Any]:
    import torch
    from monai.metrics import compute_dice, compute_hausdorff_distance, compute_surface_dice

    y, y_pred = (torch.from_numpy(mask)[None, None] for mask in (truth, pred))

    def run() -> list[float]:
        dice = compute_dice(y_pred, y)
        hd95 = compute_hausdorff_distance(y_pred, y, include_background=True, percentile=95, spacing=SPACING_MM)
        nsd = compute_surface_dice(y_pred, y, [NSD_MM], include_background=True, spacing=SPACING_MM)
        return [float(value) for value in (dice, hd95, nsd)]

    return run


def surface_distance(truth: np.ndarray, pred: np.ndarray, pet: np.ndarray) -> Callable[[], Any]:
    import surface_distance as library

    def run() -> list[float]:
        distances = library.compute_surface_distances(truth, pred, SPACING_MM)
        nsd = library.compute_surface_dice_at_tolerance(distances, NSD_MM)
        return [nsd, library.compute_robust_hausdorff(distances, 95)]

    return run


def panoptica(truth: np.ndarray, pred: np.ndarray, pet: np.ndarray) -> Callable[[], Any]:
    from panoptica import (
        ConnectedComponentsInstanceApproximator,
        InputType,
        NaiveThresholdMatching,
        Panoptica_Evaluator,
    )
    from panoptica.metrics import Metric

    evaluator = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(),
        instance_matcher=NaiveThresholdMatching(matching_threshold=0.5),
        instance_metrics=[Metric.DSC, Metric.IOU, Metric.NSD, Metric.HD95],
        global_metrics=[],
    )
    truth8, pred8 = truth.astype(np.uint8), pred.astype(np.uint8)
    return lambda: evaluator.evaluate(pred8, truth8, voxelspacing=SPACING_MM, verbose=False)


TOOLS = {"ours": ours, "MONAI": monai, "surface-distance": surface_distance, "panoptica": panoptica}


def resident_mb(field: str) -> float:
    """Current resident memory (VmRSS) or its peak (VmHWM), in 10^6 bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def measure(tool: str, folder: Path) -> dict[str, float]:
    """Run in a separate process: seconds of one call, and its peak resident memory above the value before."""
    small = synthetic((48, 48, 48), 2)
    TOOLS[tool](**small)()
    arrays = {name: np.load(folder / f"{name}.npy") for name in ("truth", "pred", "pet")}
    call = TOOLS[tool](**arrays)
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak reached during imports
    before = resident_mb("VmRSS")
    start = time.perf_counter()
    call()
    return {"seconds": time.perf_counter() - start, "peak_mb": resident_mb("VmHWM") - before}


def in_child(tool: str, folder: Path, python: str, threads: int) -> dict[str, float]:
    root = Path(__file__).resolve().parents[1]
    environment = (
        os.environ
        | {"PYTHONPATH": str(root)}
        | {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    )
    command = [python, str(Path(__file__).resolve()), "--child", tool, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{tool}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lesions", type=int, nargs="+", default=[5, 50, 200])
    parser.add_argument("--shape", type=int, nargs=3, default=[200, 200, 400])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--panoptica-python", help="Python interpreter of an environment with panoptica")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(measure(arguments.child[0], Path(arguments.child[1]))))
        return

    from rich.console import Console
    from rich.table import Table

    interpreters = {tool: sys.executable for tool in TOOLS if tool != "panoptica"}
    if arguments.panoptica_python:
        interpreters["panoptica"] = arguments.panoptica_python
    x, y, z = arguments.shape
    console = Console(width=120)
    for lesions in arguments.lesions:
        measured: dict[str, list[dict[str, float]]] = {tool: [] for tool in interpreters}
        with tempfile.TemporaryDirectory() as name:
            for what, array in synthetic((x, y, z), lesions).items():
                np.save(Path(name) / f"{what}.npy", array)
            for _ in range(arguments.repeats):
                for tool, python in interpreters.items():
                    measured[tool].append(in_child(tool, Path(name), python, arguments.threads))
        table = Table(
            title=f"{lesions} lesions, {x} x {y} x {z} voxels, {platform.machine()}, {arguments.threads} thread"
        )
        for column in ("tool", "seconds (median)", "least", "most", "times ours", "peak MB above the data"):
            table.add_column(column, justify="left" if column == "tool" else "right")
        ours_s = statistics.median(run["seconds"] for run in measured["ours"])
        for tool, runs in measured.items():
            seconds = [run["seconds"] for run in runs]
            median = statistics.median(seconds)
            table.add_row(
                tool,
                *(f"{value:.3f}" for value in (median, min(seconds), max(seconds))),
                f"{median / ours_s:.1f}",
                f"{statistics.median(run['peak_mb'] for run in runs):.0f}",
            )
        console.print(table)


if __name__ == "__main__":
    main()
