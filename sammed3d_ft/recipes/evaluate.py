"""Evaluate masks against truths: pair the files, evaluate each case, write the tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from prompts.errors import InputError
from sammed3d_ft.data.images import read_image, read_label
from sammed3d_ft.evaluation.cohort import CaseEvaluation, Foreground, evaluate_pairs
from sammed3d_ft.evaluation.pairing import pair_files, pair_folders, pair_manifest
from sammed3d_ft.evaluation.report import write_report
from sammed3d_ft.figures import draw_mip


def run(
    pred: Path,
    gt: Path,
    out: Path,
    pet: Path | None = None,
    split: str | None = None,
    connectivity: int = 18,
    foreground: Foreground = "binary",
    figures: bool = False,
) -> dict[str, Any]:
    """Evaluate ``pred`` against ``gt`` and return the content of summary.json.

    Args:
        pred: a folder of predicted masks named by case id, or one mask file.
        gt: a folder of true masks, a manifest (.json), or one mask file where ``pred`` is one.
        out: folder for cases.csv, lesions.csv and summary.json.
        pet: folder of PET images in SUV (one file where ``pred`` is one); a manifest brings its own.
        split: of a manifest, only these cases.
        connectivity: 6, 18 or 26.
        foreground: which labels are lesion.
        figures: draw ``figures/<case>.png`` for every case with a PET, its projections with both masks.

    Raises:
        InputError: the files do not fit together; every offender is named.
    """
    for path in (pred, gt, pet):
        if path is not None and not path.exists():
            raise InputError(f"{path}: no such file or folder")
    if gt.is_file() and gt.suffix.lower() == ".json":
        pairs = pair_manifest(pred, gt, pet, split)
    elif split is not None:
        raise InputError(f"--split {split} needs a manifest as --gt, got {gt}")
    elif gt.is_file() != pred.is_file():
        raise InputError(
            f"--gt {gt} and --pred {pred}: give two folders, two files, or a manifest and a folder"
        )
    elif gt.is_file():
        pairs = pair_files(pred, gt, pet)
    else:
        pairs = pair_folders(pred, gt, pet)

    evaluations = evaluate_pairs(
        pairs, connectivity, foreground, lambda cases: tqdm(cases, "evaluate", unit="case", leave=False)
    )
    configuration = {
        "pred": str(pred),
        "gt": str(gt),
        "pet": None if pet is None else str(pet),
        "split": split,
        "connectivity": connectivity,
        "foreground": foreground,
    }
    summary = write_report(evaluations, out, configuration)
    if figures:
        _draw(evaluations, out / "figures")
    return summary


def _draw(evaluations: Sequence[CaseEvaluation], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for evaluation in tqdm(evaluations, "figures", unit="case", leave=False):
        case = evaluation.paths
        if evaluation.result is None or case.pet is None:
            continue
        pet, truth, pred = read_image(case.pet), read_label(case.truth), read_label(case.pred)
        title = f"{case.id}, Dice {evaluation.result.dice:.3f}"
        draw_mip(pet.array, pet.spacing_mm, folder / f"{case.id}.png", truth.array > 0, pred.array > 0, title=title)
