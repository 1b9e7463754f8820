"""Predict: one scan and a file of clicks to a mask on the scan's own grid, and a table of its lesions."""

from __future__ import annotations

import csv
import io
import json
import logging
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from tqdm import tqdm

from prompts.click_files import read_clicks
from prompts.clicks import Click, clicks_to_vox
from prompts.errors import InputError
from prompts.whole_files import whole_file, write_whole
from sammed3d_ft import __version__
from sammed3d_ft.data.images import read_image, write_float, write_mask
from sammed3d_ft.figures import draw_mip
from sammed3d_ft.inference.predictor import Predictor
from sammed3d_ft.lesions.table import lesion_table
from sammed3d_ft.model.weights import sha256_of, state_hash

_IMAGE_SUFFIXES = (".nii.gz", ".nii")
_log = logging.getLogger(__name__)


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
        out: the mask of all lesions, on the grid of ``image``; its record is ``<name>.predict.json``.
        ct: for a model that sees CT as its second channel.
        instances: image of lesion numbers to write.
        probability: image of the highest lesion probability to write.
        table: CSV to write, a row per lesion.
        figure: PNG to write, the scan's maximum-intensity projections with the mask; of PET only.

    Raises:
        InputError: anything wrong with the input; nothing has been written then.
    """
    started = time.perf_counter()
    _check_suffixes(out, instances, probability)
    record_path = out.with_name(_stem(out) + ".predict.json")
    _check_places(
        outputs=[path for path in (out, instances, probability, table, figure, record_path) if path is not None],
        inputs=[path for path in (image, clicks, checkpoint, ct, base) if path is not None],
    )

    # What is quick to check comes before the weights.
    scan = read_image(image)
    points = read_clicks(clicks, affine=scan.source.affine, shape=scan.source.shape)
    lesions, background = group_clicks(points, clicks_to_vox(points, scan.affine), clicks)
    predictor = Predictor.from_pretrained(checkpoint, device, base)
    model = predictor.model
    assert isinstance(model, nn.Module)  # as all that comes from a checkpoint
    first, *others = predictor.preprocessing.modalities
    if ct is not None and others != ["CT"]:
        raise InputError(f"{checkpoint} sees {first} alone; leave out --ct, or use a model of PT and CT")
    if figure is not None and first != "PT":
        raise InputError(f"--figure {figure}: drawn of PET, but {checkpoint} sees CT first; leave it out")
    images = {first: scan}
    if ct is not None:
        images["CT"] = read_image(ct)
    predictor.set_image(images)

    for lesion in tqdm(lesions, "predict", unit="lesion", leave=False, disable=None):
        predictor.add_clicks(lesion.positions_vox, lesion.labels, lesion.number)
    for position in background:
        holders = [lesion.number for lesion in lesions if predictor.crop_holds(position, lesion.number)]
        for number in holders:
            predictor.add_click(position, 0, number)
        if not holders:
            at = ", ".join(f"{c:.1f}" for c in scan.to_mm(position))
            _log.warning("the background click at RAS (%s) mm is in no lesion's crop: left out", at)

    numbered = predictor.instances()
    pet = scan.array if first == "PT" else None
    rows = _rows(predictor, lesions, numbered, pet)
    write_mask(out, predictor.mask(), scan)
    if instances is not None:
        write_mask(instances, numbered, scan)
    if probability is not None:
        write_float(probability, predictor.probability(), scan)
    if table is not None:
        write_whole(table, _csv(rows))
    if figure is not None:
        with whole_file(figure) as temporary:
            draw_mip(scan.array, scan.spacing_mm, temporary, prediction=numbered > 0, title=_stem(image))
    record = {
        "versions": _versions(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.perf_counter() - started, 2),
        "device": str(model.device),
        "checkpoint": str(checkpoint),
        "base": None if base is None else str(base),
        "model_hash": state_hash(model.state_dict()),
        "preprocessing": json.loads(predictor.preprocessing.to_json()),
        "accumulate_clicks": predictor.accumulate,
        "inputs": {
            name: {"path": str(path), "sha256": sha256_of(path)}
            for name, path in (("image", image), ("ct", ct), ("clicks", clicks))
            if path is not None
        },
        "outputs": {
            name: str(path)
            for name, path in (
                ("mask", out),
                ("instances", instances),
                ("probability", probability),
                ("table", table),
                ("figure", figure),
            )
            if path is not None
        },
        "lesions": rows,
    }
    write_whole(record_path, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return record


@dataclass
class ClickedLesion:
    """The clicks of one lesion, in the file's order."""

    number: int
    """In the instance image and the table, from 1."""
    name: int | str | None
    """What the click file calls it."""
    positions_vox: list[np.ndarray] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)


def group_clicks(
    clicks: Sequence[Click], coords_vox: np.ndarray, source: Path
) -> tuple[list[ClickedLesion], list[np.ndarray]]:
    """The lesions of a click file, in the order of their first clicks, and the clicks that belong to all.

    A lesion whose id is a whole number from 1 keeps it; other ids, and foreground clicks without one (each is
    a lesion of its own), get the lowest free numbers. Background clicks without an id belong to all lesions.

    Args:
        clicks: at least one.
        coords_vox: (N, 3) of the clicks, canonical voxels.
        source: the click file, for messages.

    Raises:
        InputError: no foreground click at all, or a lesion whose first click is background.
    """
    taken = {click.lesion for click in clicks if isinstance(click.lesion, int) and click.lesion >= 1}
    free = (number for number in range(1, len(clicks) + len(taken) + 1) if number not in taken)
    lesions: list[ClickedLesion] = []
    by_name: dict[int | str, ClickedLesion] = {}
    background: list[np.ndarray] = []
    for number, (click, position) in enumerate(zip(clicks, coords_vox, strict=True), start=1):
        name = click.lesion
        if name is None and click.label == 0:
            background.append(position)
            continue
        lesion = None if name is None else by_name.get(name)
        if lesion is None:
            if click.label == 0:
                raise InputError(
                    f"{source}: point {number} is the first of lesion {name!r} and background; "
                    "start each lesion with a foreground click"
                )
            lesion = ClickedLesion(name if isinstance(name, int) and name in taken else next(free), name)
            lesions.append(lesion)
            if name is not None:
                by_name[name] = lesion
        lesion.positions_vox.append(position)
        lesion.labels.append(click.label)
    if not lesions:
        raise InputError(f"{source}: holds no foreground click; each lesion needs at least one")
    return lesions, background


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
