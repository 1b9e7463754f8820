"""Orders the slices of a series, checks that they form one volume, and reads their values."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from sammed3d_ft.dicom.folder import IMAGE_NAMES, DicomFile, FoundSeries
from sammed3d_ft.dicom.frames import frames_of
from sammed3d_ft.dicom.headers import reading
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import check_shape

# The steps of real scanners vary by a few percent, through rounding and where bed positions join (2.4 % in a GE
# Discovery ST); a missing or duplicate slice changes a step by 100 %.
STEP_TOLERANCE = 0.1
# A NIfTI file has the same step for all slices: no slice may end up further than this, in slices, from its position.
PLACE_TOLERANCE = 0.25
# Direction cosines are stored with six decimals or more.
_COSINE_TOLERANCE = 1e-3
_MM_TOLERANCE = 1e-3
_MULTI_FRAME = "is a multi-frame image whose frames state no position; convert it to classic DICOM"


@dataclass(frozen=True, eq=False)
class Series:
    """A PET or CT series as one volume.

    Attributes:
        uid: Series Instance UID.
        modality: "PT" or "CT".
        files: its slices, each a file or a frame of one, ordered by position along the normal of rows and columns
            (right-handed, LPS).
        shape: columns, rows, slices.
        affine: (4, 4) float64, (column, row, slice) -> world mm (RAS+), with equal steps from first to last slice.
        positions_mm: (slices,) float64, true position in mm of each slice along the normal (LPS).
    """

    uid: str
    modality: str
    files: tuple[DicomFile, ...]
    shape: tuple[int, int, int]
    affine: np.ndarray
    positions_mm: np.ndarray

    @property
    def headers(self) -> tuple[Dataset, ...]:
        """The headers of the slices, in order."""
        return tuple(file.header for file in self.files)

    @property
    def frame_of_reference(self) -> str:
        """UID of the space that positions refer to; "" when the series states none."""
        return self.files[0].text("FrameOfReferenceUID")

    @property
    def step_mm(self) -> float:
        """Mean distance between neighbouring slices."""
        return float(np.linalg.norm(self.affine[:3, 2]))

    @property
    def normal(self) -> np.ndarray:
        """(3,) unit vector (LPS) along which `positions_mm` are measured."""
        rows, columns = np.array(self.headers[0].ImageOrientationPatient, np.float64).reshape(2, 3)
        return np.cross(rows, columns)

    def to_vox(self, points_lps_mm: Any) -> np.ndarray:
        """Convert DICOM patient coordinates (..., 3) in mm to (column, row, slice) (..., 3) by the affine."""
        points_mm = np.asarray(points_lps_mm, np.float64) * (-1, -1, 1)
        return (points_mm - self.affine[:3, 3]) @ np.linalg.inv(self.affine[:3, :3]).T


def order_slices(found: FoundSeries) -> Series:
    """Order the slices of a series by position and check that they form one regular volume.

    Raises:
        InputError: multi-frame files; a single slice; slices that differ in size, orientation, pixel spacing or frame
            of reference; duplicate or missing slices; uneven or sheared (gantry tilt) steps.
    """
    with reading(found.files[0].path.parent):
        return _ordered(found)


def _ordered(found: FoundSeries) -> Series:
    where = f"{IMAGE_NAMES[found.modality]} series {found}"
    slices = [frame for file in found.files for frame in frames_of(file)]
    for file in slices:
        _check_one(file)
    first = slices[0]
    for name, keyword, tolerance in (
        ("rows", "Rows", 0.0),
        ("columns", "Columns", 0.0),
        ("orientation", "ImageOrientationPatient", _COSINE_TOLERANCE),
        ("pixel spacing", "PixelSpacing", _MM_TOLERANCE),
    ):
        wanted = np.array(first.header[keyword].value, np.float64)
        for file in slices:
            if np.abs(np.array(file.header[keyword].value, np.float64) - wanted).max() > tolerance:
                raise InputError(
                    f"{where}: mixes slices of different {name}, {wanted.tolist()} in {_name(first)} and "
                    f"{np.array(file.header[keyword].value, np.float64).tolist()} in {_name(file)}; "
                    "separate them"
                )
    if len({file.text("FrameOfReferenceUID") for file in slices}) > 1:
        raise InputError(f"{where}: mixes slices of different frames of reference; separate them")
    if len(slices) < 2:
        raise InputError(f"{where}: a single slice is not a volume; is the export complete?")

    rows, columns = np.array(first.header.ImageOrientationPatient, np.float64).reshape(2, 3)
    normal = np.cross(rows, columns)
    corners_mm = np.array([file.header.ImagePositionPatient for file in slices], np.float64)
    order = np.argsort(corners_mm @ normal, kind="stable")
    files = tuple(slices[i] for i in order)
    corners_mm = corners_mm[order]
    positions_mm = corners_mm @ normal
    _check_steps(where, files, positions_mm)
    step_mm = (corners_mm[-1] - corners_mm[0]) / (len(files) - 1)
    lateral_mm = np.linalg.norm(corners_mm - corners_mm[0] - np.outer(positions_mm - positions_mm[0], normal), axis=1)
    row_mm, column_mm = (float(v) for v in first.header.PixelSpacing)
    if lateral_mm.max() > 0.1 * min(row_mm, column_mm):
        raise InputError(
            f"{where}: slices are shifted sideways by up to {lateral_mm.max():.2f} mm (gantry tilt?), so they do not "
            "form an upright volume; resample it first"
        )
    affine = np.eye(4)
    # Pixel Spacing is (between rows, between columns); ImageOrientationPatient is (along a row, along a column).
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = rows * column_mm, columns * row_mm, step_mm
    affine[:3, 3] = corners_mm[0]
    affine[:2] *= -1  # LPS to RAS
    shape = (int(first.header.Columns), int(first.header.Rows), len(files))
    check_shape(shape, where)
    return Series(found.uid, found.modality, files, shape, affine + 0.0, positions_mm)


def _name(file: DicomFile) -> str:
    return file.path.name if file.frame is None else f"frame {file.frame + 1}"


def _check_one(file: DicomFile) -> None:
    header = file.header
    if int(header.get("NumberOfFrames") or 1) > 1:
        raise InputError(f"{file.path}: {_MULTI_FRAME}")
    sizes = {
        "Rows": 1, "Columns": 1, "ImageOrientationPatient": 6, "ImagePositionPatient": 3, "PixelSpacing": 2
    }  # fmt: skip
    for keyword, size in sizes.items():
        try:
            values = np.array(header[keyword].value, np.float64)
        except (KeyError, TypeError, ValueError):
            values = np.array([])
        if values.size != size or not np.isfinite(values).all():
            raise InputError(f"{file.path}: has no valid {keyword}, so its position is unknown; export it again")
    if int(header.get("SamplesPerPixel") or 1) != 1:
        raise InputError(f"{file.path}: is a colour image, not measured values; remove it")
    along_row, along_column = np.array(header.ImageOrientationPatient, np.float64).reshape(2, 3)
    lengths = np.array([along_row @ along_row, along_column @ along_column])
    if np.abs(lengths - 1).max() > _COSINE_TOLERANCE or abs(along_row @ along_column) > _COSINE_TOLERANCE:
        raise InputError(f"{file.path}: ImageOrientationPatient is not a pair of perpendicular unit vectors")
    if min(header.PixelSpacing) <= 0:
        raise InputError(f"{file.path}: PixelSpacing {list(header.PixelSpacing)} must be above 0")


def _check_steps(where: str, files: tuple[DicomFile, ...], positions_mm: np.ndarray) -> None:
    steps_mm = np.diff(positions_mm)
    usual_mm = float(np.median(steps_mm))
    small = int(np.argmin(steps_mm))
    if steps_mm[small] < _MM_TOLERANCE or steps_mm[small] < 0.01 * usual_mm:
        raise InputError(
            f"{where}: {_name(files[small])} and {_name(files[small + 1])} have the same position; is the series "
            "dynamic or gated, or exported twice?"
        )
    large = int(np.argmax(steps_mm))
    missing = steps_mm[large] / usual_mm - 1
    if missing > 0.5:
        raise InputError(
            f"{where}: {round(float(missing))} slice(s) missing between {_name(files[large])} and "
            f"{_name(files[large + 1])}, as the step is {steps_mm[large]:.2f} mm instead of {usual_mm:.2f} mm; "
            "export the series again"
        )
    if np.abs(steps_mm - usual_mm).max() > STEP_TOLERANCE * usual_mm:
        raise InputError(
            f"{where}: slices are {steps_mm.min():.2f} to {steps_mm.max():.2f} mm apart; a volume needs equal steps "
            f"(within {STEP_TOLERANCE:.0%})"
        )
    away = np.abs(positions_mm - np.linspace(positions_mm[0], positions_mm[-1], len(files))).max() / usual_mm
    if away > PLACE_TOLERANCE:
        raise InputError(f"{where}: uneven steps put a slice {away:.2f} slices from its position on an even grid")
    stated = int(files[0].header.get("NumberOfSlices") or 0)
    if stated > len(files):
        raise InputError(
            f"{where}: the files state {stated} slices but only {len(files)} were found, so slices are missing at an "
            "end; export the series again"
        )


def read_values(series: Series, factor: float = 1.0) -> np.ndarray:
    """The rescaled values of a series times ``factor``, (column, row, slice) float32.

    Each slice uses its own slope and intercept, in an enhanced PET those of its Real World Value Mapping:
    (stored * slope + intercept) * factor.

    Raises:
        InputError: pixels that are missing, truncated, compressed in an unsupported way, or outside the mapped range;
            no rescale values; a CT in units other than HU.
    """
    values = np.empty(series.shape, np.float32)
    opened: Path | None = None
    for index, file in enumerate(series.files):
        kind = "RealWorldValue" if "RealWorldValueSlope" in file.header else "Rescale"
        slope, intercept = (file.number(f"{kind}{which}") for which in ("Slope", "Intercept"))
        if slope is None or intercept is None:
            raise InputError(f"{file.path}: has no Rescale Slope and Intercept, so its values have no unit")
        if series.modality == "CT" and file.text("RescaleType") not in ("", "HU"):
            raise InputError(f"{file.path}: CT values are in {file.text('RescaleType')}, expected HU")
        if file.path != opened:
            frames, opened = _pixels(file), file.path
        if len(frames) <= (file.frame or 0) or frames.shape[1:] != series.shape[1::-1]:
            raise InputError(f"{file.path}: its pixels do not match its header; export it again")
        stored = frames[file.frame or 0]
        first, last = (file.number(f"RealWorldValue{end}ValueMapped") for end in ("First", "Last"))
        if first is not None and last is not None and (stored.min() < first or stored.max() > last):
            raise InputError(
                f"{file.path}: {_name(file)} stores values of {stored.min()} to {stored.max()}, but only {first:g} to "
                f"{last:g} have a unit"
            )
        values[:, :, index] = ((stored * slope + intercept) * factor).T
    return values


def _pixels(file: DicomFile) -> np.ndarray:
    """The stored values of a file, (frames, rows, columns)."""
    syntax: Any = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pydicom")  # of odd pixels, which are counted below
            dataset = pydicom.dcmread(file.path)
            syntax = dataset.file_meta.get("TransferSyntaxUID")
            stored = dataset.pixel_array
        return stored.reshape(-1, *stored.shape[-2:])
    except Exception as error:  # pydicom and its decoders answer damaged pixels with almost any
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"{file.path}: pixels stored as {getattr(syntax, 'name', syntax)} cannot be read ({first_line}); "
            "export it again, uncompressed"
        ) from error
