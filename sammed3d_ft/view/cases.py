"""The scans to view, a single one or the cases of a manifest, with their work folders and saved state."""

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
    """One scan and its work folder."""

    id: str
    image: Path
    """An image file, or a DICOM folder."""
    folder: Path
    """Work folder for clicks and results, with fixed file names."""
    ct: Path | None = None
    clicks: Path | None = None
    """Initial clicks."""
    start: Path | None = None
    """Initial mask."""
    series: tuple[str, ...] = ()
    """Series Instance UIDs to use from a DICOM folder."""
    listed: Case | None = None
    """The case's entry in the manifest."""

    @property
    def is_dicom(self) -> bool:
        return self.image.is_dir()

    def check(self) -> None:
        """Raise InputError for problems visible without reading voxels."""
        if not self.is_dicom:
            read_grid(self.image)
            for given in (self.ct, self.start):
                if given is not None:
                    read_grid(given)
            if self.series:
                raise InputError(f"--series is for a DICOM folder, but {self.image} is a file")
        elif self.ct is not None:
            raise InputError(f"{self.image} is a DICOM folder, from which the CT is read as well; omit --ct")
        if self.clicks is not None and not self.clicks.is_file():
            raise InputError(f"{self.clicks}: no such click file")

    @property
    def saved(self) -> bool:
        """Whether the folder contains results for the clicks in it."""
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
    """The case of a single scan; the default folder is NAME_view beside it."""
    name = image_stem(image) if not image.is_dir() else Path(os.path.realpath(image)).name
    folder = out or Path(os.path.realpath(image)).parent / f"{name}_view"
    return ViewedCase(name or image.name, image, folder, ct, clicks, start, tuple(series))


def cohort_cases(manifest: Path, out: Path, clicks: Path | None, start: Path | None) -> list[ViewedCase]:
    """The cases of a manifest, each with its own folder in ``out``.

    Args:
        clicks: folder of click files, ``<id>.json`` (or .mrk.json, .fcsv), for the cases that have one.
        start: folder of masks, ``<id>.nii.gz`` or another image format, for the cases that have one.

    Raises:
        InputError: a missing manifest or folder, no cases, or a case without images.
    """
    for folder in (clicks, start):
        if folder is not None and not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder; with --manifest, expected a folder with one file per case, named by case ID"
            )
    cases = []
    for case in read_manifest(manifest).cases:
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
        raise InputError(f"{manifest}: contains no cases")
    return cases


def write_annotated(cases: Sequence[ViewedCase], path: Path) -> None:
    """Write a manifest of the saved cases, with their instance maps as labels.

    Cases without a split are assigned to train.
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
