"""Which prediction belongs to which truth and PET: by case id, never by position, all offenders named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np

from prompts.errors import InputError
from sammed3d_ft.data.grids import Volume, from_array, grid_difference
from sammed3d_ft.data.manifest import listing, read_manifest

_SUFFIXES = (".nii.gz", ".nii")
_PET_CHANNEL = "_0001"  # the PET's suffix in nnU-Net raw folders of PET/CT, as autoPET publishes them


@dataclass(frozen=True)
class CasePaths:
    """The files of one case."""

    id: str
    truth: Path
    pred: Path
    pet: Path | None
    patient: str
    """The unit of the statistics: the manifest's group, else the case itself."""


def pair_files(pred: Path, gt: Path, pet: Path | None = None) -> list[CasePaths]:
    """One case from single files, whatever their names; its id is the truth's file name.

    Raises:
        InputError: a file is not there, or grids differ.
    """
    for path in (pred, gt, pet):
        if path is not None and not path.is_file():
            raise InputError(f"{path}: no such file")
    name = _case_id(gt) or gt.name
    pairs = [CasePaths(name, gt, pred, pet, name)]
    check_grids(pairs)
    return pairs


def pair_folders(pred_dir: Path, gt_dir: Path, pet_dir: Path | None = None) -> list[CasePaths]:
    """Cases from folders of NIfTI files; the file name without .nii or .nii.gz is the case id.

    PET files are named by the case id, or by it and nnU-Net's channel ``_0001``; other files of the PET
    folder are ignored, as are files that are no NIfTI.

    Raises:
        InputError: missing or extra files, or grids that differ; all of them in one message.
    """
    problems: list[str] = []
    truths = _folder(gt_dir, problems)
    if not truths:
        raise InputError(f"{gt_dir}: holds no .nii or .nii.gz files to evaluate against")
    pairs = _pair(pred_dir, {name: (path, None, name) for name, path in truths.items()}, pet_dir, problems)
    check_grids(pairs)
    return pairs


def pair_manifest(
    pred_dir: Path, manifest: Path, pet_dir: Path | None = None, split: str | None = None
) -> list[CasePaths]:
    """Cases from a manifest: labels by id, its `PT` images as PET if no folder is given, groups as patients.

    Args:
        pred_dir: holds ``<id>.nii.gz`` of every case, and nothing more.
        manifest: a manifest file.
        pet_dir: PET files to use instead of the manifest's.
        split: only the cases of this split.

    Raises:
        InputError: no cases, cases without a label, missing or extra files, or grids that differ; all in one
            message.
    """
    content = read_manifest(manifest)
    cases = content.cases if split is None else content.split(split)
    if not cases:
        raise InputError(f"{manifest}: holds no cases" + (f" of split {split!r}" if split else ""))
    problems = [f"case {case.id} has no label in the manifest" for case in cases if case.label is None]
    truths = {
        case.id: (case.label, case.images.get("PT"), case.group or case.id)
        for case in cases
        if case.label is not None
    }
    pairs = _pair(pred_dir, truths, pet_dir, problems)
    check_grids(pairs)
    return pairs


def check_grids(pairs: Sequence[CasePaths]) -> None:
    """Check from the headers that prediction, truth and PET of each case lie on one grid.

    A file whose header cannot be read is passed over here: reading it says what is wrong with it.

    Raises:
        InputError: shapes or affines that differ; all of them in one message.
    """
    problems = []
    for case in pairs:
        truth = _grid(case.truth)
        for name, path in (("prediction", case.pred), ("PET", case.pet)):
            other = None if path is None else _grid(path)
            difference = None if truth is None or other is None else grid_difference(other, truth)
            if difference:
                problems.append(f"case {case.id}: {name} is on another grid than the truth ({difference})")
    if problems:
        raise InputError(
            listing(problems, "grid differs", "grids differ", len(problems))
            + "; resample to the truth's grid first"
        )


def _pair(
    pred_dir: Path,
    truths: dict[str, tuple[Path, Path | None, str]],
    pet_dir: Path | None,
    problems: list[str],
) -> list[CasePaths]:
    preds = _folder(pred_dir, problems)
    pets = None if pet_dir is None else _folder(pet_dir, problems)
    pairs = []
    for name, (truth, own_pet, patient) in truths.items():
        if not truth.is_file():
            problems.append(f"case {name}: no truth at {truth}")
        pet = own_pet
        if pets is not None:
            found = [pets[key] for key in (name, name + _PET_CHANNEL) if key in pets]
            if len(found) != 1:
                problems.append(f"case {name}: {'two PETs' if found else 'no PET'} in {pet_dir}")
            pet = found[0] if found else None
        elif pet is not None and not pet.is_file():
            problems.append(f"case {name}: no PET at {pet}")
        if name in preds:
            pairs.append(CasePaths(name, truth, preds[name], pet, patient))
        else:
            problems.append(f"case {name}: no prediction in {pred_dir}")
    problems += [f"{path} belongs to no case" for name, path in preds.items() if name not in truths]
    if problems:
        raise InputError(
            listing(problems, "file does not fit", "files do not fit", len(problems))
            + "; truth and prediction must bear the same case ids"
        )
    return pairs


def _folder(folder: Path, problems: list[str]) -> dict[str, Path]:
    """NIfTI files by case id, sorted by it."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = _case_id(path)
        if name is None:
            continue
        if name in files:
            problems.append(f"case {name}: two files, {files[name]} and {path.name}")
        files[name] = path
    return files


def _case_id(path: Path) -> str | None:
    for suffix in _SUFFIXES:
        if path.name.lower().endswith(suffix) and not path.name.startswith("."):
            return path.name[: -len(suffix)]
    return None


def _grid(path: Path) -> Volume | None:
    """The file's grid as a volume without content; None when the header cannot be read."""
    try:
        image = nib.load(path)
        if not isinstance(image, nib.Nifti1Image):
            return None
        # One zero, seen at every voxel: nothing is read.
        return from_array(np.broadcast_to(np.uint8(0), image.shape[:3]), image.header.get_best_affine())
    except (OSError, EOFError, ValueError, nib.filebasedimages.ImageFileError):
        return None
