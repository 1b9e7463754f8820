"""On-disk store of scans and their lesions for prompted training.

One safetensors file per case holds the clipped channels and, in one to four bytes per voxel, the numbered lesions: a
scan is kept once, however many lesions it has. Files are memory-mapped and sliced, so reading a crop does not load the
whole scan. Nothing is resampled, and lesions of any size are kept.

A case's files are named by everything that determines their content, so that runs with other cases, folds or spacings
share them, and files of another format or of changed images are left alone.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from scipy import ndimage
from torch import Tensor

from prompts.lesions import lesions_from_mask
from sammed3d_ft.dataset.case_images import read_case
from sammed3d_ft.dataset.manifest import Case
from sammed3d_ft.errors import InputError
from sammed3d_ft.files import write_whole
from sammed3d_ft.images.crops import Region
from sammed3d_ft.prompted.preprocessing import Preprocessing, channels
from sammed3d_ft.provenance import case_files, digest
from sammed3d_ft.training.scan_files import ScanPart, readable

# Increase this when files are written differently. Older ones are then left alone, not deleted.
STORE_FORMAT = 3
_NUMBER_TYPES = (torch.uint8, torch.int16, torch.int32)


@dataclass(frozen=True)
class LesionEntry:
    """One target: a lesion of a case, or all of a case's lesions as one.

    Attributes:
        number: the lesion's value in the case's lesion map, from 1.
        start, stop: the lesion's bounding box in voxels of the scan, `stop` exclusive.
        shape: (X, Y, Z) of the scan.
    """

    id: str
    case: str
    number: int
    volume_ml: float
    spacing_mm: tuple[float, float, float]
    start: tuple[int, int, int]
    stop: tuple[int, int, int]
    shape: tuple[int, int, int]
    file: str

    @property
    def region(self) -> Region:
        return Region(self.start, self.stop)

    @property
    def extent_mm(self) -> float:
        """Longest side of the bounding box."""
        return max(n * mm for n, mm in zip(self.region.shape, self.spacing_mm, strict=True))


class LesionStore:
    """The targets of a set of cases, stored in a folder by `prepare_case` and opened by `open_store`.

    Args:
        folder: contains a JSON file (the entries) and a safetensors file for each case.
        entries: entries of all cases, in manifest order.
    """

    def __init__(self, folder: Path, entries: Sequence[LesionEntry]) -> None:
        self.folder = folder
        self.entries = tuple(entries)

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, index: int, region: Region) -> ScanPart:
        """Read a box of a target's scan; other lesions of the scan count as background."""
        entry = self.entries[index]
        x, y, z = region.slices
        with readable(self.folder / entry.file) as path, safe_open(path, "pt") as file:
            cut: Tensor = file.get_slice("channels")[:, x, y, z]
            return ScanPart(cut, file.get_slice("lesions")[x, y, z] == entry.number)


def _index(path: Path) -> list[LesionEntry]:
    with readable(path):
        entries: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    for entry in entries:
        entry.update({key: tuple(value) for key, value in entry.items() if isinstance(value, list)})
    return [LesionEntry(**entry) for entry in entries]


def open_store(folder: Path, names: Sequence[str]) -> LesionStore:
    """Open the store of cases that have all been prepared, by the names that `prepare_case` returned."""
    entries = [entry for name in names for entry in _index(folder / f"{name}.json")]
    if not entries:
        raise InputError(f"no lesions in the {len(names)} training cases: all labels are empty")
    return LesionStore(folder, entries)


def stored_name(case: Case, preprocessing: Preprocessing, connectivity: int, targets: str) -> str:
    """The name of a case's files in a store, without extension."""
    settings = {"modalities": preprocessing.modalities, "clip": preprocessing.clip}
    return f"{case.id}__{digest(STORE_FORMAT, settings, connectivity, targets, case_files(case))}"


def prepare_case(
    folder: Path, case: Case, preprocessing: Preprocessing, *, connectivity: int = 18, targets: str = "each"
) -> str:
    """Write one case's scan and targets, unless they exist.

    The case's JSON is written last and atomically, so if it exists, the scan does too.

    Args:
        folder: folder of the store.
        connectivity: connectivity of lesions: 6, 18 or 26.
        targets: "each": one target per lesion; "all": all lesions of a label as one target.

    Returns:
        The name of the case's files, for `open_store`.

    Raises:
        InputError: see `read_case`, or a file that cannot be written.
    """
    stored = stored_name(case, preprocessing, connectivity, targets)
    index_file = folder / f"{stored}.json"
    if index_file.exists():
        return stored
    images, label = read_case(case, preprocessing.modalities)
    reference = images[preprocessing.modalities[0]]
    volume = channels(images, preprocessing, case=case.id)
    lesions, count = lesions_from_mask(label.array, connectivity)
    if targets == "all":
        lesions, count = (lesions > 0).astype(np.int32), min(count, 1)
    spacing = reference.spacing_mm
    entries = []
    for number, box in enumerate(ndimage.find_objects(lesions, max_label=count), start=1):
        voxels = int((lesions[box] == number).sum())
        entries.append(
            LesionEntry(
                id=f"{case.id}/{number}",
                case=case.id,
                number=number,
                volume_ml=float(voxels * spacing.prod() / 1000),
                spacing_mm=(float(spacing[0]), float(spacing[1]), float(spacing[2])),
                start=tuple(side.start for side in box),
                stop=tuple(side.stop for side in box),
                shape=label.array.shape,
                file=f"{stored}.safetensors",
            )
        )
    if entries:
        kind = next(kind for kind in _NUMBER_TYPES if count <= torch.iinfo(kind).max)
        tensors = {"channels": volume.contiguous(), "lesions": torch.from_numpy(lesions).to(kind)}
        write_whole(folder / f"{stored}.safetensors", save(tensors))
    write_whole(index_file, json.dumps([asdict(entry) for entry in entries], indent=1))
    return stored
