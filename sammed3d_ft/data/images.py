"""Reads and writes images (NIfTI, NRRD, MetaImage) without losing where they lie.

The geometry of a NIfTI file is its sform if that has a code, else its qform, else its voxel sizes (nibabel's rule).
Where that choice matters, because sform and qform disagree or none is there, `geometry_warning` says so.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import nibabel as nib
import numpy as np

from prompts.errors import InputError
from prompts.whole_files import whole_file
from sammed3d_ft.data import itk_images
from sammed3d_ft.data.grids import (
    SourceGrid,
    Volume,
    canonical_orientation,
    check_affine,
    check_finite,
    corner_shift_vox,
    from_array,
    grid_difference,
    same_grid,
    to_canonical,
    without_voxels,
)
from sammed3d_ft.data.resampling import resample_like

__all__ = [
    "IMAGE_SUFFIXES",
    "WRITTEN_SUFFIXES",
    "SourceGrid",
    "Volume",
    "from_array",
    "geometry_warning",
    "grid_difference",
    "image_stem",
    "read_grid",
    "read_image",
    "read_label",
    "resample_like",
    "same_grid",
    "write_float",
    "write_mask",
]

_NIFTI = (".nii.gz", ".nii")
IMAGE_SUFFIXES = (*_NIFTI, *itk_images.READ)
WRITTEN_SUFFIXES = (*_NIFTI, *itk_images.WRITTEN)
_EXPECTED = "expected a .nii, .nii.gz, .nrrd, .mha or .mhd file"
_log = logging.getLogger(__name__)


def image_stem(path: Path) -> str | None:
    """The name of an image file without its suffix, as cases are named; None for other and for hidden files."""
    for suffix in IMAGE_SUFFIXES:
        if path.name.lower().endswith(suffix) and not path.name.startswith("."):
            return path.name[: -len(suffix)]
    return None


class _StoredImage(Protocol):
    """An image whose header was read and checked, and whose voxels are still on the disk."""

    @property
    def source(self) -> SourceGrid: ...
    @property
    def where(self) -> str: ...
    def floats(self) -> np.ndarray:
        """float32, in the file's own axis order, scale factors applied."""
    def numbers(self) -> np.ndarray:
        """The same, as integers where they are stored so."""


def read_image(path: str | os.PathLike[str], *, case: str = "") -> Volume:
    """Read a 3D image (or 4D with one frame), scale factors applied.

    Args:
        path: a file with one of `IMAGE_SUFFIXES`.
        case: named in error messages.

    Returns:
        Volume with a float32 array; the same for one scan whichever of the formats holds it.

    Raises:
        InputError: missing file, another format, truncated, not one 3D frame, or NaN or infinite values.
    """
    stored = _open(path, case)
    volume = to_canonical(stored.floats(), stored.source)
    check_finite(volume.array, stored.where)
    return volume


def read_label(path: str | os.PathLike[str], *, case: str = "") -> Volume:
    """Read a label image: 0 is background.

    Returns:
        Volume with a uint8 array where the values fit, else int32 or int64.

    Raises:
        InputError: as `read_image`; also when values are not integers, or negative.
    """
    stored = _open(path, case)
    values = to_canonical(stored.numbers(), stored.source)
    return Volume(_as_labels(values.array, stored.where), values.affine, stored.source)


def read_grid(path: str | os.PathLike[str], *, case: str = "") -> Volume:
    """Where an image lies, from its header alone: a volume of zeros that take up no memory.

    Raises:
        InputError: as `read_image`, as far as the header shows it.
    """
    return without_voxels(_open(path, case).source)


def _as_labels(values: np.ndarray, where: str) -> np.ndarray:
    """The values as the first of uint8, int32, int64 that holds them; InputError when they are no labels."""
    if values.dtype == np.uint8:
        return values
    if values.dtype.kind == "f":
        check_finite(values, where)
        fractional = values != np.rint(values)
        if fractional.any():
            raise InputError(
                f"{where}: {int(fractional.sum())} voxels hold fractions (as {values[fractional][0]:g}); "
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
    """What lets two programs place a file with this header differently, in one phrase; None if nothing."""
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        return (
            "neither sform nor qform has a code, so the axes are taken to point left, anterior and superior; "
            "left and right may be swapped"
        )
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        shift = corner_shift_vox(header.get_sform(), header.get_qform(), header.get_data_shape())
        if shift > 0.01:
            return (
                f"sform and qform place the corners {shift:.2f} voxels apart; the sform is used here, "
                "other programs may use the qform"
            )
    unit = header.get_xyzt_units()[0]
    if unit not in ("mm", "unknown"):
        return f"the header gives lengths in '{unit}'; they are taken as mm"
    return None


@lru_cache(maxsize=4096)
def _warn_once(message: str) -> None:
    _log.warning(message)


def _place(path: Path, case: str) -> str:
    return f"case {case}: {path}" if case else str(path)


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Turn what nibabel, gzip and the file system raise on a bad file into one InputError."""
    try:
        yield
    except InputError:
        raise
    except EOFError as error:
        raise InputError(f"{where}: the compressed file ends too early; copy or export it again") from error
    except (OSError, ValueError, zlib.error, nib.spatialimages.HeaderDataError) as error:
        truncated = str(error).startswith(("mmap length", "Expected"))
        hint = "the file is truncated" if truncated else "cannot be read"
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: {hint} ({first_line}); copy or export it again") from error


@dataclass(frozen=True)
class _Nifti:
    image: nib.Nifti1Image
    source: SourceGrid
    where: str

    def _unpacked(self) -> nib.Nifti1Image:
        """A compressed file unpacked to its end, where the checksum is: nibabel alone stops at the last voxel."""
        path = self.source.path
        if path is None or not path.name.lower().endswith(".gz"):
            return self.image
        return type(self.image).from_bytes(gzip.decompress(path.read_bytes()))

    def floats(self) -> np.ndarray:
        with _reading(self.where):
            values = self._unpacked().get_fdata(dtype=np.float32, caching="unchanged")
            return values.reshape(self.source.shape, order="A")

    def numbers(self) -> np.ndarray:
        with _reading(self.where):
            image = self._unpacked()
            proxy = image.dataobj
            assert isinstance(proxy, nib.arrayproxy.ArrayProxy)  # as for every image loaded from a file
            unscaled = proxy.slope == 1 and proxy.inter == 0
            if unscaled and image.get_data_dtype().kind in "iu":
                values = np.asanyarray(proxy.get_unscaled())
            else:
                values = image.get_fdata(dtype=np.float64, caching="unchanged")
            return values.reshape(self.source.shape, order="A")


def _open(path: str | os.PathLike[str], case: str) -> _StoredImage:
    """The image with its voxels still on the disk; what is odd about its geometry goes to the log."""
    file = Path(path)
    where = _place(file, case)
    if file.is_dir():
        raise InputError(f"{where}: is a folder, {_EXPECTED}")
    if not file.exists():
        raise InputError(f"{where}: no such file")
    suffix = next((end for end in IMAGE_SUFFIXES if file.name.lower().endswith(end)), None)
    if suffix is None:
        raise InputError(f"{where}: {_EXPECTED}; convert it first")
    stored = _open_nifti(file, where) if suffix in _NIFTI else itk_images.open_itk(file, where)
    if 0 in stored.source.shape:
        raise InputError(f"{where}: holds no voxels (shape {stored.source.shape})")
    if stored.source.warning:
        _warn_once(f"{where}: {stored.source.warning}")
    return stored


def _open_nifti(file: Path, where: str) -> _Nifti:
    try:
        with _reading(where):
            image = nib.load(file)
    except nib.filebasedimages.ImageFileError as error:
        raise InputError(f"{where}: is not a NIfTI file ({str(error).splitlines()[0]})") from error
    if not isinstance(image, nib.Nifti1Image):
        raise InputError(f"{where}: is not a NIfTI file (found {type(image).__name__})")
    shape = image.shape
    if len(shape) < 3:
        raise InputError(f"{where}: is {len(shape)}D with shape {shape}, expected a 3D volume")
    if any(n != 1 for n in shape[3:]):
        raise InputError(f"{where}: has several frames (shape {shape}), expected one 3D volume; split it")
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"{where}: holds {image.get_data_dtype()} values, expected real numbers")
    with _reading(where):
        affine = check_affine(image.header.get_best_affine(), where)
        warning = geometry_warning(image.header)
    grid = (shape[0], shape[1], shape[2])
    return _Nifti(image, SourceGrid(grid, affine, image.header, canonical_orientation(affine), file, warning), where)


def write_mask(path: str | os.PathLike[str], array: np.ndarray, like: Volume) -> None:
    """Write a mask or instance map onto the grid of the file that `like` was read from.

    Args:
        path: with one of `WRITTEN_SUFFIXES`; an existing file is replaced in one step, never left half written.
            Whatever the format of the source, the file lies where the source does.
        array: (x, y, z) in canonical axis order, bool or integers; stored as uint8, else int16, else int32.
        like: a volume on the grid to write to.

    Raises:
        InputError: another suffix, a folder that cannot be written to, or labels beyond int32.
    """
    if array.dtype == bool:
        array = array.view(np.uint8)
    if array.dtype.kind not in "iu":
        raise TypeError(f"a mask is bool or integer, got {array.dtype}; write_float writes probabilities")
    low, high = int(array.min()), int(array.max())
    for dtype in (np.uint8, np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            _write(Path(path), array, like, dtype)
            return
    raise InputError(f"{path}: labels from {low} to {high} do not fit 32 bits")


def write_float(path: str | os.PathLike[str], array: np.ndarray, like: Volume) -> None:
    """Write a map of numbers, such as probabilities, as float32; otherwise as `write_mask`."""
    _write(Path(path), array, like, np.float32)


def _write(path: Path, array: np.ndarray, like: Volume, dtype: Any) -> None:
    if not path.name.lower().endswith(WRITTEN_SUFFIXES):
        raise InputError(f"{path}: images are written as {', '.join(WRITTEN_SUFFIXES)}")
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
    # The rest describes the scan, not what is written now: display window, and texts that may name a patient.
    header.extensions.clear()
    for field in ("cal_min", "cal_max", "intent_code"):
        header[field] = 0
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        if field in header:
            header[field] = b""
    # Without an affine nibabel leaves the header's sform, qform and codes untouched.
    image_class = nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image
    image = image_class(stored.astype(dtype, copy=False), None, header)
    with whole_file(path) as temporary, temporary.open("xb") as file:
        if path.name.lower().endswith(".gz"):
            # No name and no time inside, so that equal masks are equal files.
            with gzip.GzipFile("", "wb", 4, file, mtime=0) as compressed:
                image.to_stream(compressed)
        else:
            image.to_stream(file)
