"""NRRD and MetaImage files, as saved by 3D Slicer, ITK-SNAP and similar programs, read and written with SimpleITK.

Both formats store the geometry in patient space: mm, axes towards Left, Posterior and Superior (LPS). Negating the
first two rows gives the RAS+ affine used everywhere else here.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import sys
import threading
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sammed3d_ft.errors import InputError
from sammed3d_ft.files import MOST_COMPRESSED, whole_file
from sammed3d_ft.images.grids import SourceGrid, check_affine, check_shape, source_grid

_READERS = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
READ = tuple(_READERS)
# A .mhd consists of two files, which cannot be written atomically.
WRITTEN = (".nrrd", ".mha")
_LPS = np.array([-1.0, -1.0, 1.0])
_LONGEST_HEADER = 1 << 16
_MOST_AXES = 10


@dataclass(frozen=True)
class ItkImage:
    """A NRRD or MetaImage file whose voxels are not loaded yet."""

    source: SourceGrid
    reader: Any
    """SimpleITK's ImageFileReader."""
    where: str

    def floats(self) -> np.ndarray:
        """``source.shape`` float32, in the file's own axis order."""
        return self.numbers().astype(np.float32, copy=False)

    def numbers(self) -> np.ndarray:
        """``source.shape`` in the file's own axis order and data type.

        Raises:
            InputError: the voxels cannot be read.
        """
        import SimpleITK as sitk

        try:
            with _silenced():
                image = self.reader.Execute()
        except (RuntimeError, MemoryError) as error:
            raise _unreadable(self.where, error) from error
        # SimpleITK's arrays have the axes reversed. This makes a copy, because a view would not outlive the image.
        return sitk.GetArrayFromImage(image).reshape(self.source.shape[::-1]).transpose()


def open_itk(path: Path, where: str) -> ItkImage:
    """Read the header of a .nrrd, .mha or .mhd file.

    Raises:
        InputError: another format, truncated or damaged, not a single 3D frame of real numbers, or invalid geometry.
    """
    import SimpleITK as sitk

    suffix = path.suffix.lower()
    data = _nrrd_data(path, where) if suffix == ".nrrd" else _meta_image_data(path, where)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READERS[suffix])
    reader.SetFileName(str(path))
    try:
        with _silenced():
            reader.ReadImageInformation()
    except (RuntimeError, MemoryError, TypeError) as error:
        raise _unreadable(where, error) from error
    shape, components = reader.GetSize(), reader.GetNumberOfComponents()
    if len(shape) < 3:
        raise InputError(f"{where}: is {len(shape)}D with shape {shape}, expected a 3D volume")
    if components > 1 or any(n != 1 for n in shape[3:]):
        raise InputError(
            f"{where}: has several frames (shape {shape}, {components} values per voxel), expected one 3D volume; "
            "split it (for overlapping segments: export them as one label map)"
        )
    pixel = reader.GetPixelID()
    if pixel in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
        raise InputError(f"{where}: holds complex values, expected real numbers")
    check_shape(shape, where)
    if data is not None:
        size_of_voxel = sitk.Image([1, 1, 1], pixel, components).GetSizeOfPixelComponent()
        _check_voxels(data, math.prod(shape) * size_of_voxel, where)
    dimensions = len(shape)
    directions = np.array(reader.GetDirection(), np.float64).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
    with np.errstate(over="ignore", invalid="ignore"):  # for absurd headers, which `check_affine` refuses
        affine[:3, :3] = _LPS[:, None] * directions * np.array(reader.GetSpacing()[:3], np.float64)
    affine[:3, 3] = _LPS * np.array(reader.GetOrigin()[:3], np.float64)
    affine = check_affine(affine + 0.0, where)
    warning = None
    if suffix == ".nrrd":
        # SimpleITK converts all spaces that it knows to LPS, and treats all others as LPS.
        stated = reader.GetMetaData("NRRD_space") if reader.HasMetaDataKey("NRRD_space") else "none"
        if stated != "left-posterior-superior":
            warning = (
                f"the header states no patient space (space: {stated}); the axes are assumed to point left, posterior "
                "and superior, so left and right may be swapped"
            )
    return ItkImage(source_grid((shape[0], shape[1], shape[2]), affine, path, warning), reader, where)


def write_itk(path: Path, stored: np.ndarray, source: SourceGrid) -> None:
    """Write a compressed .nrrd or .mha file atomically.

    Args:
        stored: ``source.shape``, in the source's own axis order.
        source: grid that provides origin, directions and spacing.
    """
    import SimpleITK as sitk

    image = sitk.GetImageFromArray(np.ascontiguousarray(stored.transpose()))
    spacing_mm = np.linalg.norm(source.affine[:3, :3], axis=0)
    image.SetSpacing(spacing_mm.tolist())
    image.SetDirection((_LPS[:, None] * source.affine[:3, :3] / spacing_mm).ravel().tolist())
    image.SetOrigin((_LPS * source.affine[:3, 3]).tolist())
    suffix = path.suffix.lower()
    with whole_file(path) as temporary:
        # The file name determines the variant of MetaImage.
        named = temporary.with_name(temporary.name + suffix)
        writer = sitk.ImageFileWriter()
        writer.SetImageIO(_READERS[suffix])
        writer.UseCompressionOn()
        writer.SetFileName(str(named))
        try:
            writer.Execute(image)
            named.replace(temporary)
        except RuntimeError as error:
            raise InputError(f"{path}: cannot be written ({_last_line(error)})") from error
        finally:
            named.unlink(missing_ok=True)


_silence = threading.Lock()
_silenced_calls: list[int] = []  # the real standard error, once per call that is under way


@contextlib.contextmanager
def _silenced() -> Iterator[None]:
    """Discard what SimpleITK's C++ libraries print to standard error about a damaged file, besides raising an error."""
    with _silence:
        if not _silenced_calls:
            sys.stderr.flush()
            _silenced_calls.append(os.dup(2))
            with Path(os.devnull).open("wb") as nowhere:
                os.dup2(nowhere.fileno(), 2)
        else:
            _silenced_calls.append(_silenced_calls[0])
    try:
        yield
    finally:
        with _silence:
            real = _silenced_calls.pop()
            if not _silenced_calls:
                os.dup2(real, 2)
                os.close(real)


def _unreadable(where: str, error: Exception) -> InputError:
    return InputError(f"{where}: cannot be read ({_last_line(error)}); copy or export it again")


def _last_line(error: Exception) -> str:
    """The last line of ITK's error, which states the cause; the lines before name functions in its source."""
    line = (str(error).strip() or type(error).__name__).splitlines()[-1]
    return re.sub(r"^\[nrrd\] \w+:\s*", "", line).strip()[:160]


@dataclass(frozen=True)
class _Voxels:
    """Where a file's voxels are: the file, their first byte, and whether they are compressed with zlib or gzip."""

    file: Path
    start: int
    compressed: bool
    to_the_end: bool
    """Whether compressed voxels must be unpacked to find damage, because SimpleITK ignores it."""


def _nrrd_data(path: Path, where: str) -> _Voxels | None:
    """The location of the voxels; None if only SimpleITK can tell.

    SimpleITK reads beyond its own tables for some damaged headers, so the sizes are checked first.
    """
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        if not file.readline(_LONGEST_HEADER).startswith(b"NRRD"):
            raise InputError(f"{where}: is not a NRRD file; copy or export it again")
        while line := file.readline(_LONGEST_HEADER).strip():
            key, separator, value = line.decode("latin-1").partition(": ")
            if separator and not key.startswith("#"):
                fields[key.lower()] = value.strip()
        start = file.tell()
    _check_sizes(fields, "dimension", "sizes", where)
    encoding = fields.get("encoding", "").lower()
    detached = "data file" in fields or "datafile" in fields
    skips = any(name.replace(" ", "") in ("lineskip", "byteskip") for name in fields)
    if detached or skips or encoding not in ("raw", "gzip", "gz"):
        return None
    return _Voxels(path, start, encoding != "raw", to_the_end=False)


def _meta_image_data(path: Path, where: str) -> _Voxels | None:
    """The location of a MetaImage's voxels; None if only SimpleITK can tell.

    The header is checked here first, because SimpleITK crashes on some damaged ones, and guesses on others.
    """
    fields: dict[str, str] = {}
    with path.open("rb") as file:
        while "ElementDataFile" not in fields:
            key, separator, value = file.readline(_LONGEST_HEADER).partition(b"=")
            if not separator:
                what = "its header ends too early; copy or export it again" if fields else "is not a MetaImage file"
                raise InputError(f"{where}: {what}")
            fields[key.strip().decode("latin-1")] = value.strip().decode("latin-1")
        start = file.tell()
    dimensions = _check_sizes(fields, "NDims", "DimSize", where)
    if list(fields).index("NDims") > min(list(fields).index(name) for name in fields if name in _META_NUMBERS):
        raise InputError(f"{where}: NDims must come before the fields that depend on it; export it again")
    for field, power in _META_NUMBERS.items():
        numbers = fields.get(field, "").split()
        if field in fields and (len(numbers) != dimensions**power or not all(map(_is_number, numbers))):
            raise InputError(
                f"{where}: {field} is {fields[field]!r:.60}, expected {dimensions**power} numbers; export it again"
            )
    name = fields["ElementDataFile"]
    if name.upper() == "LOCAL":
        data = path
    elif name.upper().startswith("LIST") or "%" in name:
        return None
    else:
        data, start = path.parent / name, 0
        if not data.is_file():
            raise InputError(f"{where}: its voxel file {name} is missing from the same folder; copy both")
    if fields.get("BinaryData", "True").lower() != "true":
        return None
    return _Voxels(data, start, fields.get("CompressedData", "False").lower() == "true", to_the_end=True)


# The fields of a MetaImage that hold one number per axis (1), or a matrix of all axes (2).
_META_NUMBERS = {
    "DimSize": 1, "ElementSpacing": 1, "ElementSize": 1, "Offset": 1, "Position": 1, "Origin": 1, "CenterOfRotation": 1,
    "TransformMatrix": 2, "Rotation": 2, "Orientation": 2, "CompressedDataSize": 0, "HeaderSize": 0,
    "ElementNumberOfChannels": 0,
}  # fmt: skip


def _check_sizes(fields: dict[str, str], dimension: str, sizes: str, where: str) -> int:
    """The number of axes; InputError unless there is a size for each."""
    axes, lengths = fields.get(dimension, ""), fields.get(sizes, "").split()
    if not 1 <= _whole_number(axes) <= _MOST_AXES:
        raise InputError(f"{where}: the header states {axes[:20] or 'no'} dimensions; copy or export it again")
    whole = all(0 < _whole_number(length) < 1 << 31 for length in lengths)
    if len(lengths) != int(axes) or not whole:
        found = " ".join(lengths)
        raise InputError(f"{where}: {sizes} is {found!r:.60}, expected {axes} numbers; copy or export it again")
    return int(axes)


def _whole_number(text: str) -> int:
    """The number, or -1 for anything else: Python refuses to convert thousands of digits."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else -1


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _check_voxels(voxels: _Voxels, expected: int, where: str) -> None:
    """Raise InputError unless all voxels are present.

    SimpleITK ignores damage in a compressed MetaImage and returns wrong values, and reserves memory for all voxels that
    the header describes.
    """
    stored = voxels.file.stat().st_size - voxels.start
    whole = stored * (MOST_COMPRESSED if voxels.compressed else 1) >= expected
    if whole and voxels.compressed and voxels.to_the_end:
        found, stream = 0, zlib.decompressobj(47)  # zlib or gzip, by its first bytes
        try:
            with voxels.file.open("rb") as file:
                file.seek(voxels.start)
                while not stream.eof and found <= expected and (chunk := file.read(1 << 16)):
                    found += len(stream.decompress(chunk))
        except zlib.error as error:
            raise InputError(f"{where}: cannot be read ({error}); copy or export it again") from error
        if found > expected:
            raise InputError(f"{where}: unpacks to more than the {expected} bytes that its header describes")
        whole = stream.eof and found == expected
    if not whole:
        raise InputError(f"{where}: the file is truncated; copy or export it again")
