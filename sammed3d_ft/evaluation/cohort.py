"""Evaluates a cohort in one or several processes; a case that fails is marked and does not stop the others."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.case import evaluate_case
from sammed3d_ft.evaluation.compat import COMPAT, compat_columns
from sammed3d_ft.evaluation.kept_cases import CaseEvaluation, file_name, keep, kept, made_of
from sammed3d_ft.evaluation.pairing import CasePaths
from sammed3d_ft.evaluation.results import CaseResult
from sammed3d_ft.figures.mip import draw_mip
from sammed3d_ft.images.grids import Volume, grid_difference
from sammed3d_ft.images.images import read_image, read_label
from sammed3d_ft.provenance import file_hash

Foreground = Literal["binary", "any"] | int
"""Which label values are lesion, in ground truth and prediction alike: ``binary`` (only 0 and 1 allowed), ``any``
(all above 0), or one value of at least 1."""

_MOST_WORKERS = 8  # each keeps one case in memory, about 0.7 GB for a whole body of 400 x 400 x 600 voxels


def evaluate_pairs(
    pairs: Sequence[CasePaths],
    connectivity: int = 18,
    foreground: Foreground = "binary",
    progress: Callable[[Iterable[CasePaths]], Iterable[CasePaths]] = iter,
    *,
    instances: bool = False,
    compat: Sequence[str] = (),
    keep_in: Path | None = None,
    figures: Path | None = None,
    workers: int = 0,
) -> list[CaseEvaluation]:
    """Evaluate cases, in the order given.

    Args:
        pairs: the files of each case.
        connectivity: 6, 18 or 26.
        foreground: which labels are lesion.
        progress: wraps the cases to show a progress bar, as tqdm does.
        instances: both masks are instance maps, see `evaluate_case`; every label above 0 is a lesion.
        compat: names of published scoring rules (`COMPAT`) whose columns are added.
        keep_in: folder that stores each finished case; a case whose files, settings and format are unchanged is read
            from there instead of evaluated again.
        figures: folder for ``<case>.png``, the projections with both masks.
        workers: number of processes; 0 and 1 evaluate in this process.

    Raises:
        InputError: contradictory settings, a folder that cannot be written to, or a killed process.
    """
    unknown = [name for name in compat if name not in COMPAT]
    if unknown:
        raise InputError(f"unknown scoring rule {unknown[0]!r}; expected one of {', '.join(COMPAT)}")
    if foreground not in ("binary", "any") and int(foreground) < 1:
        raise InputError(f"foreground {foreground}: expected a lesion label of at least 1, as 0 is the background")
    if instances and foreground not in ("binary", "any"):
        raise InputError(f"foreground {foreground} contradicts instance maps, where every label is a lesion")
    for folder in filter(None, (keep_in, figures)):  # fail here once instead of in every case
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{folder}: cannot be written ({error.strerror or error})") from error
    one = partial(
        evaluate_pair,
        connectivity=connectivity,
        foreground=foreground,
        instances=instances,
        compat=tuple(compat),
        keep_in=keep_in,
        figures=figures,
    )
    if workers <= 1:
        return [one(case) for case in progress(pairs)]
    with _processes(workers) as pool:
        results = pool.map(one, pairs)
        return [next(results) for _ in progress(pairs)]


def evaluate_pair(
    case: CasePaths,
    connectivity: int = 18,
    foreground: Foreground = "binary",
    *,
    instances: bool = False,
    compat: Sequence[str] = (),
    keep_in: Path | None = None,
    figures: Path | None = None,
) -> CaseEvaluation:
    """Read and evaluate one case. A problem with its files becomes its ``error`` instead of an exception."""
    hashes: dict[str, str] = {}
    try:
        hashes = _hashes(case)
        if keep_in is None:
            result, columns = _evaluate(case, connectivity, foreground, instances, compat, figures)
            return CaseEvaluation(case, result, None, hashes, columns)
        settings = {"connectivity": connectivity, "foreground": foreground, "instances": instances, "compat": [*compat]}
        of = made_of(hashes, settings)
        before = kept(keep_in, case, of)
        # An existing figure may show older files: it counts only if it was drawn from this result.
        no_figure = figures is not None and not (before and before.drawn and figure_file(figures, case).is_file())
        if before is None or no_figure:
            result, columns = _evaluate(case, connectivity, foreground, instances, compat, figures)
            keep(keep_in, CaseEvaluation(case, result, None, hashes, columns, figures is not None), of)
            before = kept(keep_in, case, of)  # read back, so that a resumed evaluation returns the same bits
        assert before is not None
        return before
    except (InputError, MemoryError, OSError) as error:
        return CaseEvaluation(case, None, str(error) or type(error).__name__, hashes)


def workers_that_help(cases: int) -> int:
    """Number of processes worth starting for this many cases; 0 if starting them costs more than it saves.

    Each process gets at least two cases. There is at most one per available processor (shared with the launcher's
    other processes), and at most eight, to limit memory.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    usable //= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    workers = min(usable, cases // 2, _MOST_WORKERS)
    return workers if workers > 1 else 0


def figure_file(folder: Path, case: CasePaths) -> Path:
    """The PNG of a case in the folder of figures."""
    return folder / file_name(case.id, ".png")


def _evaluate(
    case: CasePaths,
    connectivity: int,
    foreground: Foreground,
    instances: bool,
    compat: Sequence[str],
    figures: Path | None,
) -> tuple[CaseResult, dict[str, float]]:
    truth = read_label(case.truth, case=case.id)
    pred = read_label(case.pred, case=case.id)
    pet = _image(case.pet, case, "PET", truth)
    probability = _image(case.probability, case, "probability map", truth)
    difference = grid_difference(pred, truth)
    if difference:
        raise InputError(f"case {case.id}: prediction and ground truth are on different grids ({difference})")
    if instances:
        gt_mask, pred_mask = truth.array, pred.array
    else:
        gt_mask = _lesion_mask(truth.array, foreground, case.id, case.truth)
        pred_mask = _lesion_mask(pred.array, foreground, case.id, case.pred)
    spacing = truth.spacing_mm
    try:
        result = evaluate_case(
            gt_mask,
            pred_mask,
            spacing,
            pet,
            connectivity,
            truth.affine,
            instances=instances,
            probability=probability,
        )
        columns: dict[str, float] = {}
        for name in compat:
            columns |= compat_columns(name, gt_mask, pred_mask, spacing, pet)
    except InputError as error:
        raise InputError(f"case {case.id}: {error}") from error
    if figures is not None:
        dice = "n/a" if result.dice != result.dice else f"{result.dice:.3f}"
        file, title = figure_file(figures, case), f"{case.id}, Dice {dice}"
        draw_mip(pet, spacing, file, gt_mask != 0, pred_mask != 0, title=title)
    return result, columns


def _image(path: Path | None, case: CasePaths, name: str, truth: Volume) -> np.ndarray | None:
    if path is None:
        return None
    image = read_image(path, case=case.id)
    difference = grid_difference(image, truth)
    if difference:
        raise InputError(f"case {case.id}: {name} and ground truth are on different grids ({difference})")
    return image.array


def _lesion_mask(labels: np.ndarray, foreground: Foreground, case: str, path: Path) -> np.ndarray:
    if foreground == "any":
        return labels > 0
    if foreground != "binary":
        return labels == foreground
    if labels.max() > 1:
        raise InputError(
            f"case {case}: {path} is not binary, it contains label {labels.max()}; select the lesion labels with "
            "--foreground any, or --foreground and one label"
        )
    return labels > 0


def _hashes(case: CasePaths) -> dict[str, str]:
    """Hashes of the files as stored, at a fraction of the cost of decompressing them."""
    hashes = {}
    for name, path in case.files.items():
        try:
            hashes[name] = file_hash(path)
        except OSError as error:
            raise InputError(f"case {case.id}: {path}: cannot be read ({error.strerror or error})") from error
    return hashes


@contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    # Spawn, because a fork would copy locks held by threads of this process (of tqdm or a BLAS library).
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_live_with_the_parent)
    try:
        yield pool
    except BrokenProcessPool as error:
        raise InputError(
            "an evaluation process was killed, often for lack of memory; re-run the same command with fewer --workers, "
            "finished cases are kept"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _live_with_the_parent() -> None:
    """In a worker: leave Ctrl-C to the parent, and exit when the parent ends for any reason."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch(sentinel: Any = parent.sentinel) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
