"""Tiny PET cases with hot balls, written as NIfTI, for tests that need files and train for seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np

from sammed3d_ft.dataset.manifest import Case, write_manifest

Ball = tuple[tuple[float, float, float], float]  # centre in voxels, radius in mm


def write_case(
    folder: Path,
    name: str,
    balls: Sequence[Ball],
    *,
    split: str = "train",
    shape: tuple[int, int, int] = (24, 24, 24),
    spacing_mm: tuple[float, float, float] = (6.0, 6.0, 6.0),
) -> Case:
    """One case: SUV 1 with noise, 9 in the balls. A radius below half a voxel marks one voxel."""
    folder.mkdir(parents=True, exist_ok=True)
    index = np.moveaxis(np.indices(shape), 0, -1)
    mask = np.zeros(shape, bool)
    for centre, radius_mm in balls:
        distance_mm = np.linalg.norm((index - np.array(centre)) * np.array(spacing_mm), axis=-1)
        mask |= distance_mm <= radius_mm
    noise = np.random.default_rng(len(name) + sum(map(ord, name))).uniform(-0.2, 0.2, shape)
    pet = (1 + 8 * mask + noise).astype(np.float32)
    affine = np.diag([*spacing_mm, 1.0])
    affine[:3, 3] = (-70, -60, 15)
    paths = folder / f"{name}_pt.nii.gz", folder / f"{name}_label.nii.gz"
    for path, array in zip(paths, (pet, mask.astype(np.uint8)), strict=True):
        nib.save(nib.Nifti1Image(array, affine), path)
    return Case(name, {"PT": paths[0]}, paths[1], split, None)


def write_cohort(folder: Path, train: int = 3, val: int = 1, test: int = 1) -> Path:
    """Cases of one ball each (the validation cases of two) and their manifest, which is returned."""
    cases: list[Case] = []
    for split, count in (("train", train), ("val", val), ("test", test)):
        for number in range(count):
            place = 9.0 + (number + len(cases)) % 5
            balls: list[Ball] = [((place, 12.0, 11.0), 19.0)]
            if split == "val":
                balls.append(((18.0, 5.0, 17.0), 13.0))
            cases.append(write_case(folder, f"{split}_{number}", balls, split=split))
    manifest = folder / "manifest.json"
    write_manifest(manifest, cases)
    return manifest
