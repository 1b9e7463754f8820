"""Lists the contents of a folder of DICOM files, and chooses a series from it."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from sammed3d_ft.dicom.headers import number_of, reading, text_of
from sammed3d_ft.errors import InputError

IMAGE_NAMES = {"PT": "PET", "CT": "CT"}
REGION_MODALITIES = ("RTSTRUCT", "SEG")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_MOST_DEFLATED = 1 << 20  # bytes; pydicom unpacks a whole file at once, to at most 1032 times its size


@dataclass(frozen=True, eq=False)
class DicomFile:
    """One file, or one frame of it: its header, without pixels.

    `frame` counts from 0; None means a classic file, which holds one slice.
    """

    path: Path
    header: Dataset
    frame: int | None = None

    def text(self, keyword: str) -> str:
        """An attribute as text in one line; "" if it is missing or empty."""
        with reading(self.path):
            return text_of(self.header, keyword)

    def number(self, keyword: str) -> float | None:
        """An attribute as a finite number, else None."""
        with reading(self.path):
            return number_of(self.header, keyword)


@dataclass(frozen=True, eq=False)
class FoundSeries:
    """The files of one series, in arbitrary order."""

    uid: str
    modality: str
    files: tuple[DicomFile, ...]

    @property
    def frame_of_reference(self) -> str:
        """UID of the space that positions refer to; "" when the series states none."""
        return self.files[0].text("FrameOfReferenceUID")

    def __str__(self) -> str:
        description = self.files[0].text("SeriesDescription") or "no description"
        return f"{self.uid} ({description}, {len(self.files)} images)"


@dataclass(frozen=True, eq=False)
class DicomFolder:
    """The contents of a folder: its image series, and its files with regions (RTSTRUCT, SEG)."""

    path: Path
    series: tuple[FoundSeries, ...]
    regions: tuple[DicomFile, ...]

    def contents(self) -> str:
        """The contents, in one phrase."""
        counts = Counter(f"{IMAGE_NAMES.get(one.modality, one.modality or 'unnamed')} series" for one in self.series)
        counts.update(f"{one.text('Modality')} file" for one in self.regions)
        return ", ".join(f"{number} {name}{'s' * (name[-1] != 's' and number > 1)}" for name, number in counts.items())


def scan_folder(folder: str | os.PathLike[str]) -> DicomFolder:
    """Read the header of every DICOM file in a folder and its subfolders; other files are skipped.

    Raises:
        InputError: no such folder, no DICOM files in it, the same DICOM object twice, or a truncated DICOM file.
    """
    root = Path(folder)
    if not root.is_dir():
        raise InputError(f"{root}: {'is a file, expected a folder' if root.exists() else 'no such folder'}")
    series: defaultdict[tuple[str, str], list[DicomFile]] = defaultdict(list)
    regions = []
    seen: dict[str, Path] = {}
    others = 0
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        with reading(path):
            header = _header(path)
            if header is None or header.get("SOPInstanceUID") is None:  # such as a DICOMDIR, which only lists files
                others += 1
                continue
            file = DicomFile(path, header)
            uid, modality, of = file.text("SOPInstanceUID"), file.text("Modality"), file.text("SeriesInstanceUID")
        if uid in seen:
            raise InputError(f"{path}: is the same DICOM object as {seen[uid]}; remove one of the two")
        seen[uid] = path
        if modality in REGION_MODALITIES:
            regions.append(file)
        else:
            series[of, modality].append(file)
    if not seen:
        raise InputError(f"{root}: contains no DICOM files ({others} others); give the folder of a DICOM export")
    found = (FoundSeries(uid, modality, tuple(files)) for (uid, modality), files in series.items())
    return DicomFolder(root, tuple(found), tuple(regions))


def _header(path: Path) -> Dataset | None:
    """The file's header; None if it is not a DICOM file (these have DICM at byte 128)."""
    with path.open("rb") as file:
        deflated = _DEFLATED in file.read(1024)
    if deflated and path.stat().st_size > _MOST_DEFLATED:
        raise InputError(f"{path}: is deflated DICOM of more than 1 MiB and could fill the memory; decompress it first")
    try:
        return pydicom.dcmread(path, stop_before_pixels=True)
    except InvalidDicomError:
        return None


def choose_series(
    folder: DicomFolder, modality: str, uids: Sequence[str] = (), frame_of_reference: str | None = None
) -> FoundSeries:
    """The series of a modality to use: the only one, or the one named in ``uids``.

    Args:
        folder: what `scan_folder` found.
        modality: "PT" or "CT".
        uids: Series Instance UIDs chosen by the user, of any modality.
        frame_of_reference: if several CT series remain, those in this frame of reference are preferred.

    Raises:
        InputError: no series, or several of which none is chosen (they are listed); a UID that is not that of a PET or
            CT series.
    """
    known = {one.uid: one for one in folder.series if one.modality in IMAGE_NAMES}
    for uid in uids:
        if uid not in known:
            what = next((f" has modality {one.modality}" for one in folder.series if one.uid == uid), " not found")
            raise InputError(f"{folder.path}: --series {uid}{what}; PET and CT series found: {_list(known.values())}")
    name = IMAGE_NAMES[modality]
    candidates = [one for one in known.values() if one.modality == modality]
    if not candidates:
        wrong = [uid for uid in uids if known[uid].modality != modality]
        hint = f"; --series {wrong[0]} is {IMAGE_NAMES[known[wrong[0]].modality]}" if wrong else ""
        raise InputError(f"{folder.path}: contains no {name} series (found: {folder.contents() or 'nothing'}){hint}")
    named = [one for one in candidates if one.uid in uids]
    if not named and modality == "CT":
        # Scout views are stored as CT too; a CT in another frame of reference is not aligned with this PET.
        candidates = [one for one in candidates if not _is_localizer(one)] or candidates
        if frame_of_reference:
            candidates = [one for one in candidates if one.frame_of_reference == frame_of_reference] or candidates
    remaining = named or candidates
    if len(remaining) > 1:
        raise InputError(
            f"{folder.path}: contains {len(remaining)} {name} series{' named by --series' if named else ''}; "
            f"choose one with --series UID: {_list(remaining)}"
        )
    return remaining[0]


def _is_localizer(series: FoundSeries) -> bool:
    return "LOCALIZER" in (series.files[0].header.get("ImageType") or ())


def _list(series: Iterable[FoundSeries]) -> str:
    return "; ".join(str(one) for one in series) or "none"
