"""DICOM files made for tests: small PET and CT series, and an RTSTRUCT, with nothing of a patient."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    CTImageStorage,
    EnhancedPETImageStorage,
    ExplicitVRLittleEndian,
    LegacyConvertedEnhancedPETImageStorage,
    PositronEmissionTomographyImageStorage,
    RTStructureSetStorage,
    generate_uid,
)

STUDY, FRAME = generate_uid(entropy_srcs=["study"]), generate_uid(entropy_srcs=["frame"])
SHAPE = (6, 4, 5)  # slices, rows, columns


def pet_header(**changes: Any) -> Dataset:
    """What SUV needs. 200 MBq at 10:00:00, scanned 6600 s = one half-life later, 70 kg: factor 7e-4.

    A change to None removes the attribute; those of the radiopharmaceutical are found by name.
    """
    header, tracer = Dataset(), Dataset()
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = 2e8, 6600
    tracer.RadiopharmaceuticalStartTime = "100000"
    header.RadiopharmaceuticalInformationSequence = [tracer]
    header.PatientWeight, header.Units, header.DecayCorrection = 70, "BQML", "START"
    header.CorrectedImage = ["DECY", "ATTN", "SCAT"]
    header.SeriesDate, header.SeriesTime = "20200102", "115000"
    header.AcquisitionDate, header.AcquisitionTime = "20200102", "115000"
    for keyword, value in changes.items():
        target = tracer if keyword.startswith("Radi") and not keyword.endswith("Sequence") else header
        if value is None:
            delattr(target, keyword)
        else:
            setattr(target, keyword, value)
    return header


def write_series(
    folder: Path,
    stored: np.ndarray | None = None,
    *,
    modality: str = "PT",
    uid: str | None = None,
    orientation: Sequence[float] = (1, 0, 0, 0, 1, 0),
    origin_mm: Sequence[float] = (-10, -20, 30),
    step_mm: Sequence[float] = (0, 0, 3),
    spacing_mm: Sequence[float] = (4, 2),
    change: Callable[[int, Dataset], None] | None = None,
    **attributes: Any,
) -> list[Dataset]:
    """Write one file per slice, named so that names are in no order of position.

    Args:
        folder: made if absent.
        stored: (slices, rows, columns) int16; by default counts up.
        uid: Series Instance UID.
        orientation, origin_mm, step_mm: LPS; spacing_mm: (between rows, between columns), as DICOM.
        change: called with the number of the slice and its dataset before it is written.
        attributes: for PET as `pet_header`, for CT set on every slice.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if stored is None:
        stored = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    uid = uid or generate_uid()
    written = []
    for number, pixels in enumerate(stored):
        slice_ = pet_header(**attributes) if modality == "PT" else Dataset()
        if modality != "PT":
            for keyword, value in attributes.items():
                setattr(slice_, keyword, value)
        sop_class = PositronEmissionTomographyImageStorage if modality == "PT" else CTImageStorage
        _identify(slice_, sop_class, modality, uid)
        slice_.FrameOfReferenceUID, slice_.InstanceNumber = FRAME, len(stored) - number
        slice_.ImageOrientationPatient = [float(v) for v in orientation]
        slice_.ImagePositionPatient = (np.array(origin_mm, float) + number * np.array(step_mm, float)).tolist()
        slice_.PixelSpacing, slice_.SliceThickness = list(spacing_mm), 3
        slice_.Rows, slice_.Columns = pixels.shape
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 16, 15, 1
        slice_.RescaleSlope, slice_.RescaleIntercept = 1, 0
        slice_.PixelData = pixels.astype("<i2").tobytes()
        if change is not None:
            change(number, slice_)
        written.append(slice_)
        name = f"{(number * 5 + 3) % len(stored)}_{number}_{uid[-6:]}.dcm"
        slice_.save_as(folder / name, enforce_file_format=True)
    return written


def write_rtstruct(
    path: Path, regions: dict[str, list[np.ndarray]], *, frame: str = FRAME, kind: str = "CLOSED_PLANAR"
) -> None:
    """Write regions, each a list of contours of (points, 3) patient coordinates (LPS) in mm."""
    dataset = Dataset()
    _identify(dataset, RTStructureSetStorage, "RTSTRUCT", generate_uid())
    dataset.StructureSetLabel = "test"
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in enumerate(regions.items(), 1):
        region, drawn = Dataset(), Dataset()
        region.ROINumber, region.ROIName, region.ReferencedFrameOfReferenceUID = number, name, frame
        drawn.ReferencedROINumber, drawn.ContourSequence = number, []
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.4f}" for value in np.ravel(points)]
            drawn.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(region)
        dataset.ROIContourSequence.append(drawn)
    dataset.save_as(path, enforce_file_format=True)


def by_highdicom(path: Path, series: Any, masks: np.ndarray, names: list[str], kind: str = "BINARY") -> None:
    """A SEG made by highdicom alone: (slice, row, column) segment numbers, or with a last axis of one mask each."""
    import highdicom as hd
    from pydicom.sr.codedict import codes

    described = [
        hd.seg.SegmentDescription(number, name, codes.SCT.Tissue, codes.SCT.Lesion, "MANUAL")
        for number, name in enumerate(names, 1)
    ]
    hd.seg.Segmentation(
        list(series.headers), masks, kind, described, hd.UID(), 9, hd.UID(), 1, "none", "none", "1", "1"
    ).save_as(path)


def _identify(dataset: Dataset, sop_class: str, modality: str, series: str) -> None:
    dataset.SOPClassUID, dataset.SOPInstanceUID = sop_class, generate_uid()
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = STUDY, series, modality
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate, dataset.PatientSex = "Test^One", "1", "", "O"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID, dataset.AccessionNumber = "20200102", "110000", "1", ""
    dataset.ReferringPhysicianName, dataset.SeriesNumber, dataset.Manufacturer = "", 3, "none"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def write_enhanced(
    path: Path,
    stored: np.ndarray | None = None,
    *,
    legacy: bool = False,
    origin_mm: Sequence[float] = (-10, -20, 30),
    step_mm: Sequence[float] = (0, 0, 3),
    slopes: Sequence[float] | None = None,
    unit: str = "Bq/ml",
    change: Callable[[Dataset, list[Dataset]], None] | None = None,
    **attributes: Any,
) -> Dataset:
    """Write an Enhanced PET Image (one file), or a Legacy Converted one, with 200 MBq and times as `pet_header` has.

    Args:
        stored: (frames, rows, columns) int16; by default counts up.
        slopes: the Real World Value Slope of each frame, 1 by default. The Rescale Slope is always 5, for display.
        unit: UCUM code of the real world values.
        change: called with the dataset and the functional groups of the frames before the file is written.
        attributes: set on the dataset; None removes one.
    """
    if stored is None:
        stored = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    dataset, tracer, shared = Dataset(), Dataset(), Dataset()
    sop_class = LegacyConvertedEnhancedPETImageStorage if legacy else EnhancedPETImageStorage
    _identify(dataset, sop_class, "PT", generate_uid())
    dataset.FrameOfReferenceUID, dataset.InstanceNumber, dataset.PatientWeight = FRAME, 1, 70
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 16, 15, 1
    dataset.PixelData = stored.astype("<i2").tobytes()
    if legacy:
        classic = pet_header()
        shared.UnassignedSharedConvertedAttributesSequence = [classic]
    else:
        tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = 200, 6600
        tracer.RadiopharmaceuticalStartDateTime = "20200102100000"
        dataset.RadiopharmaceuticalInformationSequence = [tracer]
        dataset.DecayCorrected = dataset.AttenuationCorrected = dataset.ScatterCorrected = "YES"
        dataset.DecayCorrectionDateTime, dataset.AcquisitionDateTime = "20200102115000", "20200102115000"
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [Dataset()], [Dataset()]
    shared.PlaneOrientationSequence[0].ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence[0].PixelSpacing, shared.PixelMeasuresSequence[0].SliceThickness = [4, 2], 3
    frames = []
    for number in range(len(stored)):
        frame = Dataset()
        frame.PlanePositionSequence, frame.FrameContentSequence = [Dataset()], [Dataset()]
        frame.PlanePositionSequence[0].ImagePositionPatient = (
            np.array(origin_mm, float) + number * np.array(step_mm, float)
        ).tolist()
        frame.FrameContentSequence[0].FrameAcquisitionDateTime = f"2020010211{50 + number // 3}00"
        frame.PixelValueTransformationSequence = [Dataset()]
        rescale = frame.PixelValueTransformationSequence[0]
        rescale.RescaleSlope, rescale.RescaleIntercept, rescale.RescaleType = 5, 0, "US"
        if not legacy:
            frame.RealWorldValueMappingSequence = [value_mapping(1 if slopes is None else slopes[number], unit)]
        frames.append(frame)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    for keyword, value in attributes.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    if change is not None:
        change(dataset, frames)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return dataset


def value_mapping(slope: float, unit: str, intercept: float = 0.0, last: int = 32767) -> Dataset:
    """An item of a Real World Value Mapping Sequence for int16."""
    mapping, units = Dataset(), Dataset()
    units.CodeValue, units.CodingSchemeDesignator, units.CodeMeaning = unit, "UCUM", unit
    mapping.MeasurementUnitsCodeSequence = [units]
    mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = float(slope), float(intercept)
    mapping.add_new("RealWorldValueFirstValueMapped", "SS", -32768)
    mapping.add_new("RealWorldValueLastValueMapped", "SS", last)
    return mapping
