"""Reads the scan to view, from image files or a DICOM folder, and collects notes for the page."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sammed3d_ft.dataset.plausibility import check_suv, doubts
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume
from sammed3d_ft.images.images import read_image
from sammed3d_ft.view.cases import ViewedCase

_HU = (-32768, 32767)


@dataclass
class Scan:
    """The images of a case that have been read so far."""

    image: Path
    """The image file; for DICOM, the imported one."""
    volume: Volume
    modality: str
    """Modality of the image: CT if its values look like one, otherwise PT."""
    ct: Path | None
    """The CT file that accompanies a PET."""
    patient: str = ""
    """Patient of a DICOM series, shown on the page; never logged or stored."""
    notes: list[str] = field(default_factory=list)
    not_suv: str | None = None
    """Why a PET cannot be in SUV; it can then be viewed, but not segmented."""
    ct_volume: Volume | None = None

    @property
    def volumes(self) -> dict[str, Volume]:
        """The volumes read so far, by modality."""
        found = {self.modality: self.volume}
        return found if self.ct_volume is None else found | {"CT": self.ct_volume}

    def read_ct(self) -> None:
        """Read the CT, if there is one. It is read separately, because it can take longer than the PET."""
        if self.ct is not None:
            volume = read_image(self.ct)
            self.notes += [f"CT: {doubt}" for doubt in doubts("CT", volume.array)]
            self.ct_volume = volume


def read_scan(case: ViewedCase) -> Scan:
    """Read the image of a case, without its CT (see `Scan.read_ct`).

    Raises:
        InputError: an image that cannot be read or imported.
    """
    image, ct, patient, notes = case.image, case.ct, "", list[str]()
    if case.is_dicom:
        patient, notes = _import(case)
        image, ct = case.folder / "PT.nii.gz", case.folder / "CT.nii.gz"
        ct = ct if ct.is_file() else None
    volume = read_image(image)
    modality = "CT" if ct is None and float((volume.array < -200).mean()) > 0.01 else "PT"
    scan = Scan(image, volume, modality, ct, patient, notes)
    if volume.source.warning:
        scan.notes.append(volume.source.warning)
    if modality == "PT":
        try:
            check_suv(volume.array, "the image")
        except InputError as error:
            scan.not_suv = str(error)
        else:
            scan.notes += [f"PET: {doubt}" for doubt in doubts("PT", volume.array)]
    return scan


def _import(case: ViewedCase) -> tuple[str, list[str]]:
    """Import a DICOM folder into the case's folder, unless that is already done; return the patient and notes."""
    from sammed3d_ft.dicom.folder import scan_folder  # the DICOM libraries take a while to import
    from sammed3d_ft.recipes.import_dicom import run

    contents = scan_folder(case.image)
    first = next((one.files[0] for one in contents.series if one.modality == "PT"), None)
    names = [] if first is None else [first.text("PatientName"), first.text("PatientID")]
    patient = ", ".join(filter(None, names))
    notes: list[str] = []
    if not _imported(case):
        try:
            run(case.image, case.folder, case.series, ct=any(one.modality == "CT" for one in contents.series))
        except InputError as error:
            run(case.image, case.folder, case.series)  # fails again if the PET is the reason
            notes.append(f"without the CT: {error}")
    return patient, notes


def _imported(case: ViewedCase) -> bool:
    try:
        record = json.loads((case.folder / "import.json").read_text(encoding="utf-8"))
        chosen = {one["series"] for one in record["images"].values()}
        names = record["images"].keys()
        return (
            record["folder"] == str(case.image)
            and chosen >= set(case.series)
            and all((case.folder / f"{name}.nii.gz").is_file() for name in names)
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def voxel_bytes(modality: str, volume: Volume) -> memoryview:
    """Voxels for the page, (x, y, z) in C order, little-endian: float32 for a PET, rounded int16 HU for a CT."""
    array = volume.array
    array = np.clip(np.rint(array), *_HU).astype("<i2") if modality == "CT" else array.astype("<f4", copy=False)
    return np.ascontiguousarray(array).data.cast("B")
