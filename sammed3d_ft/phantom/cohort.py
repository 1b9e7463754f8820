"""A folder of phantoms: nnU-Net raw layout with autoPET's channels, a table of all lesions, and a manifest."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from tqdm import tqdm

from sammed3d_ft.dataset.manifest import Case, write_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.files import write_csv, write_whole
from sammed3d_ft.images.grids import from_array
from sammed3d_ft.images.images import write_float, write_mask
from sammed3d_ft.phantom.lesions import VOLUME_MEDIAN_ML
from sammed3d_ft.phantom.outlines import EXTENT
from sammed3d_ft.phantom.simulate import Phantom, make_phantom

_BOTH = ("psma", "fdg")

_TRUTH_COLUMNS = (
    "case",
    "lesion_id",
    "region",
    "x_mm",
    "y_mm",
    "z_mm",
    "true_volume_ml",
    "mask_volume_ml",
    "suv",
    "core_suv",
    "touches",
)


def write_cohort(
    out: Path,
    cases: int,
    seed: int = 0,
    tracer: str = "psma",
    field: str = "whole-body",
    val: int = 0,
    test: int = 0,
    scanner: str = "usual",
    lesion_ml: float = VOLUME_MEDIAN_ML,
    outline: str = EXTENT,
) -> Path:
    """Write phantoms and return the path of their manifest.

    The last `test` cases are in imagesTs and labelsTs, the others in imagesTr and labelsTr; the last `val` of these are
    for validation. Channel 0000 is the CT (HU, on the PET's voxels) and 0001 the PET (SUV), as published by autoPET.
    Also written: `instances/` (lesion IDs), `lesions.csv` (the simulated lesions: position in world mm RAS+, true
    volume, volume of the mask, true SUV), `dataset.json`, and, last, `manifest.json`.

    Args:
        out: output folder, created if missing.
        cases: number of patients, including `val` and `test`.
        seed: determines each patient together with the case number; a smaller cohort is the start of a larger one.
        tracer: psma, psma-1007, fdg, or both (psma and fdg in turn).
        field: one of `FIELDS`.
        scanner, lesion_ml, outline: see `make_phantom`.

    Raises:
        InputError: no case left for training, an argument that `make_phantom` refuses, or a folder with phantoms.
    """
    out = Path(out)
    if val < 0 or test < 0 or val + test >= cases:
        raise InputError(f"{cases} cases, {val} val, {test} test: at least one case must be left for training")
    if (out / "imagesTr").exists():
        raise InputError(f"{out} holds images already: remove it or name another folder")
    listed: list[Case] = []
    rows: list[dict[str, object]] = []
    for number in tqdm(range(cases), "phantoms", unit="case", leave=False):
        chosen = _BOTH[number % len(_BOTH)] if tracer == "both" else tracer
        phantom = make_phantom(seed, number, chosen, field, scanner=scanner, lesion_ml=lesion_ml, outline=outline)
        split = "test" if number >= cases - test else "val" if number >= cases - test - val else "train"
        listed.append(_write_case(out, phantom, split))
        rows += _truth(phantom)
    write_csv(out / "lesions.csv", _TRUTH_COLUMNS, rows)
    description = {
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "lesion": 1},
        "numTraining": cases - test,
        "file_ending": ".nii.gz",
    }
    write_whole(out / "dataset.json", json.dumps(description, indent=1) + "\n")
    write_manifest(out / "manifest.json", listed)
    return out / "manifest.json"


def _write_case(out: Path, phantom: Phantom, split: str) -> Case:
    where = "Ts" if split == "test" else "Tr"
    ct = out / f"images{where}" / f"{phantom.id}_0000.nii.gz"
    pet = out / f"images{where}" / f"{phantom.id}_0001.nii.gz"
    label = out / f"labels{where}" / f"{phantom.id}.nii.gz"
    like = from_array(phantom.pet, phantom.pet_affine)
    write_float(pet, phantom.pet, like)
    write_float(ct, phantom.ct, from_array(phantom.ct, phantom.ct_affine))
    write_mask(label, phantom.label, like)
    write_mask(out / "instances" / f"{phantom.id}.nii.gz", phantom.instances, like)
    return Case(phantom.id, {"PT": pet, "CT": ct}, label, split, phantom.id)


def _truth(phantom: Phantom) -> list[dict[str, object]]:
    """The case's rows of lesions.csv. A lesion outside the field has no voxels, so its mask volume is 0."""
    voxel_ml = abs(np.linalg.det(phantom.pet_affine[:3, :3])) / 1000
    most = max((lesion.id for lesion in phantom.lesions), default=0)
    voxels = np.bincount(phantom.instances.ravel(), minlength=most + 1)
    return [
        {
            "case": phantom.id,
            "lesion_id": lesion.id,
            "region": lesion.region,
            **{f"{axis}_mm": round(at, 3) for axis, at in zip("xyz", lesion.centre_mm, strict=True)},
            "true_volume_ml": round(lesion.volume_ml, 4),
            "mask_volume_ml": round(float(voxels[lesion.id] * voxel_ml), 4),
            "suv": round(lesion.suv, 3),
            "core_suv": "" if lesion.core_suv is None else round(lesion.core_suv, 3),
            "touches": lesion.touches or "",
        }
        for lesion in phantom.lesions
    ]
