"""A cohort, a config and stand-ins for trained models, for the tests of the benchmark."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

from sammed3d_ft.benchmark import runner
from sammed3d_ft.benchmark.segmenters import Source
from sammed3d_ft.benchmark.trainings import Training
from sammed3d_ft.benchmark.units import Failure
from sammed3d_ft.dataset.manifest import read_manifest
from sammed3d_ft.files import write_whole
from sammed3d_ft.images.crops import Region
from sammed3d_ft.images.grids import Volume
from sammed3d_ft.images.images import read_label
from sammed3d_ft.provenance import file_hash
from tests.support.tiny_cases import write_cohort
from tests.support.training_runs import YAML

FOLDS = {"x": ["train_0", "train_1"], "y": ["train_2", "train_3"], "z": ["train_4", "train_5"]}


def write_files(folder: Path) -> None:
    write_cohort(folder / "cohort", train=6, val=0, test=0)
    (folder / "folds.json").write_text(json.dumps({"folds": FOLDS}))
    (folder / "train.yaml").write_text(YAML.format(run="unused", manifest="unused", method="full"))


def write_config(folder: Path, **changes: Any) -> Path:
    content: dict[str, Any] = {
        "out": str(folder / "out"),
        "manifest": str(folder / "cohort" / "manifest.json"),
        "folds": str(folder / "folds.json"),
        "folds_key": "folds",
        "seeds": [0, 1],
        "clicks": [1, 5],
        "reference": "a",
        "rows": {"a": {"config": str(folder / "train.yaml")}, "b": {"config": str(folder / "train.yaml")}},
    }
    path = folder / "benchmark.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}))
    return path


def missed_voxels(row: str, first_x: int, seed: int, clicks: int) -> int:
    """Number of lesion voxels that the stand-in of a method omits; fewer after more clicks."""
    return (4 + first_x if row == "a" else 8 + 2 * first_x) + 3 * seed + (0 if clicks > 1 else 5)


def expected_dice(folder: Path, row: str, seeds: tuple[int, ...], clicks: int) -> np.ndarray:
    """By case, from the labels alone."""
    values = []
    for case in read_manifest(folder / "cohort" / "manifest.json").cases:
        assert case.label is not None
        truth = read_label(case.label).array > 0
        size, first_x = int(truth.sum()), int(np.argwhere(truth)[:, 0].min())
        kept = [size - missed_voxels(row, first_x, seed, clicks) for seed in seeds]
        values.append(np.mean([2 * n / (n + size) for n in kept]))
    return np.array(values)


@dataclass
class StandIn:
    """Clickable: the true lesion (everything above SUV 5) without some of its first voxels."""

    row: str
    seed: int
    log: list[Any]
    modalities: tuple[str, ...] = ("PT",)

    def set_image(self, images: Mapping[str, Volume]) -> None:
        self.pet = images["PT"].array
        assert images["PT"].source.path is not None
        self.log.append((self.row, self.seed, images["PT"].source.path.name.removesuffix("_pt.nii.gz")))
        self.clicks = 0

    def add_click(self, position_vox: Any, label: int = 1, lesion: int = 1) -> Any:
        self.clicks += 1
        truth = np.argwhere(self.pet > 5)
        mask = np.zeros(self.pet.shape, bool)
        kept = truth[missed_voxels(self.row, int(truth[:, 0].min()), self.seed, self.clicks) :]
        mask[tuple(kept.T)] = True
        x, y, z = mask.shape
        return SimpleNamespace(region=Region((0, 0, 0), (x, y, z)), mask=mask, predicted_iou=0.5)

    def remove(self, lesion: int) -> None:
        """Nothing is kept for further clicks."""


@dataclass
class Done:
    """Trainings that only write what marks a run as finished, and `StandIn` models; both are recorded."""

    trainings: list[str] = field(default_factory=list)
    images: list[tuple[str, int, str]] = field(default_factory=list)

    def run(self, config: Path, limit: int | None = None) -> tuple[str, list[Failure]]:
        """`runner.run` with the stand-ins."""
        return runner.run(config, limit, train=self.train, open_trained=self.open_trained)

    def train(self, training: Training, _: list[str]) -> str | None:
        self.trainings.append(f"{training.row} {training.fold} {training.seed}")
        write_whole(training.folder / "config.yaml", yaml.safe_dump(training.config.as_plain()))
        write_whole(training.folder / "manifest.sha256", file_hash(training.config.data.manifest))
        write_whole(training.folder / "export" / "model.safetensors", f"{training.row} {training.seed}")
        write_whole(training.folder / "summary.json", "{}")
        return None

    def open_trained(self, folder: Path, prompted: bool) -> Source:
        row, seed = (folder / "export" / "model.safetensors").read_text().split()
        return Source(prompted, {"model": f"{row} {seed}"}, lambda: StandIn(row, int(seed), self.images))


def current(out: Path, row: str, fold: str, what: str = "masks", seed: int = 0) -> Path:
    """The folder of masks, or of the evaluation, that the tables show."""
    run = out / "runs" / row / f"fold{fold}_seed{seed}"
    return run / what / json.loads((run / "current.json").read_text())[what]


def made_in(out: Path, *what: str) -> dict[Path, tuple[int, bytes]]:
    """Every file of masks and evaluations (or one of the two): when it was written, and its content."""
    files = (path for name in what or ("masks", "evaluation") for path in out.glob(f"runs/*/*/{name}/**/*"))
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files if path.is_file()}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def line_of(out: Path, row: str, block: str, metric: str = "dice") -> dict[str, str]:
    """The one line of table.csv."""
    (line,) = [
        line
        for line in rows_of(out / "table.csv")
        if (line["row"], line["block"], line["metric"]) == (row, block, metric)
    ]
    return line
