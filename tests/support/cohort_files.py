"""Small cohorts on disk for tests of the evaluator."""

from __future__ import annotations

import csv
from pathlib import Path

import nibabel as nib
import numpy as np

AFFINE = np.diag([10.0, 10.0, 10.0, 1.0])  # voxels of 1 ml


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def lesion(*spans: tuple[int, int]) -> np.ndarray:
    """Rods of one voxel's width: each span from its first to its last voxel along x."""
    out = np.zeros((12, 4, 4), np.uint8)
    for first, last in spans:
        out[first : last + 1, 1, 1] = 1
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_cohort(folder: Path) -> Path:
    """Three cases: perfect, half found, and free of lesions with a false alarm; PET of SUV 3 everywhere."""
    for name, truth, pred in (
        ("a", lesion((0, 3)), lesion((0, 3))),
        ("b", lesion((0, 3), (8, 9)), lesion((0, 1))),
        ("c", lesion(), lesion((5, 5))),
    ):
        save(folder / "gt" / f"{name}.nii.gz", truth)
        save(folder / "pred" / f"{name}.nii.gz", pred)
        save(folder / "pet" / f"{name}_0001.nii.gz", np.full((12, 4, 4), 3.0, np.float32))
        save(folder / "pet" / f"{name}_0000.nii.gz", np.full((12, 4, 4), -900.0, np.float32))
        save(folder / "probability" / f"{name}.nii.gz", pred * np.float32(0.8))
    (folder / "gt" / "dataset.json").write_text("{}")
    return folder
