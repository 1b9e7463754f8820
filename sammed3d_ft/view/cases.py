"""The scans that a viewer opens: one, or the cases of a manifest; where their work is kept, and what is done."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sammed3d_ft.dataset.manifest import Case, read_manifest, write_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.images import IMAGE_SUFFIXES, image_stem, read_grid
from sammed3d_ft.provenance import file_hash

CLICKS, START, MASK, INSTANCES = "clicks.json", "start.nii.gz", "mask.nii.gz", "instances.nii.gz"
TABLE, FIGURE, SEG, RECORD = "lesions.csv", "projections.png", "lesions.dcm", "mask.predict.json"


@dataclass(frozen=True)
class ViewedCase:
    """One scan and the folder of the work on it."""

    id: str
    image: Path
    """An image file, or a DICOM folder."""
    folder: Path
    """Where clicks and results go; only this program chooses the names in it."""
    ct: Path | None = None
    clicks: Path | None = None
    """Earlier clicks to begin with."""
    start: Path | None = None
    """A mask to begin with."""
    series: tuple[str, ...] = ()
    """Series Instance UIDs to choose in a DICOM folder."""
    listed: Case | None = None
    """Its entry in the manifest."""

    @property
    def is_dicom(self) -> bool:
        return self.image.is_dir()

    def check(self) -> None:
        """Raise InputError for what can be seen to be wrong without reading voxels."""
        if not self.is_dicom:
            read_grid(self.image)
            for given in (self.ct, self.start):
                if given is not None:
                    read_grid(given)
            if self.series:
                raise InputError(f"--series chooses in a DICOM folder, but {self.image} is a file")
        elif self.ct is not None:
            raise InputError(f"{self.image} is a DICOM folder, whose CT is found by itself; leave out --ct")
        if self.clicks is not None and not self.clicks.is_file():
            raise InputError(f"{self.clicks}: no such click file")

    @property
    def saved(self) -> bool:
        """Whether results lie in the folder that belong to the clicks in it."""
        try:
            inputs = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))["inputs"]
            for kind, name in (("clicks", CLICKS), ("start", START)):
                path = self.folder / name
                now = file_hash(path) if path.is_file() else None
                if (inputs[kind]["sha256"] if kind in inputs else None) != now:
                    return False
        except (OSError, ValueError, KeyError, TypeError):
            return False
        return (self.folder / MASK).is_file()


def single_case(
    image: Path,
    out: Path | None,
    ct: Path | None = None,
    clicks: Path | None = None,
    start: Path | None = None,
    series: Sequence[str] = (),
) -> ViewedCase:
    """A scan by itself; without ``out``, its folder is NAME_view beside it."""
    name = image_stem(image) if not image.is_dir() else Path(os.path.realpath(image)).name
    folder = out or Path(os.path.realpath(image)).parent / f"{name}_view"
    return ViewedCase(name or image.name, image, folder, ct, clicks, start, tuple(series))


def cohort_cases(manifest: Path, out: Path, clicks: Path | None, start: Path | None) -> list[ViewedCase]:
    """The cases of a manifest, each with a folder of its own in ``out``.

    Args:
        clicks: folder of click files, ``<id>.json`` (or .mrk.json, .fcsv), for the cases that have one.
        start: folder of masks, ``<id>.nii.gz`` or another image format, for the cases that have one.

    Raises:
        InputError: no such manifest or folder, no case, or a case without images.
    """
    for folder in (clicks, start):
        if folder is not None and not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder; with --manifest it should hold a file per case, named by its id"
            )
    cases = []
    for case in read_manifest(manifest).cases:
        if Path(case.id).name != case.id or case.id in (".", ".."):
            raise InputError(f"{manifest}: case {case.id!r} cannot name a folder; rename it")
        image = case.images.get("PT") or case.images["CT"]
        cases.append(
            ViewedCase(
                case.id,
                image,
                out / case.id,
                case.images.get("CT") if "PT" in case.images else None,
                _named(clicks, case.id, (".json", ".mrk.json", ".fcsv")),
                _named(start, case.id, IMAGE_SUFFIXES),
                listed=case,
            )
        )
    if not cases:
        raise InputError(f"{manifest}: lists no case")
    return cases


def write_annotated(cases: Sequence[ViewedCase], path: Path) -> None:
    """Writes the manifest of the cases that are saved, each with its instance map as the label.

    A case without a split is for training.
    """
    done = [case for case in cases if case.listed is not None and case.saved]
    write_manifest(
        path,
        [
            Case(one.id, one.listed.images, one.folder / INSTANCES, one.listed.split or "train", one.listed.group)
            for one in done
            if one.listed is not None
        ],
    )


def _named(folder: Path | None, case: str, endings: Sequence[str]) -> Path | None:
    if folder is None:
        return None
    return next((folder / f"{case}{end}" for end in endings if (folder / f"{case}{end}").is_file()), None)
