"""Predict: one scan to a mask on its own grid and a table of its lesions, by clicks or by an automatic network."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from prompts.lesions import lesions_from_mask
from sammed3d_ft.automatic.segmenter import AutomaticSegmenter, is_automatic
from sammed3d_ft.dataset.plausibility import check_suv, doubts
from sammed3d_ft.errors import InputError
from sammed3d_ft.figures.mip import draw_mip
from sammed3d_ft.files import without_nan, write_csv, write_whole
from sammed3d_ft.images.images import Volume, image_stem, read_image, write_float, write_mask
from sammed3d_ft.images.outputs import check_image_names, check_places, record_beside
from sammed3d_ft.lesions.table import TABLE_COLUMNS, lesion_table
from sammed3d_ft.model.weights import origin
from sammed3d_ft.prompted.clicked_scan import ClickedLesion, ClickedScan
from sammed3d_ft.prompted.predictor import Predictor
from sammed3d_ft.provenance import MASK_PACKAGES, file_hashes, package_versions, state_hash

if TYPE_CHECKING:
    from sammed3d_ft.dicom.series import Series

_log = logging.getLogger(__name__)

CLICKED_COLUMNS = (
    *("lesion_id", "name", *TABLE_COLUMNS[1:]),
    *("predicted_iou", "foreground_clicks", "background_clicks", "accumulate_clicks"),
)
"""Of the CSV of lesions; a lesion in which nothing was found has empty cells."""


@dataclass(frozen=True)
class Found:
    """The lesions found on a scan; arrays are (X, Y, Z), canonical."""

    mask: np.ndarray
    instances: np.ndarray
    probability: Callable[[], np.ndarray]
    columns: Sequence[str]
    rows: list[dict[str, Any]]
    made: Literal["SEMIAUTOMATIC", "AUTOMATIC"]
    """How, in DICOM's words."""


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
    seg: Path | None = None
    """DICOM SEG with a segment per lesion, on the DICOM series that the image was imported from."""

    @property
    def record(self) -> Path:
        return record_beside(self.mask, "predict")

    @property
    def asked_for(self) -> dict[str, Path]:
        return {name: path for name, path in vars(self).items() if path is not None}


def run(
    image: Path,
    clicks: Path | None,
    checkpoint: Path,
    outputs: Outputs,
    *,
    ct: Path | None = None,
    start: Path | None = None,
    base: Path | None = None,
    device: str | None = None,
    flips: bool = False,
    spacing_mm: float | None = None,
    obey: bool = True,
    accumulate: bool | None = None,
    source: Path | None = None,
    series: str | None = None,
) -> dict[str, Any]:
    """Segment one scan and return the record of it, as written beside the mask.

    The export of an automatic network segments the scan without clicks; its lesions are the 18-connected components.

    Args:
        image: the first modality the model sees: PET in SUV, or CT for a model of CT alone.
        clicks: a click file of any form that `prompts` reads; None to click each lesion of ``start`` once, and for an
            automatic network, which takes none of ``clicks``, ``start``, ``base``, ``flips``, ``spacing_mm``,
            ``accumulate``.
        checkpoint, base, device, flips, spacing_mm, obey, accumulate: see `Predictor.from_pretrained`.
        outputs: what to write, and where.
        ct: for a model that sees CT as its second channel.
        start: a mask or instance map on the image's grid; see `group_clicks`.
        source, series: folder of the DICOM series that the image was imported from, and its Series Instance UID where
            the folder holds several; for a DICOM SEG.

    Raises:
        InputError: anything wrong with the input; nothing has been written then.
    """
    started = time.perf_counter()
    check_image_names(outputs.mask, outputs.instances, outputs.probability)
    if (outputs.seg is None) != (source is None) or (series is not None and source is None):
        raise InputError("a DICOM SEG needs both its file, --seg, and the DICOM folder of the image, --source")
    check_places(
        outputs=[*outputs.asked_for.values(), outputs.record],
        inputs=[path for path in (image, clicks, start, checkpoint, ct, base) if path is not None],
    )
    # What is quick to check comes before the weights.
    if is_automatic(checkpoint):
        needless = {"--clicks": clicks, "--start": start, "--base": base, "--spacing-mm": spacing_mm}
        given = [name for name, value in needless.items() if value is not None]
        given += [name for name, value in (("--flips", flips), ("--no-obey", not obey)) if value]
        given += [] if accumulate is None else ["--accumulate-clicks" if accumulate else "--newest-click-only"]
        if given:
            raise InputError(f"{checkpoint} is an automatic network, which takes no clicks: omit {', '.join(given)}")
        volume = read_image(image)
        dicom = None if source is None else _series_of(image, volume, source, series)
        return _segment_automatically(checkpoint, device, image, volume, ct, outputs, started, dicom)
    scan = ClickedScan.read(image, clicks, start)
    dicom = None if source is None else _series_of(image, scan.volume, source, series)
    model = load_model(checkpoint, device, base, flips, spacing_mm, obey, accumulate)
    return segment(model, scan, ct, outputs, started, dicom)


def _series_of(image: Path, volume: Volume, source: Path, series: str | None) -> Series:
    from sammed3d_ft.recipes.import_dicom import find_series  # the DICOM libraries take a second to import

    return find_series(source, volume, image, series)


def load_model(
    checkpoint: Path,
    device: str | None = None,
    base: Path | None = None,
    flips: bool = False,
    spacing_mm: float | None = None,
    obey: bool = True,
    accumulate: bool | None = None,
) -> LoadedModel:
    """A model to segment scans with; see `Predictor.from_pretrained`."""
    predictor = Predictor.from_pretrained(checkpoint, device, base, flips, spacing_mm, obey, accumulate)
    model = predictor.model
    assert isinstance(model, nn.Module)  # as all that comes from a checkpoint
    facts = {
        **_facts(model, model.device, checkpoint),
        "base": None if base is None else str(base),
        **origin(base or checkpoint),
        "preset": predictor.preset,
        "preprocessing": json.loads(predictor.preprocessing.to_json()),
        "accumulate_clicks": predictor.accumulate,
        "zoom": predictor.zoom,
        "flips": predictor.flips,
        "obey": predictor.obey,
    }
    return LoadedModel(predictor, facts)


def _facts(model: nn.Module, device: torch.device, checkpoint: Path) -> dict[str, Any]:
    return {
        "versions": package_versions(*MASK_PACKAGES),
        "device": str(device),
        "checkpoint": str(checkpoint),
        "model_hash": state_hash(model.state_dict()),
    }


def _images(
    modalities: Sequence[str], checkpoint: str, volume: Volume, ct: Path | None, image: Path, outputs: Outputs
) -> dict[str, Volume]:
    """What the model sees, by modality, checked against the model and for plausible values."""
    first, *others = modalities
    if ct is not None and others != ["CT"]:
        raise InputError(f"{checkpoint} sees {first} alone; leave out --ct, or use a model of PT and CT")
    if outputs.figure is not None and first != "PT":
        raise InputError(f"--figure {outputs.figure}: drawn of PET, but {checkpoint} sees CT first; leave it out")
    files = {first: image} | ({} if ct is None else {"CT": ct})
    images = {first: volume} | ({} if ct is None else {"CT": read_image(ct)})
    for modality, file in files.items():
        if modality == "PT":
            check_suv(images[modality].array, str(file))
        for doubt in doubts(modality, images[modality].array):
            _log.warning("%s: %s", file, doubt)
    return images


def _segment_automatically(
    checkpoint: Path,
    device: str | None,
    image: Path,
    volume: Volume,
    ct: Path | None,
    outputs: Outputs,
    started: float,
    dicom: Series | None,
) -> dict[str, Any]:
    segmenter = AutomaticSegmenter.from_pretrained(checkpoint, device)
    logits = segmenter.segment(_images(segmenter.modalities, str(checkpoint), volume, ct, image, outputs))
    instances, _ = lesions_from_mask(logits > 0)
    pet = volume.array if segmenter.modalities[0] == "PT" else None
    found = Found(
        mask=logits > 0,
        instances=instances,
        probability=lambda: torch.sigmoid(torch.from_numpy(logits)).numpy(),
        columns=TABLE_COLUMNS,
        rows=[without_nan(lesion.as_row()) for lesion in lesion_table(instances, volume.affine, pet)],
        made="AUTOMATIC",
    )
    assert isinstance(segmenter.network, nn.Module)  # as all that comes from a checkpoint
    facts = {**_facts(segmenter.network, segmenter.device, checkpoint), "metadata": segmenter.metadata}
    files = {"image": image} | ({} if ct is None else {"ct": ct})
    return _write(found, facts, volume, files, outputs, started, dicom)


def segment(
    model: LoadedModel,
    scan: ClickedScan,
    ct: Path | None,
    outputs: Outputs,
    started: float,
    dicom: Series | None = None,
) -> dict[str, Any]:
    """Segments one scan, writes what is asked for, the record last, and returns the record.

    Args:
        started: `time.perf_counter` when work on this scan began.
        dicom: the series that a DICOM SEG refers to. None is written when no lesion has a voxel: the standard has no
            empty one.

    Raises:
        InputError: model and images do not fit, a PET that cannot be in SUV, or a file cannot be written.
    """
    predictor, checkpoint = model.predictor, model.facts["checkpoint"]
    predictor.set_image(_images(predictor.modalities, checkpoint, scan.volume, ct, scan.image, outputs))

    predictor.encode_ahead(lesion.positions_vox[0] for lesion in scan.lesions if lesion.labels and lesion.start is None)
    for lesion in tqdm(scan.lesions, "predict", unit="lesion", leave=False, disable=None):
        if scan.start is not None and lesion.start is not None:
            mask, corner_vox = scan.start.mask(lesion.start)
            predictor.add_mask(mask, lesion.number, corner_vox)
        if lesion.labels:
            predictor.add_clicks(lesion.positions_vox, lesion.labels, lesion.number)
    for position in scan.background_vox:
        holders = [lesion.number for lesion in scan.lesions if predictor.crop_holds(position, lesion.number)]
        for number in holders:
            predictor.add_click(position, 0, number)
        if not holders:
            at = ", ".join(f"{c:.1f}" for c in scan.volume.to_mm(position))
            _log.warning("the background click at RAS (%s) mm is in no lesion's crop: left out", at)

    return write_results(model, scan, scan.files | ({} if ct is None else {"ct": ct}), outputs, started, dicom)


def write_results(
    model: LoadedModel,
    scan: ClickedScan,
    files: Mapping[str, Path],
    outputs: Outputs,
    started: float,
    dicom: Series | None = None,
) -> dict[str, Any]:
    """Writes what a clicked predictor found, the record last, and returns the record; the last part of `segment`.

    Args:
        model: its predictor holds the lesions of ``scan``, all clicks given.
        files: what the images and clicks were read from, by kind, for the record.

    Raises:
        InputError: a file cannot be written.
    """
    predictor = model.predictor
    numbered = predictor.instances()
    pet = scan.volume.array if predictor.modalities[0] == "PT" else None
    rows = lesion_rows(predictor, scan.lesions, numbered, pet)
    found = Found(predictor.mask(), numbered, predictor.probability, CLICKED_COLUMNS, rows, "SEMIAUTOMATIC")
    return _write(found, model.facts, scan.volume, files, outputs, started, dicom)


def _write(
    found: Found,
    facts: Mapping[str, Any],
    image: Volume,
    files: Mapping[str, Path],
    outputs: Outputs,
    started: float,
    dicom: Series | None,
) -> dict[str, Any]:
    write_mask(outputs.mask, found.mask, image)
    if outputs.instances is not None:
        write_mask(outputs.instances, found.instances, image)
    if outputs.probability is not None:
        write_float(outputs.probability, found.probability(), image)
    if outputs.table is not None:
        write_csv(outputs.table, found.columns, found.rows)
    if outputs.figure is not None:
        title = image_stem(files["image"]) or files["image"].name
        draw_mip(image.array, image.spacing_mm, outputs.figure, prediction=found.instances > 0, title=title)
    written = {name: str(path) for name, path in outputs.asked_for.items()}
    if outputs.seg is not None and dicom is not None:
        if found.instances.any():
            from sammed3d_ft.recipes.import_dicom import write_seg

            write_seg(outputs.seg, found.instances, image, dicom, found.made)
        else:
            del written["seg"]
            _log.warning("%s: not written, no lesion has a voxel and a DICOM SEG cannot be empty", outputs.seg)
    record = {
        **facts,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.perf_counter() - started, 2),
        "inputs": file_hashes(files),
        "outputs": written,
        "lesions": found.rows,
    }
    write_whole(outputs.record, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return record


def lesion_rows(
    predictor: Predictor, lesions: Sequence[ClickedLesion], instances: np.ndarray, pet: np.ndarray | None
) -> list[dict[str, Any]]:
    """The rows of `CLICKED_COLUMNS`: one per lesion, also where nothing was found; None is n/a."""
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
            "accumulate_clicks": str(predictor.accumulate).lower(),
        }
        rows.append(without_nan(row))
    return rows
