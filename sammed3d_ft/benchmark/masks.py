"""Makes the masks of a run's test cases, with or without clicks; resumes case by case."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from sammed3d_ft.benchmark.config import BenchmarkConfig
from sammed3d_ft.benchmark.segmenters import Automatic, Segmenter, Source
from sammed3d_ft.dataset.case_images import read_case
from sammed3d_ft.dataset.manifest import Case
from sammed3d_ft.errors import InputError
from sammed3d_ft.files import write_whole
from sammed3d_ft.images.images import read_image, write_mask
from sammed3d_ft.prompted.autopet_steps import autopet_steps
from sammed3d_ft.prompted.simulated_user import Clickable, simulate_case
from sammed3d_ft.provenance import case_content, digest, package_versions

AUTOMATIC = "automatic"
"""Name of the folder of masks made without clicks."""

MASKS_FORMAT = 2
"""Increment when a method would make different masks from the same weights, settings and cases: crops, intensities,
resampling, placement and effect of clicks, post-processing, the autoPET steps, threshold rules, 2D SAM, cascade. Not
for wording, speed, or code that only training or scoring uses. Older masks stay in their own folders."""

_RECORD = "made_of.json"


def level_name(clicks: int | None) -> str:
    """Name of the folder of masks after this many clicks; None means without clicks."""
    return AUTOMATIC if clicks is None else f"{clicks}_clicks"


def masks_for(
    config: BenchmarkConfig, source: Source, cases: Sequence[Case], root: Path, lesions: tuple[str, int]
) -> Path:
    """The folder in ``root`` for these masks, named by everything they depend on; created if missing.

    A new folder starts with copies of the masks of unchanged cases; older folders are left as they are.
    """
    content = {"format": MASKS_FORMAT, **source.made_of}
    if source.clickable:
        content |= {"protocol": config.protocol, "clicks_at": config.click_counts, "lesions": list(lesions)}
    facts = {case.id: case_facts(case) for case in cases}
    folder = root / digest(content, facts)
    if (folder / _RECORD).is_file():
        return folder
    for record in root.glob(f"*/{_RECORD}"):
        before = json.loads(record.read_text(encoding="utf-8"))
        same = [case for case in facts if facts[case] == before["cases"].get(case)]
        for case in same if before["made_of"] == content else ():
            for mask in record.parent.glob(f"*/{glob.escape(case)}.nii.gz"):
                write_whole(folder / mask.parent.name / mask.name, mask.read_bytes())
    versions = package_versions("torch", "monai", "numpy", "scipy", "nibabel")
    write_whole(folder / _RECORD, json.dumps({"made_of": content, "cases": facts, "begun_with": versions}, indent=1))
    return folder


def make_masks(
    config: BenchmarkConfig,
    source: Source,
    cases: Sequence[Case],
    folder: Path,
    lesions: tuple[str, int],
    again: frozenset[str] = frozenset(),
) -> dict[str, str]:
    """Write the missing masks of every case as ``<level>/<case>.nii.gz`` in a folder.

    Args:
        folder: see `masks_for`.
        lesions: what is clicked (``each`` lesion, or ``all`` together), and the connectivity of lesions.
        again: cases whose masks turned out to be broken.

    Returns:
        Error messages by case ID; all other cases are done.
    """
    if source.open is None:
        return {}
    levels: list[int | None] = [*config.click_counts] if source.clickable else [None]
    todo = [
        case
        for case in cases
        if case.id in again or not all((folder / level_name(k) / f"{case.id}.nii.gz").is_file() for k in levels)
    ]
    failed = {}
    segmenter = source.open() if todo else None
    for case in tqdm(todo, "masks", unit="case", leave=False, disable=not todo):
        assert segmenter is not None
        try:
            _make(config, segmenter, source.clickable, case, folder, lesions)
        except (InputError, RuntimeError, MemoryError, OSError) as error:
            failed[case.id] = " ".join(str(error).split())[:300] or type(error).__name__
    return failed


def _make(
    config: BenchmarkConfig, segmenter: Segmenter, clickable: bool, case: Case, folder: Path, lesions: tuple[str, int]
) -> None:
    """The masks of one case at every level."""
    images, label = read_case(case, segmenter.modalities)
    like = images[segmenter.modalities[0]]

    def keep(clicks: int | None, mask: np.ndarray) -> None:
        write_mask(folder / level_name(clicks) / f"{case.id}.nii.gz", mask.astype(np.uint8), like)

    if not clickable:
        keep(None, cast(Automatic, segmenter).mask(images, case.id))
        return
    model = cast(Clickable, segmenter)
    if config.protocol == "autopet4":
        if "PT" not in case.images:
            raise InputError(f"case {case.id}: protocol autopet4 places clicks by uptake, but the manifest has no PT")
        pet = images["PT"] if "PT" in images else read_image(case.images["PT"], case=case.id)
        for step, mask in enumerate(autopet_steps(model, images, label, pet)):
            keep(step, mask)
        return
    targets, connectivity = lesions
    simulate_case(
        model,
        images,
        label,
        config.click_counts,
        case=case.id,
        connectivity=connectivity,
        targets=targets,
        on_mask=keep,
    )


def case_facts(case: Case) -> dict[str, Any]:
    """The case's identity, or which of its files are missing."""
    missing = [str(path) for path in (*case.images.values(), case.label) if path is None or not path.is_file()]
    return {"missing": missing} if missing else case_content(case)
