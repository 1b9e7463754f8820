"""Measure what large scans and cohorts cost: the lesion store, the simulated user, and a training from many phantoms.

python scripts/bench_scale.py [--before CHECKOUT] [--shape 400 400 326] [--lesions 112] [--repeats 3]
python scripts/bench_scale.py --train FOLDER [--cases 100] [--lesions 31] [--epochs 2] [key.path=value ...]
python scripts/bench_scale.py --shape 60 60 50 --lesions 3 --repeats 1      # quick check that it runs

The first form writes one synthetic scan and measures, each in its own process and in turn with the code of another
checkout (``--before``):
- store: bytes on disk, and CPU time and memory of writing it;
- user: CPU time per lesion of the simulated user with a stand-in for the network, so that only its surroundings count;
- leaking: the same where every mask leaves its crop, so that most of the scan is followed, for at most eight lesions.
CPU times hardly depend on what else the machine does. Memory is the peak above the value before (Linux only).

The second form writes whole-body phantoms to FOLDER, unless they are there, and trains from them: size of scans, lesion
store and embeddings on disk, memory of all processes of the run, time per epoch and of a validation. Settings are those
of ``configs/mini.yaml``, with one view, tracking off, and what is given at the end.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from bench_evaluation import ellipsoid, resident_mb

SPACING_MM = (2.04, 2.04, 3.0)
CLICKS = (1, 3, 5, 10)
MOST_LEAKING = 8
ROOT = Path(__file__).resolve().parents[1]


def write_scan(folder: Path, shape: tuple[int, int, int], lesions: int) -> None:
    """A PET with bright ellipsoids, and their mask, uncompressed."""
    import nibabel as nib

    rng = np.random.default_rng(0)
    pet, label = np.ones(shape, np.float32), np.zeros(shape, np.uint8)
    taken, placed = np.zeros(shape, bool), 0
    while placed < lesions:
        radii = rng.uniform(1.5, 7, 3)
        centre = rng.uniform(radii + 1, np.array(shape) - radii - 2)
        box, margin = ellipsoid(shape, centre, radii + 2)
        if taken[box].any():
            continue
        taken[box] |= margin
        box, inside = ellipsoid(shape, centre, radii)
        label[box][inside] = 1
        pet[box][inside] = rng.uniform(5, 10)
        placed += 1
    for name, array in (("PT", pet), ("label", label)):
        nib.save(nib.Nifti1Image(array, np.diag([*SPACING_MM, 1.0])), folder / f"{name}.nii")


class StandIn:
    """Acts like the network: logits are the crop's own z-scores less a level, with a bump at each click."""

    image_size, in_channels, variant = 128, 1, SimpleNamespace(logits_size=32)

    def __init__(self, level: float) -> None:
        import torch

        self.device, self.level = torch.device("cpu"), level

    def image_encoder(self, image: Any) -> Any:
        from torch.nn import functional

        return functional.avg_pool3d(image, 4)

    def decode(self, embedding: Any, coords_vox: Any, labels: Any, previous: Any = None) -> tuple[Any, Any]:
        import torch

        place, bumps = torch.arange(32) * 4 + 1.5, torch.zeros(())
        for position, label in zip(coords_vox[0], labels[0], strict=True):
            x, y, z = (torch.exp(-((place - p) ** 2) / 200) for p in position)
            bumps = bumps + (2 * label - 1) * x[:, None, None] * y[:, None] * z
        return embedding - self.level + bumps, torch.full((1, 1), 0.5)


def measure_store(folder: Path) -> dict[str, float]:
    from sammed3d_ft.dataset.manifest import Case
    from sammed3d_ft.prompted.lesion_store import prepare_case
    from sammed3d_ft.prompted.preprocessing import Preprocessing

    with tempfile.TemporaryDirectory(dir=folder) as store:
        before, start = _measured_from(), time.process_time()
        case = Case("scan", {"PT": folder / "PT.nii"}, folder / "label.nii")
        prepare_case(Path(store), case, Preprocessing(("PT",), 1.5))
        seconds = time.process_time() - start
        return {"GB on disk": size_gb(Path(store)), "CPU s": seconds, "peak MB": resident_mb("VmHWM") - before}


def measure_user(folder: Path, leaking: bool) -> dict[str, float]:
    import torch

    from sammed3d_ft.images.images import read_image, read_label
    from sammed3d_ft.prompted.predictor import Predictor
    from sammed3d_ft.prompted.preprocessing import Preprocessing
    from sammed3d_ft.prompted.simulated_user import simulate_case

    torch.set_num_threads(1)
    images, label = {"PT": read_image(folder / "PT.nii")}, read_label(folder / "label.nii")
    if leaking:
        from prompts.lesions import lesions_from_mask

        lesions, _ = lesions_from_mask(label.array)
        label.array[lesions > MOST_LEAKING] = 0
    predictor = Predictor(StandIn(-9.0 if leaking else 2.0), Preprocessing(("PT",), 1.5))  # type: ignore[arg-type]
    before, start = _measured_from(), time.process_time()
    score = simulate_case(predictor, images, label, CLICKS[:1] if leaking else CLICKS, case="scan")
    seconds = time.process_time() - start
    return {
        "CPU s per lesion": seconds / len(score.lesions),
        "clicks per lesion": len(score.clicks) / len(score.lesions),
        "peak MB": resident_mb("VmHWM") - before,
        "MB kept": resident_mb("VmRSS") - before,
        "Dice at 1 click": score.lesions[0].dice[1],
    }


MEASURED = {
    "store": measure_store,
    "user": lambda folder: measure_user(folder, leaking=False),
    "leaking": lambda folder: measure_user(folder, leaking=True),
}


def _measured_from() -> float:
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak reached so far
    return resident_mb("VmRSS")


def size_gb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e9


def in_child(code: Path, *arguments: str) -> dict[str, float]:
    environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def one_scan(before: Path | None, shape: tuple[int, int, int], lesions: int, repeats: int) -> None:
    from rich.console import Console
    from rich.table import Table

    codes = {"now": ROOT} if before is None else {"before": before.resolve(), "now": ROOT}
    table = Table(title=f"{' x '.join(map(str, shape))} voxels, {lesions} lesions; load {os.getloadavg()[0]:.1f}")
    for column in ("", "", *codes):
        table.add_column(column, justify="left" if column == "" else "right")
    with tempfile.TemporaryDirectory() as name:
        write_scan(Path(name), shape, lesions)
        for what in MEASURED:
            runs: dict[str, list[dict[str, float]]] = {of: [] for of in codes}
            for _ in range(repeats):
                for of, code in codes.items():
                    runs[of].append(in_child(code, what, name))
            for figure in runs["now"][0]:
                medians = [statistics.median(run[figure] for run in runs[of]) for of in codes]
                table.add_row(what, figure, *(f"{median:.3f}" for median in medians))
    Console(width=100).print(table)


def write_phantoms(folder: Path, cases: int, lesions: int) -> Path:
    """Whole-body phantoms with PET and label; and one for validation for every fifty."""
    from sammed3d_ft.dataset.manifest import Case, write_manifest
    from sammed3d_ft.images.grids import from_array
    from sammed3d_ft.images.images import write_float, write_mask
    from sammed3d_ft.phantom.simulate import make_phantom

    manifest, val, listed = folder / f"manifest_{cases}_{lesions}.json", max(cases // 50, 1), []
    for number in range(cases + val):
        name = f"phantom{number:03d}_{lesions}"
        pet, label = folder / f"{name}_pet.nii.gz", folder / f"{name}_label.nii.gz"
        if not label.exists():
            phantom = make_phantom(0, number, lesions=lesions)
            like = from_array(phantom.pet, phantom.pet_affine)
            write_float(pet, phantom.pet, like)
            write_mask(label, phantom.label, like)
        listed.append(Case(name, {"PT": pet}, label, "train" if number < cases else "val"))
    write_manifest(manifest, listed)
    return manifest


def run_training(manifest: Path, run: Path, epochs: int, overrides: list[str]) -> dict[str, float]:
    """Train in this process, and note how long its parts take."""
    from sammed3d_ft.dataset.manifest import read_manifest
    from sammed3d_ft.prompted.task import PromptedTask
    from sammed3d_ft.recipes import train as recipe

    spent: dict[str, list[float]] = {"prepare": [], "score": []}
    for name, times in spent.items():

        def timed(
            *given: Any, real: Any = getattr(PromptedTask, name), times: list[float] = times, **named: Any
        ) -> Any:
            start = time.perf_counter()
            result = real(*given, **named)
            times.append(time.perf_counter() - start)
            return result

        setattr(PromptedTask, name, timed)
    settings = [f"run.dir={run}", f"data.manifest={manifest}", f"optim.epochs={epochs}", "cache.views=1"]
    settings += ["track.trackers=[]", f"validate.every_epochs={epochs}", "validate.test=false", *overrides]
    config = recipe.load_config(ROOT / "configs" / "mini.yaml", settings)
    start = time.perf_counter()
    recipe.train(config)
    whole = time.perf_counter() - start
    facts = json.loads((run / "run.json").read_text())
    return {
        "lesions": facts["samples"],
        "preparing s": spent["prepare"][0],
        "s per epoch": (whole - sum(spent["prepare"]) - sum(spent["score"])) / epochs,
        "validation s": spent["score"][0],
        "final scores s": spent["score"][-1],
        "training scans GB": sum(case.images["PT"].stat().st_size for case in read_manifest(manifest).split("train"))
        / 1e9,
        "lesion store GB": size_gb(run / "cache" / "lesions"),
        "embeddings GB": size_gb(run / "cache") - size_gb(run / "cache" / "lesions"),
        "CPU s of the main process": time.process_time(),
    }


def training(folder: Path, cases: int, lesions: int, epochs: int, overrides: list[str]) -> None:
    import psutil

    folder = folder.resolve()
    manifest = write_phantoms(folder, cases, lesions)
    with tempfile.TemporaryDirectory(dir=folder.parent) as name:
        arguments = ["training", str(manifest), f"{name}/run", str(epochs), *overrides]
        command = [sys.executable, __file__, "--child", *arguments]
        child = psutil.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True)
        highest = {"own memory": 0.0, "with mapped files": 0.0}

        def watch() -> None:
            while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
                seen = []
                for process in (child, *child.children(recursive=True)):
                    try:
                        seen.append(process.memory_full_info())
                    except psutil.Error:  # it has ended meanwhile
                        continue
                for what, figure in (("own memory", "uss"), ("with mapped files", "pss")):
                    highest[what] = max(highest[what], sum(getattr(info, figure) for info in seen) / 1e9)
                time.sleep(1)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        output, _ = child.communicate()
        if child.returncode:
            raise SystemExit(f"the training ended with exit code {child.returncode}")
    found = json.loads(output.splitlines()[-1])
    print(f"{cases} phantoms for training, load {os.getloadavg()[0]:.1f}, {os.cpu_count()} cores")
    for what, value in (found | {f"peak GB, {what}": value for what, value in highest.items()}).items():
        print(f"  {what:32} {value:.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, help="another checkout, measured in turn with this one")
    parser.add_argument("--shape", type=int, nargs=3, default=[400, 400, 326])
    parser.add_argument("--lesions", type=int, help="of the scan (112), or of each phantom (31)")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--train", type=Path, metavar="FOLDER", help="train from phantoms written there")
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings of the training")
    given = parser.parse_args()
    if given.child and given.child[0] == "training":
        manifest, run, epochs, *overrides = given.child[1:]
        print(json.dumps(run_training(Path(manifest), Path(run), int(epochs), overrides)))
    elif given.child:
        print(json.dumps(MEASURED[given.child[0]](Path(given.child[1]))))
    elif given.train:
        training(given.train, given.cases, given.lesions or 31, given.epochs, given.overrides)
    else:
        x, y, z = given.shape
        one_scan(given.before, (x, y, z), given.lesions or 112, given.repeats)


if __name__ == "__main__":
    main()
