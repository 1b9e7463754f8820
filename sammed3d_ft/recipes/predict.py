"""Predict: one scan and a file of clicks to a mask on the scan's own grid, and a table of its lesions."""

from __future__ import annotations

import csv
import io
import json
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from prompts.errors import InputError
from prompts.whole_files import write_whole
from sammed3d_ft import __version__
from sammed3d_ft.data.images import read_image, write_float, write_mask
from sammed3d_ft.figures import draw_mip
from sammed3d_ft.inference.predictor import Predictor
from sammed3d_ft.lesions.table import lesion_table
from sammed3d_ft.model.weights import sha256_of, state_hash
from sammed3d_ft.recipes.clicked_scan import ClickedLesion, ClickedScan

_IMAGE_SUFFIXES = (".nii.gz", ".nii")
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A predictor, and what the record of a prediction says of it."""

    predictor: Predictor
    facts: dict[str, Any]


@dataclass(frozen=True)
class Outputs:
    """Where the results of one scan go; None where one is not asked for."""

    mask: Path
    """Of all lesions, on the grid of the image."""
    instances: Path | None = None
    """Image of lesion numbers."""
    probability: Path | None = None
    """Image of the highest lesion probability."""
    table: Path | None = None
    """CSV with a row per lesion."""
    figure: Path | None = None
    """PNG of the scan's maximum-intensity projections with the mask; of PET only."""

    @property
    def record(self) -> Path:
        return self.mask.with_name(_stem(self.mask) + ".predict.json")

    @property
    def asked_for(self) -> dict[str, Path]:
        return {name: path for name, path in vars(self).items() if path is not None}


def run(
    image: Path,
    clicks: Path,
    checkpoint: Path,
    out: Path,
    ct: Path | None = None,
    instances: Path | None = None,
    probability: Path | None = None,
    table: Path | None = None,
    base: Path | None = None,
    device: str | None = None,
    figure: Path | None = None,
) -> dict[str, Any]:
    """Segment the clicked lesions of one scan and return the record of it, as written beside the mask.

    Args:
        image: the first modality the model sees: PET in SUV, or CT for a model of CT alone.
        clicks: a click file of any form that `prompts` reads.
        checkpoint, base, device: see `Predictor.from_pretrained`.
        out, instances, probability, table, figure: see `Outputs`.
        ct: for a model that sees CT as its second channel.

    Raises:
        InputError: anything wrong with the input; nothing has been written then.
    """
    started = time.perf_counter()
    _check_suffixes(out, instances, probability)
    outputs = Outputs(out, instances, probability, table, figure)
    _check_places(
        outputs=[*outputs.asked_for.values(), outputs.record],
        inputs=[path for path in (image, clicks, checkpoint, ct, base) if path is not None],
    )
    scan = ClickedScan.read(image, clicks)  # what is quick to check comes before the weights
    return segment(load_model(checkpoint, device, base), scan, ct, outputs, started)


def load_model(checkpoint: Path, device: str | None = None, base: Path | None = None) -> LoadedModel:
    """A model to segment scans with; see `Predictor.from_pretrained`."""
    predictor = Predictor.from_pretrained(checkpoint, device, base)
    model = predictor.model
    assert isinstance(model, nn.Module)  # as all that comes from a checkpoint
    facts = {
        "versions": _versions(),
        "device": str(model.device),
        "checkpoint": str(checkpoint),
        "base": None if base is None else str(base),
        "model_hash": state_hash(model.state_dict()),
        "preprocessing": json.loads(predictor.preprocessing.to_json()),
        "accumulate_clicks": predictor.accumulate,
        "follow": predictor.follow,
    }
    return LoadedModel(predictor, facts)


def input_hashes(image: Path, clicks: Path, ct: Path | None) -> dict[str, dict[str, str]]:
    """Path and SHA-256 of what a prediction is made of."""
    given = (("image", image), ("ct", ct), ("clicks", clicks))
    return {name: {"path": str(path), "sha256": sha256_of(path)} for name, path in given if path is not None}


def segment(
    model: LoadedModel, scan: ClickedScan, ct: Path | None, outputs: Outputs, started: float
) -> dict[str, Any]:
    """Segments one scan, writes what is asked for, the record last, and returns the record.

    Args:
        started: `time.perf_counter` when work on this scan began.

    Raises:
        InputError: model and images do not fit, or a file cannot be written.
    """
    predictor, image = model.predictor, scan.volume
    first, *others = predictor.preprocessing.modalities
    if ct is not None and others != ["CT"]:
        raise InputError(f"{model.facts['checkpoint']} sees {first} alone; leave out --ct, or use a model of PT and CT")
    if outputs.figure is not None and first != "PT":
        raise InputError(
            f"--figure {outputs.figure}: drawn of PET, but {model.facts['checkpoint']} sees CT first; leave it out"
        )
    images = {first: image}
    if ct is not None:
        images["CT"] = read_image(ct)
    predictor.set_image(images)

    for lesion in tqdm(scan.lesions, "predict", unit="lesion", leave=False, disable=None):
        predictor.add_clicks(lesion.positions_vox, lesion.labels, lesion.number)
    for position in scan.background_vox:
        holders = [lesion.number for lesion in scan.lesions if predictor.crop_holds(position, lesion.number)]
        for number in holders:
            predictor.add_click(position, 0, number)
        if not holders:
            at = ", ".join(f"{c:.1f}" for c in image.to_mm(position))
            _log.warning("the background click at RAS (%s) mm is in no lesion's crop: left out", at)

    numbered = predictor.instances()
    rows = _rows(predictor, scan.lesions, numbered, image.array if first == "PT" else None)
    write_mask(outputs.mask, predictor.mask(), image)
    if outputs.instances is not None:
        write_mask(outputs.instances, numbered, image)
    if outputs.probability is not None:
        write_float(outputs.probability, predictor.probability(), image)
    if outputs.table is not None:
        write_whole(outputs.table, _csv(rows))
    if outputs.figure is not None:
        draw_mip(image.array, image.spacing_mm, outputs.figure, prediction=numbered > 0, title=_stem(scan.image))
    record = {
        **model.facts,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.perf_counter() - started, 2),
        "inputs": input_hashes(scan.image, scan.clicks, ct),
        "outputs": {name: str(path) for name, path in outputs.asked_for.items()},
        "lesions": rows,
    }
    write_whole(outputs.record, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return record


def _rows(
    predictor: Predictor, lesions: Sequence[ClickedLesion], instances: np.ndarray, pet: np.ndarray | None
) -> list[dict[str, Any]]:
    """A row per clicked lesion, also where nothing was found; None is n/a."""
    found = {row.lesion_id: row.as_row() for row in lesion_table(instances, predictor.volume.affine, pet)}
    rows = []
    for lesion in sorted(lesions, key=lambda lesion: lesion.number):
        prediction = predictor.lesion(lesion.number)
        labels = [label for _, label in prediction.clicks]
        row: dict[str, Any] = {"lesion_id": lesion.number, "name": lesion.name}
        row |= found.get(lesion.number, {"voxels": 0, "volume_ml": 0.0})
        row |= {
            "predicted_iou": prediction.predicted_iou,
            "foreground_clicks": labels.count(1),
            "background_clicks": labels.count(0),
        }
        # JSON knows no NaN: n/a is null there and an empty cell in the CSV.
        rows.append({key: None if value != value else value for key, value in row.items()})
    return rows


def _csv(rows: Sequence[dict[str, Any]]) -> str:
    columns = max(rows, key=len).keys()
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _check_suffixes(*images: Path | None) -> None:
    for path in images:
        if path is not None and not path.name.lower().endswith(_IMAGE_SUFFIXES):
            raise InputError(f"{path}: images are written as .nii or .nii.gz")


def _check_places(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """What cannot or must not be written is refused before anything is computed; folders are made."""
    seen = {path.resolve(): "an input" for path in inputs}
    for path in outputs:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name the file to write")
        place = path.resolve()
        if place in seen:
            raise InputError(f"{path} would overwrite {seen[place]}; name another file")
        seen[place] = "another output"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path.parent}: cannot be created ({error.strerror})") from error


def _stem(path: Path) -> str:
    return next(path.name[: -len(end)] for end in _IMAGE_SUFFIXES if path.name.lower().endswith(end))


def _versions() -> dict[str, str]:
    packages = ("torch", "numpy", "scipy", "nibabel")
    return {"sammed3d-ft": __version__, "python": platform.python_version()} | {
        package: version(package) for package in packages
    }
