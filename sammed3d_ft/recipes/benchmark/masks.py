"""Makes the masks of a run's test cases, with or without clicks; resumes case by case."""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
from tqdm import tqdm

import prompts
import sammed3d_ft
from prompts.errors import InputError
from prompts.whole_files import write_whole
from sammed3d_ft.data.images import read_image, write_mask
from sammed3d_ft.data.itk_images import file_hash
from sammed3d_ft.data.manifest import Case
from sammed3d_ft.inference.autopet_steps import autopet_steps
from sammed3d_ft.inference.simulation import Clickable, read_case, simulate_case
from sammed3d_ft.recipes.benchmark import segmenters
from sammed3d_ft.recipes.benchmark.config import BenchmarkConfig
from sammed3d_ft.recipes.benchmark.segmenters import Automatic, Segmenter, Source
from sammed3d_ft.versions import code_digest

AUTOMATIC = "automatic"
"""Name of the folder of masks made without clicks."""

_RECORD = "made_of.json"


def level_name(clicks: int | None) -> str:
    """Name of the folder of masks after this many clicks; None means without clicks."""
    return AUTOMATIC if clicks is None else f"{clicks}_clicks"


def make_masks(
    config: BenchmarkConfig,
    source: Source,
    cases: Sequence[Case],
    folder: Path,
    lesions: tuple[str, int],
    again: frozenset[str] = frozenset(),
) -> dict[str, str]:
    """Write the missing masks of every case as ``<level>/<case>.nii.gz`` in a folder.

    The folder's record lists what its masks depend on. Masks made with another model, other clicks or other labels are
    deleted first.

    Args:
        lesions: what is clicked (``each`` lesion, or ``all`` together), and the connectivity of lesions.
        again: cases whose masks turned out to be broken.

    Returns:
        Error messages by case id; all other cases are done.
    """
    _forget_what_changed(folder, _made_of(config, source, cases, lesions))
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


def _made_of(
    config: BenchmarkConfig, source: Source, cases: Sequence[Case], lesions: tuple[str, int]
) -> dict[str, Any]:
    content = dict(source.made_of)
    if source.clickable:
        content |= {"protocol": config.protocol, "clicks_at": config.click_counts, "lesions": list(lesions)}
    return {"made_of": content | {"code": _mask_code()}, "cases": {case.id: case_facts(case) for case in cases}}


@cache
def _mask_code() -> str:
    """Digest of the source files and package versions that the masks of any method depend on."""
    ours = Path(sammed3d_ft.__file__).parent
    rooms = [ours / name for name in ("baselines", "data", "inference", "lesions", "model")]
    sources = [file for room in (Path(prompts.__file__).parent, *rooms) for file in room.glob("*.py")]
    sources += [Path(__file__), Path(segmenters.__file__)]
    return code_digest(sources, ("torch", "monai", "numpy", "scipy", "nibabel"))


def _forget_what_changed(folder: Path, now: dict[str, Any]) -> None:
    """Delete masks whose record differs from ``now``, and write ``now`` as the new record."""
    record = folder / _RECORD
    try:
        before = json.loads(record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    if before == now:
        return
    if before.get("made_of") != now["made_of"]:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        for case, facts in now["cases"].items():
            if before["cases"].get(case) != facts:
                for path in folder.glob(f"*/{glob.escape(case)}.nii.gz"):
                    path.unlink()
    write_whole(record, json.dumps(now, indent=1))


def case_facts(case: Case) -> dict[str, Any]:
    """A fingerprint of the case: file sizes of its images, hash of its label."""
    missing = [str(path) for path in (*case.images.values(), case.label) if path is None or not path.is_file()]
    if missing:
        return {"missing": missing}
    assert case.label is not None
    stat = case.label.stat()
    return {
        "images": {name: path.stat().st_size for name, path in case.images.items()},
        "label": _sha256(case.label, stat.st_size, stat.st_mtime_ns),
    }


@lru_cache(maxsize=100_000)
def _sha256(path: Path, size: int, modified_ns: int) -> str:
    return file_hash(path)
