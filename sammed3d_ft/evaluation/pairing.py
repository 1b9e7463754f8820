"""Which prediction belongs to which truth and PET: by case id, never by position, all offenders named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prompts.errors import InputError
from sammed3d_ft.data.images import Volume, grid_difference, image_stem, read_grid
from sammed3d_ft.data.manifest import listing, read_manifest

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
    probability: Path | None = None

    @property
    def files(self) -> dict[str, Path]:
        """The files that there are, by ``truth``, ``prediction``, ``pet``, ``probability``."""
        named = {"truth": self.truth, "prediction": self.pred, "pet": self.pet, "probability": self.probability}
        return {name: path for name, path in named.items() if path is not None}


def pair_files(pred: Path, gt: Path, pet: Path | None = None, *, probability: Path | None = None) -> list[CasePaths]:
    """One case from single files, whatever their names; its id is the truth's file name.

    Raises:
        InputError: a file is not there, or grids differ.
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
    """Cases from folders of image files; the file name without its suffix (`IMAGE_SUFFIXES`) is the case id.

    PET files are named by the case id, or by it and nnU-Net's channel ``_0001``; other files of the PET
    folder are ignored, as are files that are no images. Probability maps are named by the case id.

    Raises:
        InputError: missing or extra files, or grids that differ; all of them in one message.
    """
    problems: list[str] = []
    truths = _folder(gt_dir, problems)
    if not truths:
        raise InputError(f"{gt_dir}: holds no images (.nii.gz, .nii, .nrrd, .mha, .mhd) to evaluate against")
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
    """Cases from a manifest: labels by id, its `PT` images as PET if no folder is given, groups as patients.

    Args:
        pred_dir: holds ``<id>.nii.gz`` of every case, and nothing more.
        manifest: a manifest file.
        pet_dir: PET files to use instead of the manifest's.
        split: only the cases of this split.
        probability_dir: holds the probability map ``<id>.nii.gz`` of every case, and nothing more.

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
    pairs = _pair(pred_dir, truths, pet_dir, probability_dir, problems)
    check_grids(pairs)
    return pairs


def check_grids(pairs: Sequence[CasePaths]) -> None:
    """Check from the headers that truth, prediction, PET and probabilities of each case lie on one grid.

    A file whose header cannot be read is passed over here: reading it says what is wrong with it.

    Raises:
        InputError: shapes or affines that differ; all of them in one message.
    """
    problems = []
    for case in pairs:
        truth = _grid(case.truth)
        others = (("prediction", case.pred), ("PET", case.pet), ("probability map", case.probability))
        for name, path in others:
            other = None if path is None else _grid(path)
            difference = None if truth is None or other is None else grid_difference(other, truth)
            if difference:
                problems.append(f"case {case.id}: {name} is on another grid than the truth ({difference})")
    if problems:
        raise InputError(
            listing(problems, "grid differs", "grids differ", len(problems)) + "; resample to the truth's grid first"
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
            problems.append(f"case {name}: no truth at {truth}")
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
        problems += [f"{path} belongs to no case" for name, path in files.items() if name not in truths]
    if problems:
        raise InputError(
            listing(problems, "file does not fit", "files do not fit", len(problems))
            + "; truth and prediction must bear the same case ids"
        )
    return pairs


def _folder(folder: Path, problems: list[str]) -> dict[str, Path]:
    """Image files by case id, sorted by it."""
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
    """Where the file lies, from its header; None when that cannot be read."""
    try:
        return read_grid(path)
    except InputError:
        return None
