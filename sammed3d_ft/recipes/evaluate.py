"""Evaluate masks against the ground truth: pair the files, evaluate each case, write the tables and the report.

An interrupted evaluation resumes where it stopped; under `accelerate launch` the processes share the cases.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm

from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.cohort import CaseEvaluation, Foreground, evaluate_pairs, workers_that_help
from sammed3d_ft.evaluation.html_report import write_page
from sammed3d_ft.evaluation.pairing import CasePaths, pair_files, pair_folders, pair_manifest
from sammed3d_ft.evaluation.report import write_report
from sammed3d_ft.images.outputs import record_beside
from sammed3d_ft.model.published import click_mode
from sammed3d_ft.training.run_lock import locked_run


def run(
    pred: Path,
    gt: Path,
    out: Path,
    pet: Path | None = None,
    split: str | None = None,
    connectivity: int = 18,
    foreground: Foreground = "binary",
    figures: bool = True,
    *,
    instances: bool = False,
    probabilities: Path | None = None,
    compat: Sequence[str] = (),
    workers: int | None = 0,
) -> dict[str, Any]:
    """Evaluate ``pred`` against ``gt`` and return the content of summary.json.

    Finished cases are stored in ``out/cases``, so re-running the same command evaluates only cases that are missing or
    whose files, settings or format have changed.

    Args:
        pred: a folder of predicted masks named by case ID, or one mask file.
        gt: a folder of ground-truth masks, a manifest (.json), or one mask file if ``pred`` is one.
        out: folder for cases.csv, lesions.csv, summary.json, report.html and ``figures``.
        pet: folder of PET images in SUV (one file if ``pred`` is one); a manifest names its own.
        split: with a manifest, only the cases of this split.
        connectivity: 6, 18 or 26.
        foreground: which labels are lesion.
        figures: draw ``figures/<case>.png``, the PET projections with both masks (without PET, the masks alone).
        instances: ground truth and prediction are instance maps.
        probabilities: folder of probability maps named by case ID (one file if ``pred`` is one), for FROC and AP.
        compat: names of published rules to score by as well.
        workers: number of processes to start; None chooses a sensible number.

    Raises:
        InputError: files that do not match (all are listed), or another evaluation that is writing to ``out``.
    """
    pairs = _pairs(pred, gt, pet, split, probabilities)
    rank, processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    with _joined(processes), locked_run(out) if rank == 0 else nullcontext():
        mine = pairs[rank::processes]

        def bar(cases: Iterable[CasePaths]) -> Iterable[CasePaths]:
            return tqdm(cases, "evaluate", unit="case", leave=False, disable=True if rank else None)

        evaluations = evaluate_pairs(
            mine,
            connectivity,
            foreground,
            bar,
            instances=instances,
            compat=compat,
            keep_in=out / "cases",
            figures=out / "figures" if figures else None,
            workers=workers_that_help(len(mine)) if workers is None else workers,
        )
        if processes > 1:
            evaluations = _gathered(evaluations, pairs)
        configuration = {
            "pred": str(pred),
            "gt": str(gt),
            "pet": None if pet is None else str(pet),
            "probabilities": None if probabilities is None else str(probabilities),
            "split": split,
            "connectivity": connectivity,
            "foreground": foreground,
            "instances": instances,
            "compat": list(compat),
            "predicted_by": _predicted_by(pairs),
        }
        summary = write_report(evaluations, out if rank == 0 else None, configuration)
        if rank == 0:
            write_page(evaluations, summary, out / "report.html", out / "figures" if figures else None)
    return summary


def _pairs(pred: Path, gt: Path, pet: Path | None, split: str | None, probabilities: Path | None) -> list[CasePaths]:
    for path in (pred, gt, pet, probabilities):
        if path is not None and not path.exists():
            raise InputError(f"{path}: no such file or folder")
    if gt.is_file() and gt.suffix.lower() == ".json":
        return pair_manifest(pred, gt, pet, split, probability_dir=probabilities)
    if split is not None:
        raise InputError(f"--split {split} needs a manifest as --gt, got {gt}")
    if gt.is_file() != pred.is_file():
        raise InputError(f"--gt {gt} and --pred {pred}: give two folders, two files, or a manifest and a folder")
    if gt.is_file():
        return pair_files(pred, gt, pet, probability=probabilities)
    return pair_folders(pred, gt, pet, probability_dir=probabilities)


def _predicted_by(pairs: Sequence[CasePaths]) -> list[str]:
    """The prompted models and click modes that `predict` recorded beside the masks; empty for other masks."""
    found: Counter[str] = Counter()
    for pair in pairs:
        try:
            record = json.loads(record_beside(pair.pred, "predict").read_text(encoding="utf-8"))
            found[f"{record['checkpoint']}, {click_mode(record['accumulate_clicks'])}"] += 1
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return [f"{model}: {count} of {len(pairs)} masks" for model, count in found.items()]


@contextmanager
def _joined(processes: int) -> Iterator[None]:
    """The processes of a launch, in contact during the block."""
    if processes == 1:  # spares importing torch
        yield
        return
    from accelerate import PartialState

    from sammed3d_ft.training.contact import in_contact

    # On the CPU whatever the launcher's settings, since only results travel. The timeout is long because one process
    # may have far larger scans than another; `in_contact` notices earlier if one is lost.
    with in_contact(partial(PartialState, cpu=True, timeout=timedelta(days=1))) as state:
        yield
    state.destroy_process_group()


def _gathered(mine: list[CaseEvaluation], pairs: Sequence[CasePaths]) -> list[CaseEvaluation]:
    """The cases of all processes, in the order of the pairs."""
    from accelerate.utils import gather_object

    by_case = {case.paths.id: case for case in gather_object(mine)}
    return [by_case[pair.id] for pair in pairs]
