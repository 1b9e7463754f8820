"""Splits an enhanced (multi-frame) image into its frames, each with a header like that of a classic file of one slice.

What differs from classic files (DICOM PS3.3): position, orientation, spacing and times are in functional groups, shared
by all frames or per frame (C.7.6.16); PET values get their unit from the Real World Value Mapping, which applies to
stored values (C.7.6.16.2.11); corrections are single flags, and the moment of decay correction is stated (C.8.22.6);
the dose is in MBq (C.8.22.4; see `suv`). Files converted from classic ones ("legacy converted") keep the classic
attributes as unassigned converted attributes.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydicom.dataset import Dataset
from pydicom.valuerep import DT

from sammed3d_ft.dicom.folder import DicomFile
from sammed3d_ft.dicom.headers import reading, text_of
from sammed3d_ft.errors import InputError

_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
# Macros whose attributes have the same names and meanings in classic files.
_SAME_AS_CLASSIC = (
    "PixelMeasuresSequence", "PlanePositionSequence", "PlaneOrientationSequence", "PixelValueTransformationSequence",
    "UnassignedSharedConvertedAttributesSequence", "UnassignedPerFrameConvertedAttributesSequence",
)  # fmt: skip
# UCUM codes of the units of PET, as the defined terms of (0054,1001) and (0054,1006); the first that is there is used.
_UNITS = {"g/ml{SUVbw}": ("GML", "BW"), "Bq/ml": ("BQML", "")}
_CORRECTIONS = {
    "DecayCorrected": "DECY", "AttenuationCorrected": "ATTN", "ScatterCorrected": "SCAT", "RandomsCorrected": "RAN",
    "DeadTimeCorrected": "DTIM",
}  # fmt: skip


def is_enhanced(header: Dataset) -> bool:
    """Whether an image has functional groups, even if for a single frame."""
    return any(keyword in header for keyword in _GROUPS)


def frames_of(file: DicomFile) -> list[DicomFile]:
    """The frames of an enhanced image, in the order of their pixels; a classic file is returned as it is.

    Raises:
        InputError: functional groups that are damaged or do not match the number of frames; values without one linear
            mapping to a unit.
    """
    if not is_enhanced(file.header):
        return [file]
    with reading(file.path):
        header = file.header
        frames = header.get("PerFrameFunctionalGroupsSequence") or []
        if len(frames) != int(header.get("NumberOfFrames") or 1):
            raise InputError(
                f"{file.path}: states {header.get('NumberOfFrames')} frames, describes {len(frames)}; export it again"
            )
        shared = (header.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
        common = Dataset()
        common.update({one.tag: one for one in header if one.keyword not in (*_GROUPS, "NumberOfFrames")})
        _set_series_time(common, frames)
        return [
            DicomFile(file.path, _classic(common, (shared, own), f"{file.path}: frame {index + 1}"), index)
            for index, own in enumerate(frames)
        ]


def _classic(common: Dataset, groups: tuple[Dataset, Dataset], where: str) -> Dataset:
    header = Dataset()
    header.update(common)
    for group in groups:  # a frame's own values replace the shared ones
        for keyword in _SAME_AS_CLASSIC:
            for item in group.get(keyword) or ():
                header.update(item)
    content = next((one for group in groups for one in group.get("FrameContentSequence") or ()), Dataset())
    if acquired := _acquired(content, header):
        header.AcquisitionDate, header.AcquisitionTime = acquired.strftime("%Y%m%d"), acquired.strftime("%H%M%S.%f")
    if duration := text_of(content, "FrameAcquisitionDuration"):
        header.ActualFrameDuration = duration
    if "DecayCorrected" in header:
        header.CorrectedImage = [term for flag, term in _CORRECTIONS.items() if text_of(header, flag) == "YES"]
        # The moment of correction is in Decay Correction DateTime, whether it is that of the scan or of the injection.
        header.DecayCorrection = "START" if text_of(header, "DecayCorrected") == "YES" else "NONE"
    mappings = [one for group in groups for one in group.get("RealWorldValueMappingSequence") or ()]
    if mappings and text_of(header, "Modality") == "PT":
        _map_values(header, mappings, where)
    return header


def _acquired(content: Dataset, header: Dataset) -> DT | None:
    """When a frame was acquired, or else when the acquisition of the image began."""
    stated = text_of(content, "FrameAcquisitionDateTime") or text_of(header, "AcquisitionDateTime")
    return DT(stated) if stated else None


def _set_series_time(header: Dataset, frames: Iterable[Dataset]) -> None:
    """The first acquisition stands in for Series Date and Time, which an enhanced image may lack."""
    contents = [one for frame in frames for one in frame.get("FrameContentSequence") or ()]
    acquired = [moment for one in contents if (moment := _acquired(one, header)) is not None]
    if acquired and not (text_of(header, "SeriesDate") and text_of(header, "SeriesTime")):
        header.SeriesDate, header.SeriesTime = min(acquired).strftime("%Y%m%d"), min(acquired).strftime("%H%M%S.%f")


def _map_values(header: Dataset, mappings: Iterable[Dataset], where: str) -> None:
    """Set the units, and copy slope, intercept and range of the Real World Value Mapping, which `read_values` uses."""
    by_unit: dict[str, list[Dataset]] = {}
    for mapping in mappings:
        by_unit.setdefault(text_of(mapping.MeasurementUnitsCodeSequence[0], "CodeValue"), []).append(mapping)
    unit = next((known for known in _UNITS if known in by_unit), "")
    if not unit:
        raise InputError(f"{where}: its values are in {', '.join(by_unit)}; SUV needs {' or '.join(_UNITS)}")
    if len(by_unit[unit]) > 1 or "RealWorldValueSlope" not in by_unit[unit][0]:
        raise InputError(f"{where}: its values have no single linear mapping to {unit}; export it as classic DICOM")
    header.Units, header.SUVType = _UNITS[unit]
    header.update({one.tag: one for one in by_unit[unit][0] if one.keyword.startswith("RealWorldValue")})
