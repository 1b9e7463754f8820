"""Predict: segment one scan, by clicks or by an automatic network, and write the mask and the lesion table."""

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
from sammed3d_ft.images.grids import Volume
from sammed3d_ft.images.images import image_stem, read_image, write_float, write_mask
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
"""Columns of the lesion table; a lesion with an empty mask has empty cells."""


@dataclass(frozen=True)
class Found:
    """The lesions of a scan; arrays are (X, Y, Z), canonical."""

    mask: np.ndarray
    instances: np.ndarray
    probability: Callable[[], np.ndarray]
    columns: Sequence[str]
    rows: list[dict[str, Any]]
    made: Literal["SEMIAUTOMATIC", "AUTOMATIC"]
    """How the mask was made, in DICOM's terms."""


@dataclass(frozen=True)
class LoadedModel:
    """A predictor, and the facts about it that are stored in the record of a prediction."""

    predictor: Predictor
    facts: dict[str, Any]


@dataclass(frozen=True)
class Outputs:
    """The output files of one scan; None for a file that is not wanted."""

    mask: Path
    """Mask of all lesions, on the grid of the image."""
    instances: Path | None = None
    """Instance map."""
    probability: Path | None = None
    """Map of the highest lesion probability."""
    table: Path | None = None
    """CSV with one row per lesion."""
    figure: Path | None = None
    """PNG of the PET's maximum-intensity projections with the mask."""
    seg: Path | None = None
    """DICOM SEG with one segment per lesion, on the DICOM series from which the image was imported."""

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
    """Segment one scan, write the results, and return the record that is written beside the mask.

    The export of an automatic network segments the scan without clicks; lesions are its 18-connected components.

    Args:
        image: the model's first modality: PET in SUV, or CT for a CT-only model.
        clicks: a click file in any format that `prompts` reads. None clicks each lesion of ``start`` once. An automatic
            network accepts none of ``clicks``, ``start``, ``base``, ``flips``, ``spacing_mm``,
            ``accumulate``.
        checkpoint, base, device, flips, spacing_mm, obey, accumulate: see `Predictor.from_pretrained`.
        outputs: the files to write.
        ct: CT for a model with PET and CT.
        start: a mask or instance map on the image's grid; see `group_clicks`.
        source, series: for a DICOM SEG, the folder of the DICOM series from which the image was imported, and its
            Series Instance UID if the folder contains several.

    Raises:
        InputError: invalid input; nothing has been written then.
    """
    started = time.perf_counter()
    check_image_names(outputs.mask, outputs.instances, outputs.probability)
    if (outputs.seg is None) != (source is None) or (series is not None and source is None):
        raise InputError("a DICOM SEG needs both --seg FILE and --source DICOM_FOLDER")
    check_places(
        outputs=[*outputs.asked_for.values(), outputs.record],
        inputs=[path for path in (image, clicks, start, checkpoint, ct, base) if path is not None],
    )
    # Quick checks first, because reading the weights takes longer.
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
    from sammed3d_ft.recipes.export_seg import find_series  # the DICOM libraries take a second to import

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
    """Load a prompted model; see `Predictor.from_pretrained`."""
    predictor = Predictor.from_pretrained(checkpoint, device, base, flips, spacing_mm, obey, accumulate)
    model = predictor.model
    assert isinstance(model, nn.Module)  # true for every model from a checkpoint
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
    """The model's input images by modality, after checking that they fit the model and have plausible values."""
    first, *others = modalities
    if ct is not None and others != ["CT"]:
        raise InputError(f"{checkpoint} uses {first} only: omit --ct, or use a model with PT and CT")
    if outputs.figure is not None and first != "PT":
        raise InputError(
            f"--figure {outputs.figure}: figures show a PET, but the first modality of {checkpoint} is {first}; omit it"
        )
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
    assert isinstance(segmenter.network, nn.Module)  # true for every network from an export
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
    """Segment one clicked scan, write the requested files and then the record, and return the record.

    Args:
        started: `time.perf_counter()` when work on this scan began.
        dicom: the series that the DICOM SEG references. If the mask is empty, no SEG is written, because the standard
            does not allow an empty one.

    Raises:
        InputError: images that do not fit the model, a PET that is not in SUV, or a file that cannot be written.
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
            _log.warning("the background click at RAS (%s) mm lies outside all crops and is ignored", at)

    return write_results(model, scan, scan.files | ({} if ct is None else {"ct": ct}), outputs, started, dicom)


def write_results(
    model: LoadedModel,
    scan: ClickedScan,
    files: Mapping[str, Path],
    outputs: Outputs,
    started: float,
    dicom: Series | None = None,
) -> dict[str, Any]:
    """Write the results of a predictor, the record last, and return the record: the last part of `segment`.

    Args:
        model: its predictor has received all clicks of ``scan``.
        files: the input files by kind, for the record.

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
            from sammed3d_ft.recipes.export_seg import write_seg

            write_seg(outputs.seg, found.instances, image, dicom, found.made)
        else:
            del written["seg"]
            _log.warning("%s: not written, because the mask is empty and a DICOM SEG cannot be", outputs.seg)
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
    """Rows of the lesion table (`CLICKED_COLUMNS`): one per lesion, even if its mask is empty; None means n/a."""
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
