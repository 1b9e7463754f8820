"""On-disk store of prepared scans, from which crops are read without loading or resampling the whole scan.

One safetensors file per case: channels, mask, and the indices of its lesion voxels. Files are memory-mapped and sliced.
They are written atomically, so preparation can resume after an interruption.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from sammed3d_ft.automatic.scan_preparation import ScanPreparation, prepare_scan
from sammed3d_ft.dataset.case_images import read_case
from sammed3d_ft.dataset.manifest import Case
from sammed3d_ft.files import write_whole
from sammed3d_ft.images.crops import Region
from sammed3d_ft.training.scan_files import ScanPart, readable


class ScanStore:
    """Prepared scans, one file each, as written by `prepare_scan_of`."""

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = tuple(files)

    def __len__(self) -> int:
        return len(self.files)

    def shape(self, index: int) -> tuple[int, int, int]:
        """Voxels per axis of a scan."""
        with readable(self.files[index]) as path, safe_open(path, "pt") as file:
            x, y, z = file.get_slice("target").get_shape()
            return x, y, z

    def lesion_voxels(self, index: int) -> np.ndarray:
        """(n,) int64 indices of the lesion voxels in the flattened scan, ascending."""
        with readable(self.files[index]) as path, safe_open(path, "pt") as file:
            places: np.ndarray = file.get_tensor("lesion_voxels").numpy()
            return places

    def read(self, index: int, region: Region) -> ScanPart:
        """Read a box of a scan."""
        x, y, z = region.slices
        with readable(self.files[index]) as path, safe_open(path, "pt") as file:
            channels: Tensor = file.get_slice("channels")[:, x, y, z]
            return ScanPart(channels, file.get_slice("target")[x, y, z].bool())


def prepare_scan_of(case: Case, preparation: ScanPreparation, path: Path) -> None:
    """Write one case's prepared scan, unless the file exists.

    Args:
        path: output file; its name should depend on everything that determines its content.

    Raises:
        InputError: see `read_case`, or a file that cannot be written.
    """
    if path.exists():
        return
    images, label = read_case(case, preparation.modalities)
    scan = prepare_scan(images, preparation, case=case.id)
    target = scan.target(label)
    tensors = {
        "channels": torch.from_numpy(scan.channels),
        "target": torch.from_numpy(target.view(np.uint8)),
        "lesion_voxels": torch.from_numpy(np.flatnonzero(target)),
    }
    write_whole(path, save(tensors))
