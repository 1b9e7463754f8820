"""DICOM SEG: writes masks as a segmentation that references its source series, and reads them onto a series' grid."""

from __future__ import annotations

import os
import warnings as python_warnings
from pathlib import Path
from typing import Any, Literal

import highdicom as hd
import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from sammed3d_ft import __version__
from sammed3d_ft.dicom.folder import DicomFile
from sammed3d_ft.dicom.headers import reading
from sammed3d_ft.dicom.series import Series
from sammed3d_ft.errors import InputError
from sammed3d_ft.files import whole_file

AlgorithmType = Literal["MANUAL", "SEMIAUTOMATIC", "AUTOMATIC"]

# Tolerances for a frame to lie on a slice: they allow for rounded positions, not for another grid.
_SAME_SLICE = 0.1
_SAME_PLACE_VOX = 0.05
_COSINE_TOLERANCE = 1e-3


def region_names(file: DicomFile, frame_of_reference: str) -> tuple[str, ...]:
    """The names of a file's segments (see `segment_numbers`) if it is in this frame of reference, else none."""
    with reading(file.path):
        if (file.text("FrameOfReferenceUID") or frame_of_reference) != frame_of_reference:
            return ()
        return tuple(segment_numbers(file))


def segment_numbers(file: DicomFile) -> dict[str, list[int]]:
    """Name -> segment numbers. A label that occurs n times names all of them, and "label #1" to "label #n" one each."""
    numbers: dict[str, list[int]] = {}
    for one in file.header.get("SegmentSequence") or []:
        if int(one.SegmentNumber) > 0:  # 0 is the background of a label map
            numbers.setdefault(str(one.get("SegmentLabel") or ""), []).append(int(one.SegmentNumber))
    for label, repeated in list(numbers.items()):
        if len(repeated) > 1:
            sign = "#"
            while any(f"{label} {sign}{place}" in numbers for place in range(1, len(repeated) + 1)):
                sign += "#"
            numbers |= {f"{label} {sign}{place}": [number] for place, number in enumerate(repeated, 1)}
    return numbers


def read_region(file: DicomFile, name: str, series: Series) -> tuple[np.ndarray, list[str]]:
    """The mask of the segment with this name, (column, row, slice) bool, and warnings; see `segment_numbers` for names.

    A repeated label gives the union of its segments. Slices without a frame are empty. Each frame is placed by its own
    position, which must be that of a slice of the series.

    Raises:
        InputError: no such segment; probabilities (FRACTIONAL) instead of a mask; frames that differ from the slices of
            the series in size, orientation or position.
    """
    where = f"{file.path}: segment {name!r}"
    with reading(where):
        return _read_region(file, name, series, where)


def _read_region(file: DicomFile, name: str, series: Series, where: str) -> tuple[np.ndarray, list[str]]:
    named = segment_numbers(file)
    if name not in named:
        names = ", ".join(region_names(file, series.frame_of_reference)) or "none"
        raise InputError(f"{where}: not found; segments on this scan: {names}")
    numbers = named[name]
    kind = file.text("SegmentationType")
    if kind not in ("BINARY", "LABELMAP"):
        raise InputError(f"{where}: the type is {kind or 'not stated'}, expected BINARY or LABELMAP")
    if (int(file.header.Columns), int(file.header.Rows)) != series.shape[:2]:
        raise InputError(
            f"{where}: frames of {file.header.Columns}x{file.header.Rows} do not fit series {series.uid} of "
            f"{series.shape[0]}x{series.shape[1]}; it belongs to another series"
        )
    segmentation = hd.seg.segread(file.path)
    owner = np.zeros(series.shape, np.uint16)  # the first segment that contains a voxel
    shared = np.zeros(series.shape, bool)
    for index in range(segmentation.number_of_frames):
        frame = [segmentation.PerFrameFunctionalGroupsSequence[index]]
        frame += segmentation.get("SharedFunctionalGroupsSequence") or []
        if kind == "BINARY":
            number = int(_of(frame, "SegmentIdentificationSequence").ReferencedSegmentNumber)
            if number not in numbers:
                continue
            stored = segmentation.get_stored_frame(index + 1).T * np.uint16(number)
        else:
            stored = segmentation.get_stored_frame(index + 1).T
        ours = np.isin(stored, numbers)
        first = owner[:, :, place := _slice_of(frame, series, where)]
        shared[:, :, place] |= ours & (first > 0) & (first != stored)
        owner[:, :, place] = np.where(ours & (first == 0), stored, first)
    warnings = []
    if len(numbers) > 1:
        numbered = [other for other, its in named.items() if other != name and set(its) < set(numbers)]
        warnings.append(
            f"{where}: the label occurs {len(numbers)} times, numbered {numbered[0]!r} to {numbered[-1]!r}; the mask "
            f"is their union, in which {int(shared.sum())} voxels belong to more than one"
        )
    return owner > 0, warnings


def _of(groups: list[Dataset], keyword: str) -> Dataset:
    """A functional group of a frame: its own, or else the one shared by all frames."""
    for group in groups:
        if group.get(keyword):
            return group[keyword].value[0]
    raise KeyError(f"a frame has no {keyword}")


def _slice_of(frame: list[Dataset], series: Series, where: str) -> int:
    """The index of the slice that a frame lies on."""
    orientation = np.array(_of(frame, "PlaneOrientationSequence").ImageOrientationPatient, np.float64)
    wanted = np.array(series.headers[0].ImageOrientationPatient, np.float64)
    spacing = np.array(_of(frame, "PixelMeasuresSequence").PixelSpacing, np.float64)
    spacing_wanted = np.array(series.headers[0].PixelSpacing, np.float64)
    # A difference in spacing is expressed as the shift, in voxels, of the far corner.
    drift_vox = np.abs(spacing / spacing_wanted - 1) * (series.shape[1], series.shape[0])
    if np.abs(orientation - wanted).max() > _COSINE_TOLERANCE or drift_vox.max() > _SAME_PLACE_VOX:
        raise InputError(f"{where}: frames are not on the grid of series {series.uid}; resample it to that series")
    corner_mm = np.array(_of(frame, "PlanePositionSequence").ImagePositionPatient, np.float64)
    away_mm = np.abs(series.positions_mm - corner_mm @ series.normal)
    index = int(away_mm.argmin())
    shift_vox = np.abs(series.to_vox(corner_mm)[:2]).max()
    if away_mm[index] > _SAME_SLICE * series.step_mm or shift_vox > _SAME_PLACE_VOX:
        raise InputError(
            f"{where}: a frame lies {away_mm[index]:.2f} mm and {shift_vox:.2f} voxels from the nearest slice of "
            f"series {series.uid}; it belongs to another series"
        )
    return index


def write_segmentation(
    path: str | os.PathLike[str],
    labels: np.ndarray,
    series: Series,
    algorithm_type: AlgorithmType = "SEMIAUTOMATIC",
) -> int:
    """Write a mask or instance map as a binary DICOM SEG that references its source slices.

    Patient, study and frame of reference are copied from the source. Each label above 0 becomes a segment, numbered
    from 1 in increasing order: "Lesion" for a mask, "Lesion <label>" for an instance map.

    Args:
        path: file to write, atomically.
        labels: (column, row, slice) integers on the grid of ``series``; 0 is background.
        series: the source.
        algorithm_type: how the mask was made.

    Returns:
        Number of segments.

    Raises:
        InputError: an empty mask, or a source without the attributes that a SEG must copy.
    """
    present = np.unique(labels)
    present = present[present != 0]
    if not len(present):
        raise InputError(f"{path}: the mask is empty, and a DICOM SEG needs at least one segment")
    if labels.shape != series.shape:
        raise ValueError(f"labels of shape {labels.shape} do not fit the series' {series.shape}")
    made_by = hd.AlgorithmIdentificationSequence("sammed3d-ft", codes.DCM.ArtificialIntelligence, __version__)
    segments = [
        hd.seg.SegmentDescription(
            segment_number=number,
            segment_label="Lesion" if len(present) == 1 else f"Lesion {label}",
            segmented_property_category=codes.SCT.MorphologicallyAbnormalStructure,
            segmented_property_type=codes.SCT.Lesion,
            algorithm_type=algorithm_type,
            algorithm_identification=None if algorithm_type == "MANUAL" else made_by,
            tracking_uid=hd.UID(),
            tracking_id=f"Lesion {label}",
        )
        for number, label in enumerate(present.tolist(), 1)
    ]
    frames = labels.transpose(2, 1, 0)
    # Renumber labels as segments, in the smallest type that fits.
    numbered = np.searchsorted(present, frames).astype(np.uint8 if len(present) < 255 else np.uint16) + 1
    numbered[frames == 0] = 0
    source: list[Any] = list(series.headers)
    if series.files[0].frame is not None:  # highdicom reads an enhanced image itself, and wants masks in its order
        source = [pydicom.dcmread(series.files[0].path, stop_before_pixels=True)]
        numbered = numbered[np.argsort([file.frame or 0 for file in series.files])]
    try:
        with python_warnings.catch_warnings():
            # Pseudonyms have a single name component; the warning about that would print them.
            python_warnings.filterwarnings("ignore", ".*unlikely to represent the intended person name", UserWarning)
            segmentation = hd.seg.Segmentation(
                source_images=source,
                pixel_array=numbered,
                segmentation_type=hd.seg.SegmentationTypeValues.BINARY,
                segment_descriptions=segments,
                series_instance_uid=hd.UID(),
                series_number=1000 + int(series.headers[0].get("SeriesNumber") or 0),
                sop_instance_uid=hd.UID(),
                instance_number=1,
                manufacturer="sammed3d-ft",
                manufacturer_model_name="sammed3d-ft",
                software_versions=__version__,
                device_serial_number="1",
                content_description="Lesions",
                content_label="LESIONS",
                series_description="Lesions",
            )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: series {series.uid} cannot be referenced ({first_line})") from error
    with whole_file(Path(path)) as temporary:
        segmentation.save_as(temporary)
    return len(segments)
