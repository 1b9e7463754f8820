"""Lesions cut out of their scans once: what training reads, whatever the size of the scans.

One safetensors file per target holds the clipped channels and the mask of a box around the lesion, wide enough
for every crop that augmentation can ask for. Nothing is resampled here, and no lesion is too small.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from prompts import lesions_from_mask
from prompts.errors import InputError
from prompts.whole_files import write_whole
from sammed3d_ft.data.augment import AugmentationRanges
from sammed3d_ft.data.images import read_image, read_label
from sammed3d_ft.data.manifest import Case
from sammed3d_ft.data.preprocessing import Preprocessing, channels


@dataclass(frozen=True)
class LesionEntry:
    """One target: a lesion of a case, or all of a case's lesions as one."""

    id: str
    case: str
    volume_ml: float
    spacing_mm: tuple[float, float, float]
    file: str


@dataclass(frozen=True)
class LesionBox:
    """What a target's file holds."""

    entry: LesionEntry
    channels: Tensor  # (C, x, y, z) float32, clipped
    target: Tensor  # (x, y, z) bool


class LesionStore:
    """The targets of a set of cases, in a folder. `prepare_case` writes them, `open_store` opens them.

    Args:
        folder: holds ``<case>.json`` (the case's entries) and one ``.safetensors`` per target.
        entries: of all cases, in the manifest's order.
    """

    def __init__(self, folder: Path, entries: Sequence[LesionEntry]) -> None:
        self.folder = folder
        self.entries = tuple(entries)

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int) -> LesionBox:
        entry = self.entries[index]
        with readable(self.folder / entry.file) as path, safe_open(path, "pt") as file:
            return LesionBox(entry, file.get_tensor("channels"), file.get_tensor("target").bool())


@contextmanager
def readable(path: Path) -> Iterator[Path]:
    """Turns what goes wrong in reading a cached file into one line that says how to go on."""
    try:
        yield path
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, FileNotFoundError):
            raise InputError(
                f"{path} is not there: with several machines, the run folder or cache.dir must be one that all see"
            ) from error
        raise InputError(
            f"{path}: a damaged file of the cache ({reason}): remove it, or the folder, and run the same command again"
        ) from error


def _index(path: Path) -> list[dict[str, Any]]:
    with readable(path):
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return entries


def open_store(folder: Path, cases: Sequence[Case]) -> LesionStore:
    """The store of cases that were all prepared before."""
    entries = [
        LesionEntry(**{**entry, "spacing_mm": tuple(entry["spacing_mm"])})
        for case in cases
        for entry in _index(folder / f"{case.id}.json")
    ]
    if not entries:
        raise InputError(f"no lesion in any of the {len(cases)} training cases: every label is empty")
    return LesionStore(folder, entries)


def prepare_case(
    folder: Path,
    case: Case,
    preprocessing: Preprocessing,
    crop_size: int,
    ranges: AugmentationRanges,
    *,
    connectivity: int = 18,
    targets: str = "each",
) -> None:
    """Writes one case's targets, unless they are there already.

    The case's JSON is written last and atomically: where it exists, all its targets do.

    Args:
        folder: of the store; its name should depend on everything that decides its content.
        crop_size: voxels per axis of the model's crop.
        ranges: the augmentation that the boxes must leave room for.
        connectivity: 6, 18 or 26, of lesions.
        targets: "each" lesion by itself, or "all" lesions of a label as one.
    """
    index_file = folder / f"{case.id}.json"
    if index_file.exists():
        return
    if case.label is None:
        raise InputError(f"case {case.id}: training needs a label, the manifest names none")
    images = {name: read_image(case.images[name], case=case.id) for name in preprocessing.modalities}
    reference = images[preprocessing.modalities[0]]
    label = read_label(case.label, case=case.id)
    volume = channels(images, preprocessing, case=case.id)
    lesions, count = lesions_from_mask(label.array, connectivity)
    if targets == "all":
        lesions, count = (lesions > 0).astype(np.int32), min(count, 1)
    spacing = reference.spacing_mm
    margin = _margin_vox(spacing, preprocessing.spacing_mm, crop_size, ranges)
    entries = []
    for number in range(1, count + 1):
        mask = lesions == number
        where = np.nonzero(mask)
        low = [max(int(axis.min()) - m, 0) for axis, m in zip(where, margin, strict=True)]
        high = [int(axis.max()) + m + 1 for axis, m in zip(where, margin, strict=True)]
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        name = f"{case.id}__{number:04d}.safetensors"
        tensors = {
            "channels": volume[(slice(None), *box)].contiguous(),
            "target": torch.from_numpy(np.ascontiguousarray(mask[box]).view(np.uint8)),
        }
        write_whole(folder / name, save(tensors))
        entries.append(
            LesionEntry(
                id=f"{case.id}/{number}",
                case=case.id,
                volume_ml=float(mask.sum() * spacing.prod() / 1000),
                spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
                file=name,
            )
        )
    write_whole(index_file, json.dumps([asdict(entry) for entry in entries], indent=1))


def _margin_vox(
    spacing_mm: np.ndarray, crop_spacing_mm: float, crop_size: int, ranges: AugmentationRanges
) -> list[int]:
    """Voxels to keep around a lesion: half the largest crop, turned as far as it can be."""
    angle = math.radians(min(ranges.rotate_deg, 45.0))
    # Three turns one after the other lengthen a half edge's reach at most by (cos + sin) each.
    turned = min((math.cos(angle) + math.sin(angle)) ** 3, math.sqrt(3.0))
    reach_mm = (crop_size / 2 + ranges.jitter_vox + 1) * crop_spacing_mm * (1 + ranges.zoom) * turned
    return [math.ceil(reach_mm / float(s)) + 1 for s in spacing_mm]
