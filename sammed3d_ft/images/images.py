"""Read and write images (NIfTI, NRRD, MetaImage) with their geometry.

The geometry of a NIfTI file is its sform if it has a code, else its qform, else its voxel sizes (nibabel's rule).
If this choice matters, because sform and qform disagree or both are missing, `geometry_warning` says so.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import math
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np

from sammed3d_ft.errors import InputError
from sammed3d_ft.files import MOST_COMPRESSED, unpack_gzip, whole_file
from sammed3d_ft.images import itk_images
from sammed3d_ft.images.grids import (
    SourceGrid,
    Volume,
    canonical_orientation,
    check_affine,
    check_finite,
    check_shape,
    corner_shift_vox,
    to_canonical,
    without_voxels,
)

_NIFTI = (".nii.gz", ".nii")
IMAGE_SUFFIXES = (*_NIFTI, *itk_images.READ)
WRITTEN_SUFFIXES = (*_NIFTI, *itk_images.WRITTEN)
_EXPECTED = "expected a .nii, .nii.gz, .nrrd, .mha or .mhd file"
_log = logging.getLogger(__name__)


def image_stem(path: Path) -> str | None:
    """An image file's name without suffix, used as case ID; None for hidden files and other formats."""
    for suffix in IMAGE_SUFFIXES:
        if path.name.lower().endswith(suffix) and not path.name.startswith("."):
            return path.name[: -len(suffix)]
    return None


class _StoredImage(Protocol):
    """An image whose header has been read and checked, but whose voxels are not loaded yet."""

    @property
    def source(self) -> SourceGrid: ...
    @property
    def where(self) -> str: ...
    def floats(self) -> np.ndarray:
        """float32 voxels in the file's own axis order, with scale factors applied."""

    def numbers(self) -> np.ndarray:
        """The same, but as integers if stored as integers."""


def read_image(path: str | os.PathLike[str], *, case: str = "") -> Volume:
    """Read a 3D image (or 4D with one frame), with scale factors applied.

    Args:
        path: a file with one of `IMAGE_SUFFIXES`.
        case: case ID for error messages.

    Returns:
        Volume with a float32 array, independent of the file format.

    Raises:
        InputError: missing or truncated file, unsupported format, not a single 3D frame, or NaN or infinite values.
    """
    stored = _open(path, case)
    volume = to_canonical(stored.floats(), stored.source)
    check_finite(volume.array, stored.where)
    return volume


def read_label(path: str | os.PathLike[str], *, case: str = "") -> Volume:
    """Read a label image: 0 is background.

    Returns:
        Volume with a uint8 array if the values fit, otherwise int32 or int64.

    Raises:
        InputError: as `read_image`, and for values that are negative or not integers.
    """
    stored = _open(path, case)
    values = to_canonical(stored.numbers(), stored.source)
    return Volume(_as_labels(values.array, stored.where), values.affine, stored.source)


def read_grid(path: str | os.PathLike[str]) -> Volume:
    """Read an image's grid from its header only: a volume of zeros that uses no memory.

    Raises:
        InputError: as `read_image`, for problems visible in the header.
    """
    return without_voxels(_open(path, "").source)


def _as_labels(values: np.ndarray, where: str) -> np.ndarray:
    """Convert to the smallest of uint8, int32, int64 that fits; InputError if the values are not labels."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f":
        check_finite(values, where)
        fractional = values != np.rint(values)
        if fractional.any():
            raise InputError(
                f"{where}: {int(fractional.sum())} voxels hold fractions (such as {values[fractional][0]:g}); "
                "a label must be 0 for background and whole numbers for lesions; was it resampled linearly?"
            )
    low, high = values.min(), values.max()
    if low < 0:
        raise InputError(
            f"{where}: {int((values < 0).sum())} voxels hold a negative label (down to {low:g}); "
            "a label must be 0 for background and whole numbers above 0 for lesions"
        )
    if high > np.iinfo(np.int64).max:
        raise InputError(f"{where}: label {high:g} is too large")
    fits = np.uint8 if high <= 255 else np.int32 if high <= np.iinfo(np.int32).max else np.int64
    return values.astype(fits)


def geometry_warning(header: nib.Nifti1Header) -> str | None:
    """Why programs may place a file with this header differently, in one phrase; None if it is unambiguous."""
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        return (
            "neither sform nor qform has a code; the axes are assumed to point left, anterior and superior, so left "
            "and right may be swapped"
        )
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        shift = corner_shift_vox(header.get_sform(), header.get_qform(), header.get_data_shape())
        if shift > 0.01:
            return (
                f"sform and qform place the corners {shift:.2f} voxels apart; this program uses the sform, "
                "others may use the qform"
            )
    try:
        unit = header.get_xyzt_units()[0]
    except KeyError:  # no unit has this code
        unit = "unknown"
    if unit not in ("mm", "unknown"):
        return f"the header states lengths in '{unit}'; they are interpreted as mm"
    return None


@lru_cache(maxsize=4096)
def _warn_once(message: str) -> None:
    _log.warning(message)


def _place(path: Path, case: str) -> str:
    return f"case {case}: {path}" if case else str(path)


_reading_threads: set[int] = set()


def _from_elsewhere(record: logging.LogRecord) -> bool:
    """Whether a message of nibabel's is not about a file that is being read here."""
    return record.thread not in _reading_threads


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Convert what nibabel, gzip and the file system raise for a bad file to InputError.

    nibabel interprets a damaged header as far as it can, prints what it finds odd, and then fails with almost any
    exception.
    """
    nib.imageglobals.logger.addFilter(_from_elsewhere)  # once: the same filter is not added again
    _reading_threads.add(threading.get_ident())
    try:
        yield
    except InputError:
        raise
    except EOFError as error:
        raise InputError(f"{where}: the compressed file ends too early; copy or export it again") from error
    except MemoryError as error:
        raise InputError(f"{where}: not enough memory to read it") from error
    except Exception as error:
        truncated = str(error).startswith(("mmap length", "Expected"))
        hint = "the file is truncated" if truncated else "cannot be read"
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: {hint} ({first_line}); copy or export it again") from error
    finally:
        _reading_threads.discard(threading.get_ident())


@dataclass(frozen=True)
class _Nifti:
    image: nib.Nifti1Image
    source: SourceGrid
    where: str

    def _unpacked(self) -> nib.Nifti1Image:
        """Decompress to the end of the file, where the checksum is; nibabel itself stops at the last voxel."""
        path = self.source.path
        if path is None or not path.name.lower().endswith(".gz"):
            return self.image
        content = unpack_gzip(path.read_bytes(), _bytes_described(self.image), self.where)
        return type(self.image).from_bytes(content)

    def floats(self) -> np.ndarray:
        with _reading(self.where):
            values = self._unpacked().get_fdata(dtype=np.float32, caching="unchanged")
            return values.reshape(self.source.shape, order="A")

    def numbers(self) -> np.ndarray:
        with _reading(self.where):
            image = self._unpacked()
            proxy = image.dataobj
            assert isinstance(proxy, nib.arrayproxy.ArrayProxy)  # true for every image loaded from a file
            unscaled = proxy.slope == 1 and proxy.inter == 0
            if unscaled and image.get_data_dtype().kind in "iu":
                values = np.asanyarray(proxy.get_unscaled())
            else:
                values = image.get_fdata(dtype=np.float64, caching="unchanged")
            return values.reshape(self.source.shape, order="A")


def _open(path: str | os.PathLike[str], case: str) -> _StoredImage:
    """Open an image without loading its voxels; a geometry warning is logged."""
    file = Path(path)
    where = _place(file, case)
    with _reading(where):
        if file.is_dir():
            raise InputError(f"{where}: is a folder, {_EXPECTED}")
        if not file.is_file():
            raise InputError(f"{where}: {'is not a regular file' if file.exists() else 'no such file'}")
    suffix = next((end for end in IMAGE_SUFFIXES if file.name.lower().endswith(end)), None)
    if suffix is None:
        raise InputError(f"{where}: {_EXPECTED}; convert it first")
    if suffix in _NIFTI:
        stored: _StoredImage = _open_nifti(file, where)
    else:
        with _reading(where):
            stored = itk_images.open_itk(file, where)
    if stored.source.warning:
        _warn_once(f"{where}: {stored.source.warning}")
    return stored


def _open_nifti(file: Path, where: str) -> _Nifti:
    try:
        with _reading(where):
            image = nib.load(file)
    except InputError as error:
        if isinstance(error.__cause__, nib.filebasedimages.ImageFileError):
            raise InputError(f"{where}: is not a NIfTI file ({str(error.__cause__).splitlines()[0]})") from error
        raise
    if not isinstance(image, nib.Nifti1Image):
        raise InputError(f"{where}: is not a NIfTI file (found {type(image).__name__})")
    shape = image.shape
    if len(shape) < 3:
        raise InputError(f"{where}: is {len(shape)}D with shape {shape}, expected a 3D volume")
    if any(n != 1 for n in shape[3:]):
        raise InputError(f"{where}: has several frames (shape {shape}), expected one 3D volume; split it")
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"{where}: holds {image.get_data_dtype()} values, expected real numbers")
    check_shape(shape, where)
    packed = file.name.lower().endswith(".gz")
    if _bytes_described(image) > file.stat().st_size * (MOST_COMPRESSED if packed else 1):
        raise InputError(
            f"{where}: the file is truncated: its header describes {_bytes_described(image)} bytes; copy or export it "
            "again"
        )
    if _infinite_scale(image, where):
        raise InputError(f"{where}: its header states an infinite scale factor; copy or export it again")
    with _reading(where):
        affine = check_affine(image.header.get_best_affine(), where)
        warning = geometry_warning(image.header)
    grid = (shape[0], shape[1], shape[2])
    return _Nifti(image, SourceGrid(grid, affine, image.header, canonical_orientation(affine), file, warning), where)


def _infinite_scale(image: nib.Nifti1Image, where: str) -> bool:
    """Whether the header's scale factor is infinite, which nibabel would ignore, as it does NaN (no scale factor)."""
    with _reading(where), image.file_map["image"].get_prepare_fileobj("rb") as file:
        header = type(image.header).from_fileobj(file, check=False)
    return bool(np.isinf([header["scl_slope"], header["scl_inter"]]).any())


def _bytes_described(image: nib.Nifti1Image) -> int:
    """The size of the file, unpacked, by its header."""
    proxy = image.dataobj
    assert isinstance(proxy, nib.arrayproxy.ArrayProxy)  # true for every image loaded from a file
    return int(proxy.offset) + math.prod(image.shape) * image.get_data_dtype().itemsize


def write_mask(path: str | os.PathLike[str], array: np.ndarray, like: Volume) -> None:
    """Write a mask or instance map onto the grid of the file that `like` was read from.

    Args:
        path: a file with one of `WRITTEN_SUFFIXES`; an existing file is replaced atomically. The geometry equals the
            source's, whatever the formats.
        array: (x, y, z) in canonical axis order, bool or integers; stored as the smallest of uint8, int16, int32.
        like: a volume on the target grid.

    Raises:
        InputError: unsupported suffix, a file that cannot be written, or labels beyond int32.
    """
    if array.dtype == bool:
        array = array.view(np.uint8)
    if array.dtype.kind not in "iu":
        raise TypeError(f"a mask must be bool or integer, got {array.dtype}; use write_float for probabilities")
    low, high = int(array.min()), int(array.max())
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            _write(Path(path), array, like, dtype)
            return
    raise InputError(f"{path}: labels from {low} to {high} do not fit in 32 bits")


def write_float(path: str | os.PathLike[str], array: np.ndarray, like: Volume) -> None:
    """Write a map of numbers, such as probabilities, as float32; otherwise like `write_mask`."""
    _write(Path(path), array, like, np.float32)


def _write(path: Path, array: np.ndarray, like: Volume, dtype: Any) -> None:
    if not path.name.lower().endswith(WRITTEN_SUFFIXES):
        raise InputError(f"{path}: supported output formats are {', '.join(WRITTEN_SUFFIXES)}")
    source = like.source
    stored = source.from_canonical(array)
    if stored.shape != source.shape:
        raise ValueError(f"{path}: array of shape {array.shape} does not fit the grid {like.array.shape}")
    if path.name.lower().endswith(itk_images.WRITTEN):
        itk_images.write_itk(path, stored.astype(dtype, copy=False), source)
        return
    header = source.header.copy()
    header.set_data_shape(source.shape)
    header.set_data_dtype(dtype)
    header.set_slope_inter(1, 0)
    header.set_data_offset(0)
    # Other fields describe the scan, not the new content: display window, and texts that may identify a patient.
    header.extensions.clear()
    for field in ("cal_min", "cal_max", "intent_code"):
        header[field] = 0
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        if field in header:
            header[field] = b""
    # If the affine is None, nibabel keeps the header's sform, qform and codes.
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = image_class(stored.astype(dtype, copy=False), None, header)
    with whole_file(path) as temporary, temporary.open("xb") as file:
        if path.name.lower().endswith(".gz"):
            # Without name and time stamp, equal masks give equal files.
            with gzip.GzipFile("", "wb", 4, file, mtime=0) as compressed:
                image.to_stream(compressed)
        else:
            image.to_stream(file)
