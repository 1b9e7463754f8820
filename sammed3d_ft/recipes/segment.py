"""Segment one scan with a baseline, without clicks: a mask on the scan's own grid and a table of lesions."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prompts import lesions_from_mask
from sammed3d_ft.automatic.segmenter import AutomaticSegmenter
from sammed3d_ft.dataset.plausibility import check_suv, doubts
from sammed3d_ft.errors import InputError
from sammed3d_ft.files import without_nan, write_csv, write_whole
from sammed3d_ft.images.images import read_image, write_float, write_mask
from sammed3d_ft.images.outputs import check_image_names, check_places, record_beside
from sammed3d_ft.lesions.table import TABLE_COLUMNS, lesion_table
from sammed3d_ft.provenance import MASK_PACKAGES, file_hashes, package_versions, state_hash

_log = logging.getLogger(__name__)


def run(
    image: Path,
    checkpoint: Path,
    out: Path,
    ct: Path | None = None,
    probability: Path | None = None,
    table: Path | None = None,
    device: str | None = None,
) -> dict[str, Any]:
    """Segment one scan and return its record, as written beside the mask (``<mask>.segment.json``).

    Args:
        image: the network's first modality: PET in SUV, or CT for a network trained on CT alone.
        checkpoint, device: see `AutomaticSegmenter.from_pretrained`.
        out: file for the mask of all lesions, on the image's own grid.
        ct: CT for a network whose second channel is CT.
        probability: file for the image of lesion probabilities.
        table: CSV file with a row per lesion (18-connected components of the mask).

    Raises:
        InputError: invalid input; nothing has been written then.
    """
    started = time.perf_counter()
    check_image_names(out, probability)
    record_file = record_beside(out, "segment")
    check_places(
        outputs=[path for path in (out, probability, table, record_file) if path is not None],
        inputs=[path for path in (image, checkpoint, ct) if path is not None],
    )
    scan = read_image(image)  # quick checks come before loading the weights
    segmenter = AutomaticSegmenter.from_pretrained(checkpoint, device)
    first, *others = segmenter.modalities
    if ct is not None and others != ["CT"]:
        raise InputError(f"{checkpoint} takes {first} alone; omit --ct, or use a network trained on PT and CT")
    if ct is None and others:
        raise InputError(f"{checkpoint} takes {first} and {others[0]}; give the CT as well (--ct)")
    images, files = {first: scan}, {first: image}
    if ct is not None:
        images["CT"], files["CT"] = read_image(ct), ct
    for modality, volume in images.items():
        if modality == "PT":
            check_suv(volume.array, str(files[modality]))
        for doubt in doubts(modality, volume.array):
            _log.warning("%s: %s", files[modality], doubt)
    logits = segmenter.segment(images)

    mask = logits > 0
    lesions, _ = lesions_from_mask(mask)
    found = lesion_table(lesions, scan.affine, scan.array if first == "PT" else None)
    rows = [without_nan(lesion.as_row()) for lesion in found]
    write_mask(out, mask, scan)
    if probability is not None:
        write_float(probability, torch.sigmoid(torch.from_numpy(logits)).numpy(), scan)
    if table is not None:
        write_csv(table, TABLE_COLUMNS, rows)
    assert isinstance(segmenter.network, nn.Module)  # always true for a loaded checkpoint
    record = {
        "versions": package_versions(*MASK_PACKAGES),
        "device": str(segmenter.device),
        "checkpoint": str(checkpoint),
        "model_hash": state_hash(segmenter.network.state_dict()),
        "metadata": segmenter.metadata,
        "written": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(time.perf_counter() - started, 2),
        "inputs": file_hashes(files),
        "outputs": {
            name: str(path)
            for name, path in (("mask", out), ("probability", probability), ("table", table))
            if path is not None
        },
        "lesions": rows,
    }
    write_whole(record_file, json.dumps(record, indent=2, allow_nan=False) + "\n")
    return record
