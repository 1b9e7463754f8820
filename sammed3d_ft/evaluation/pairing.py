"""Pairs predictions with ground truth and PET by case ID, never by position, and reports all mismatches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sammed3d_ft.dataset.manifest import listing, read_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume, grid_difference
from sammed3d_ft.images.images import image_stem, read_grid

_PET_CHANNEL = "_0001"  # the PET's suffix in nnU-Net raw folders of PET/CT, as autoPET publishes them


@dataclass(frozen=True)
class CasePaths:
    """The files of one case."""

    id: str
    truth: Path
    pred: Path
    pet: Path | None
    patient: str
    """The unit of the statistics: the manifest's group, or the case itself."""
    probability: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The files given, keyed by ``truth``, ``prediction``, ``pet``, ``probability``."""
        named = {"truth": self.truth, "prediction": self.pred, "pet": self.pet, "probability": self.probability}
        return {name: path for name, path in named.items() if path is not None}


def pair_files(pred: Path, gt: Path, pet: Path | None = None, *, probability: Path | None = None) -> list[CasePaths]:
    """One case from single files of any name; its id is the ground truth's file name without suffix.

    Raises:
        InputError: a missing file, or grids that differ.
    """
    for path in (pred, gt, pet, probability):
        if path is not None and not path.is_file():
            raise InputError(f"{path}: no such file")
    name = image_stem(gt) or gt.name
    pairs = [CasePaths(name, gt, pred, pet, name, probability)]
    check_grids(pairs)
    return pairs


def pair_folders(
    pred_dir: Path, gt_dir: Path, pet_dir: Path | None = None, *, probability_dir: Path | None = None
) -> list[CasePaths]:
    """Cases from folders of image files; the file name without its suffix (`IMAGE_SUFFIXES`) is the case ID.

    PET files are named by case ID, with or without nnU-Net's channel suffix ``_0001``; other files in the PET folder
    are ignored, as are files that are not images. Probability maps are named by case ID.

    Raises:
        InputError: missing or extra files, or grids that differ; one message lists them all.
    """
    problems: list[str] = []
    truths = _folder(gt_dir, problems)
    if not truths:
        raise InputError(f"{gt_dir}: contains no ground-truth images (.nii.gz, .nii, .nrrd, .mha, .mhd)")
    cases: dict[str, tuple[Path, Path | None, str]] = {name: (path, None, name) for name, path in truths.items()}
    pairs = _pair(pred_dir, cases, pet_dir, probability_dir, problems)
    check_grids(pairs)
    return pairs


def pair_manifest(
    pred_dir: Path,
    manifest: Path,
    pet_dir: Path | None = None,
    split: str | None = None,
    *,
    probability_dir: Path | None = None,
) -> list[CasePaths]:
    """Cases from a manifest: labels by id, `PT` images as PET unless a folder is given, groups as patients.

    Args:
        pred_dir: folder with ``<id>.nii.gz`` of every case and no other images.
        manifest: a manifest file.
        pet_dir: PET files to use instead of the manifest's.
        split: only the cases of this split.
        probability_dir: folder with the probability map ``<id>.nii.gz`` of every case and no other images.

    Raises:
        InputError: no cases, cases without a label, missing or extra files, or grids that differ; one message lists
            them all.
    """
    content = read_manifest(manifest)
    cases = content.cases if split is None else content.split(split)
    if not cases:
        raise InputError(f"{manifest}: contains no cases" + (f" of split {split!r}" if split else ""))
    problems = [f"case {case.id} has no label in the manifest" for case in cases if case.label is None]
    truths = {
        case.id: (case.label, case.images.get("PT"), case.group or case.id) for case in cases if case.label is not None
    }
    pairs = _pair(pred_dir, truths, pet_dir, probability_dir, problems)
    check_grids(pairs)
    return pairs


def check_grids(pairs: Sequence[CasePaths]) -> None:
    """Check from the headers that each case's ground truth, prediction, PET and probabilities share one grid.

    Files with unreadable headers are skipped here; reading them later reports the error.

    Raises:
        InputError: shapes or affines that differ; one message lists them all.
    """
    problems = []
    for case in pairs:
        truth = _grid(case.truth)
        others = (("prediction", case.pred), ("PET", case.pet), ("probability map", case.probability))
        for name, path in others:
            other = None if path is None else _grid(path)
            difference = None if truth is None or other is None else grid_difference(other, truth)
            if difference:
                problems.append(f"case {case.id}: {name} and ground truth are on different grids ({difference})")
    if problems:
        raise InputError(
            listing(problems, "grid differs", "grids differ", len(problems)) + "; resample to the ground truth's grid"
        )


def _pair(
    pred_dir: Path,
    truths: dict[str, tuple[Path, Path | None, str]],
    pet_dir: Path | None,
    probability_dir: Path | None,
    problems: list[str],
) -> list[CasePaths]:
    preds = _folder(pred_dir, problems)
    probabilities = None if probability_dir is None else _folder(probability_dir, problems)
    pets = None if pet_dir is None else _folder(pet_dir, problems)
    pairs = []
    for name, (truth, own_pet, patient) in truths.items():
        if not truth.is_file():
            problems.append(f"case {name}: no ground truth at {truth}")
        pet = own_pet
        if pets is not None:
            found = [pets[key] for key in (name, name + _PET_CHANNEL) if key in pets]
            if len(found) != 1:
                problems.append(f"case {name}: {'two PETs' if found else 'no PET'} in {pet_dir}")
            pet = found[0] if found else None
        elif pet is not None and not pet.is_file():
            problems.append(f"case {name}: no PET at {pet}")
        probability = None if probabilities is None else probabilities.get(name)
        if probabilities is not None and probability is None:
            problems.append(f"case {name}: no probability map in {probability_dir}")
        if name in preds:
            pairs.append(CasePaths(name, truth, preds[name], pet, patient, probability))
        else:
            problems.append(f"case {name}: no prediction in {pred_dir}")
    for files in (preds, probabilities or {}):
        problems += [f"{path} does not belong to any case" for name, path in files.items() if name not in truths]
    if problems:
        raise InputError(
            listing(problems, "file does not match", "files do not match", len(problems))
            + "; ground truth and predictions must have the same case IDs"
        )
    return pairs


def _folder(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Image files by case ID, sorted."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    files: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        name = image_stem(path)
        if name is None:
            continue
        if name in files:
            problems.append(f"case {name}: two files, {files[name]} and {path.name}")
        files[name] = path
    return files


def _grid(path: Path) -> Volume | None:
    """The file's grid, from its header; None if that cannot be read."""
    try:
        return read_grid(path)
    except InputError:
        return None
