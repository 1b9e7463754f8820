"""Import a DICOM folder to NIfTI: PET in SUV, CT in HU, masks."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sammed3d_ft import __version__
from sammed3d_ft.dicom import rtstruct, seg
from sammed3d_ft.dicom.folder import DicomFile, DicomFolder, choose_series, scan_folder
from sammed3d_ft.dicom.series import Series, order_slices, read_values
from sammed3d_ft.dicom.suv import suv_scale
from sammed3d_ft.errors import InputError
from sammed3d_ft.files import write_whole
from sammed3d_ft.images.grids import from_array
from sammed3d_ft.images.images import write_float, write_mask
from sammed3d_ft.provenance import file_hashes


def run(
    folder: Path, out: Path, series: Sequence[str] = (), ct: bool = False, roi: Sequence[str] = ()
) -> dict[str, Any]:
    """Write ``PT.nii.gz`` in SUVbw and, on request, ``CT.nii.gz`` in HU and masks; return the content of import.json.

    Each image keeps the grid of its own series. Nothing is written unless everything could be read.

    Args:
        folder: DICOM files, subfolders included.
        out: folder for PT.nii.gz, CT.nii.gz, mask_<name>.nii.gz and import.json.
        series: Series Instance UIDs to choose, for modalities with several series.
        ct: import the CT as well.
        roi: names of regions (RTSTRUCT) or labels of segments (SEG) to convert to masks on the PET's grid.

    Raises:
        InputError: see `sammed3d_ft.dicom`; also a region that is missing, or in several files.
    """
    contents = scan_folder(folder)
    pet = order_slices(choose_series(contents, "PT", series))
    scale = suv_scale(pet.headers, f"{folder}: PET series {pet.uid}")
    images: dict[str, Series] = {"PT": pet}
    warnings = list(scale.warnings)
    if ct:
        found = choose_series(contents, "CT", series, pet.frame_of_reference)
        if found.frame_of_reference != pet.frame_of_reference:
            text = f"CT series {found.uid} and the PET have different frames of reference"
            if found.uid not in series:
                raise InputError(f"{folder}: {text}; register them, or use it unregistered with --series {found.uid}")
            warnings.append(f"{text}, so they may not be aligned")
        images["CT"] = order_slices(found)

    regions = _regions(contents, pet)
    masks: dict[str, np.ndarray] = {}
    for name in dict.fromkeys(roi):
        masks[name], found_odd = _read_region(name, regions, pet, folder)
        warnings += found_odd
    warnings += _shared_voxels(masks, regions)
    files = {name: f"mask_{re.sub(r'[^A-Za-z0-9._-]+', '_', name)}.nii.gz" for name in masks}
    if len(set(files.values())) < len(files):
        raise InputError(f"--roi {', '.join(masks)}: two of these give the same file name; import them separately")

    record: dict[str, Any] = {
        "software": f"sammed3d-ft {__version__}",
        "folder": str(folder),
        "suv": {"factor": scale.factor, "how": scale.how, **scale.facts},
        "images": {},
        "regions": {},
        "regions_available": sorted(regions),
        "warnings": warnings,
    }
    volumes = {
        modality: from_array(read_values(one, scale.factor if modality == "PT" else 1.0), one.affine)
        for modality, one in images.items()
    }
    for modality, one in images.items():
        write_float(out / f"{modality}.nii.gz", volumes[modality].array, volumes[modality])
        record["images"][modality] = _facts(one, volumes[modality].array)
    voxel_ml = float(np.prod(volumes["PT"].spacing_mm)) / 1000
    for name, mask in masks.items():
        volume = from_array(mask, pet.affine)
        write_mask(out / files[name], volume.array, volume)
        voxels = int(mask.sum())
        source = regions[name][0]
        record["regions"][name] = {
            "from": str(source.path),
            "kind": source.text("Modality"),
            "voxels": voxels,
            "volume_ml": voxels * voxel_ml,
        }
    written = {modality: out / f"{modality}.nii.gz" for modality in images}
    record["outputs"] = file_hashes(written | {f"mask {name}": out / files[name] for name in masks})
    write_whole(out / "import.json", json.dumps(record, indent=2) + "\n")
    return record


def _regions(contents: DicomFolder, pet: Series) -> dict[str, list[DicomFile]]:
    """The files that contain each region, limited to the PET's frame of reference."""
    files: dict[str, list[DicomFile]] = {}
    for file in contents.regions:
        reader = rtstruct if file.text("Modality") == "RTSTRUCT" else seg
        for name in dict.fromkeys(reader.region_names(file, pet.frame_of_reference)):
            files.setdefault(name, []).append(file)
    return files


def _read_region(
    name: str, regions: dict[str, list[DicomFile]], pet: Series, folder: Path
) -> tuple[np.ndarray, list[str]]:
    files = regions.get(name, [])
    if not files:
        there = ", ".join(sorted(regions)) or "none"
        raise InputError(f"{folder}: --roi {name} not found; regions on this PET: {there}")
    if len(files) > 1:
        places = ", ".join(str(file.path) for file in files)
        raise InputError(f"{folder}: --roi {name} is in {len(files)} files ({places}); keep only one of them")
    reader = rtstruct if files[0].text("Modality") == "RTSTRUCT" else seg
    return reader.read_region(files[0], name, pet)


def _shared_voxels(masks: dict[str, np.ndarray], regions: dict[str, list[DicomFile]]) -> list[str]:
    """A line for each pair of different segments of a SEG that overlap: each keeps its own mask, but users add them."""
    numbers = {
        name: (regions[name][0].path, set(seg.segment_numbers(regions[name][0])[name]))
        for name in masks
        if regions[name][0].text("Modality") == "SEG"
    }
    lines = []
    for one, other in itertools.combinations(numbers, 2):
        (path, its), (other_path, others) = numbers[one], numbers[other]
        if path == other_path and not its & others and (shared := np.count_nonzero(masks[one] & masks[other])):
            lines.append(f"{path}: segments {one!r} and {other!r} share {shared} voxels; both masks keep them")
    return lines


def _facts(series: Series, values: np.ndarray) -> dict[str, Any]:
    digest = hashlib.sha256()
    for path in dict.fromkeys(file.path for file in series.files):
        digest.update(path.read_bytes())
    return {
        "series": series.uid,
        "description": series.files[0].text("SeriesDescription"),
        "shape": list(series.shape),
        "spacing_mm": np.linalg.norm(series.affine[:3, :3], axis=0).tolist(),
        "lowest": float(values.min()),
        "highest": float(values.max()),
        "sha256_of_slices_in_order": digest.hexdigest(),
    }
