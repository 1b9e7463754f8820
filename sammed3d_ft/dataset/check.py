"""Pre-flight check of a manifest: read every file and list everything that would break training or evaluation."""

from __future__ import annotations

import contextlib
import logging
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from sammed3d_ft.dataset.manifest import MODALITIES, SPLITS, Case, Manifest, listing
from sammed3d_ft.dataset.plausibility import doubts
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume, grid_difference, same_grid, without_voxels
from sammed3d_ft.images.images import read_image, read_label

_COVERED_SHARE = 0.8
_LISTED = 10


@dataclass(frozen=True)
class Problem:
    """One finding; `case` is empty if it concerns the whole manifest."""

    case: str
    severity: Literal["error", "warning"]
    text: str


@dataclass(frozen=True)
class CaseSummary:
    """Summary of a readable case; `lesions` and `volume_ml` are None without a readable label."""

    id: str
    split: str | None
    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    lesions: int | None
    volume_ml: float | None


@dataclass(frozen=True)
class CheckReport:
    """All findings, and a summary of each case whose first image was readable."""

    path: Path
    problems: tuple[Problem, ...]
    summaries: tuple[CaseSummary, ...]

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    def raise_if_bad(self) -> None:
        """Raise one InputError that lists every error; warnings are ignored."""
        if self.errors:
            lines = [f"case {e.case}: {e.text}" if e.case else e.text for e in self.errors]
            more = "; `sammed3d-ft check` lists all" if len(lines) > _LISTED else ""
            raise InputError(f"{self.path}: {listing(lines, 'error', 'errors', shown=_LISTED)}{more}")


def check_manifest(
    manifest: Manifest,
    modalities: Sequence[str] = ("PT",),
    *,
    connectivity: int = 18,
    threads: int | None = None,
    progress: bool = True,
) -> CheckReport:
    """Read every file of a manifest and report all problems at once.

    Args:
        manifest: as read by `read_manifest`.
        modalities: required modalities. The label must be on the grid of the first one; the others must overlap it.
        connectivity: 6, 18 or 26, used to count lesions.
        threads: number of cases read in parallel; None means up to four.
        progress: show a progress bar if standard error is a terminal.

    Returns:
        CheckReport. Errors: missing, unreadable or truncated files, a label on another grid than its image, images
        that do not overlap, NaN or infinite values, labels that are negative or not integers, a missing modality or
        label, repeated IDs, a file used twice, unknown splits, patient leakage (one patient in two splits).
        Warnings: values that do not look like SUV or HU, ambiguous geometry, a label without lesions, an empty split.
    """
    unknown = [name for name in modalities if name not in MODALITIES]
    if unknown or not modalities or len(set(modalities)) < len(modalities):
        raise InputError(f"modalities {list(modalities)}: expected one or more of {list(MODALITIES)}, each once")
    threads = threads or min(4, os.cpu_count() or 1)
    summaries: list[CaseSummary] = []
    problems = _manifest_problems(manifest)
    bar = tqdm(total=len(manifest.cases), desc="check", unit="case", disable=None if progress else True)
    with _listed_not_logged(), bar, ThreadPoolExecutor(threads) as pool:
        for found, summary in pool.map(lambda case: _check_case(case, modalities, connectivity), manifest.cases):
            problems += found
            if summary is not None:
                summaries.append(summary)
            bar.update()
    return CheckReport(manifest.path, tuple(problems), tuple(summaries))


@contextlib.contextmanager
def _listed_not_logged() -> Iterator[None]:
    """Silence the reader's log of geometry warnings, because the report lists them."""
    log = logging.getLogger("sammed3d_ft.images.images")

    def silent(_record: logging.LogRecord) -> bool:
        return False

    log.addFilter(silent)
    try:
        yield
    finally:
        log.removeFilter(silent)


def _manifest_problems(manifest: Manifest) -> list[Problem]:
    """Problems visible without opening any file."""
    problems = []
    seen: dict[str, int] = defaultdict(int)
    uses: dict[str, list[str]] = defaultdict(list)
    splits_of: dict[str, set[str]] = defaultdict(set)
    for case in manifest.cases:
        seen[case.id] += 1
        for role, file in (*case.images.items(), ("label", case.label)):
            if file is not None:
                uses[os.path.realpath(file)].append(f"{role} of {case.id}")
        if case.group and case.split:
            splits_of[case.group].add(case.split)
        if case.split is not None and case.split not in SPLITS:
            problems.append(
                Problem(case.id, "error", f"unknown split {case.split!r}, expected one of {', '.join(SPLITS)}")
            )
    problems += [Problem(name, "error", f"the ID is used {n} times") for name, n in seen.items() if n > 1]
    problems += [
        Problem("", "error", f"{file} is used {len(roles)} times: {', '.join(roles)}")
        for file, roles in uses.items()
        if len(roles) > 1
    ]
    problems += [
        Problem("", "error", f"patient leakage: patient {group} is in the splits {' and '.join(sorted(splits))}")
        for group, splits in splits_of.items()
        if len(splits) > 1
    ]
    problems += [Problem("", "warning", f"no cases in {split}") for split in SPLITS if not manifest.split(split)]
    left_out = sum(case.split is None for case in manifest.cases)
    if left_out:
        problems.append(Problem("", "warning", f"{left_out} cases have no split and will not be used"))
    return problems


def _check_case(case: Case, modalities: Sequence[str], connectivity: int) -> tuple[list[Problem], CaseSummary | None]:
    problems: list[Problem] = []

    def error(text: str) -> None:
        problems.append(Problem(case.id, "error", text))

    def warn(text: str) -> None:
        problems.append(Problem(case.id, "warning", text))

    for modality in modalities:
        if modality not in case.images:
            error(f"has no {modality}")
    reference: Volume | None = None
    others: dict[str, Volume] = {}
    for modality in sorted(case.images, key=lambda name: name != modalities[0]):
        try:
            image = read_image(case.images[modality])
        except InputError as problem:
            error(f"{modality}: {problem}")
            continue
        if image.source.warning:
            warn(f"{modality}: {image.source.warning}")
        for text in doubts(modality, image.array):
            warn(f"{modality}: {text}")
        empty = without_voxels(image.source)  # from here on, only the grid is needed
        if modality == modalities[0]:
            reference = empty
        else:
            others[modality] = empty
    for modality, image in others.items():
        if reference is not None:
            share = _covered_share(reference, image)
            if share == 0:
                error(f"{modality} does not overlap the {modalities[0]}")
            elif share < _COVERED_SHARE:
                warn(f"{modality} covers only {share:.0%} of the {modalities[0]}")
    lesions = volume_ml = None
    if case.label is None:
        if case.split in ("train", "val"):
            error(f"has no label, which is required in {case.split}")
        elif case.split == "test":
            warn("has no label: it can be predicted but not scored")
    else:
        try:
            label = read_label(case.label)
        except InputError as problem:
            error(f"label: {problem}")
        else:
            if label.source.warning:
                warn(f"label: {label.source.warning}")
            if reference is not None and (difference := grid_difference(label, reference)):
                on = [modality for modality, image in others.items() if same_grid(label, image)]
                hint = f" (it is on the grid of the {on[0]})" if on else ""
                error(f"label: not on the grid of the {modalities[0]}: {difference}{hint}; {case.label}")
            lesions, volume_ml = _count_lesions(label, connectivity)
            if lesions == 0:
                use = (
                    "it provides no training target"
                    if case.split == "train"
                    else "kept: any predicted lesion counts as false positive"
                )
                warn(f"label: no lesions; {use}")
    if reference is None:
        return problems, None
    spacing = tuple(float(mm) for mm in reference.spacing_mm)
    return problems, CaseSummary(case.id, case.split, reference.array.shape, spacing, lesions, volume_ml)


def _covered_share(reference: Volume, image: Volume) -> float:
    """Fraction of the reference's voxels inside the image, sampled at up to 33 positions along each axis."""
    axes = [np.unique(np.linspace(0, n - 1, min(n, 33)).round()) for n in reference.array.shape]
    points_vox = np.stack(np.meshgrid(*axes, indexing="ij"), -1)
    points = image.to_vox(reference.to_mm(points_vox))
    inside = (points >= -0.5) & (points <= np.array(image.array.shape) - 0.5)
    return float(inside.all(-1).mean())


def _count_lesions(label: Volume, connectivity: int) -> tuple[int, float]:
    from prompts.lesions import lesions_from_mask

    _, count = lesions_from_mask(label.array, connectivity)
    voxel_ml = abs(np.linalg.det(label.affine[:3, :3])) / 1000
    return count, float(np.count_nonzero(label.array) * voxel_ml)
