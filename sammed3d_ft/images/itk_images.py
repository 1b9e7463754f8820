"""NRRD and MetaImage files, as saved by 3D Slicer, ITK-SNAP and similar programs, read and written with SimpleITK.

Both formats store the geometry in patient space: mm, axes towards Left, Posterior and Superior (LPS). Negating the
first two rows gives the RAS+ affine used everywhere else here.
"""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sammed3d_ft.errors import InputError
from sammed3d_ft.files import whole_file
from sammed3d_ft.images.grids import SourceGrid, check_affine, source_grid

_READERS = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO"}
READ = tuple(_READERS)
# A .mhd consists of two files, which cannot be written atomically.
WRITTEN = (".nrrd", ".mha")
_LPS = np.array([-1.0, -1.0, 1.0])
_LONGEST_HEADER = 1 << 16


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
            image = self.reader.Execute()
        except RuntimeError as error:
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
    data = None if suffix == ".nrrd" else _meta_image_data(path, where)
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_READERS[suffix])
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError as error:
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
    if data is not None:
        size_of_voxel = sitk.Image([1, 1, 1], pixel, components).GetSizeOfPixelComponent()
        _check_meta_image_data(*data, int(np.prod(shape)) * size_of_voxel, where)
    dimensions = len(shape)
    directions = np.array(reader.GetDirection(), np.float64).reshape(dimensions, dimensions)[:3, :3]
    affine = np.eye(4)
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


def _unreadable(where: str, error: RuntimeError) -> InputError:
    return InputError(f"{where}: cannot be read ({_last_line(error)}); copy or export it again")


def _last_line(error: RuntimeError) -> str:
    """The last line of ITK's error, which states the cause; the lines before name functions in its source."""
    line = str(error).strip().splitlines()[-1]
    return re.sub(r"^\[nrrd\] \w+:\s*", "", line).strip()[:160]


def _meta_image_data(path: Path, where: str) -> tuple[Path, int, bool] | None:
    """The location of a MetaImage's voxels: file, first byte, and whether compressed; None if only SimpleITK can tell.

    The header is checked here first, because SimpleITK prints its own messages about a truncated header.
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
    return data, start, fields.get("CompressedData", "False").lower() == "true"


def _check_meta_image_data(data: Path, start: int, compressed: bool, expected: int, where: str) -> None:
    """Raise InputError unless all voxels are present.

    SimpleITK ignores damage in a compressed MetaImage and returns wrong values; for missing voxels it prints messages.
    """
    with data.open("rb") as file:
        file.seek(start)
        if not compressed:
            whole = data.stat().st_size - start >= expected
        else:
            found, stream = 0, zlib.decompressobj(47)  # zlib or gzip, by its first bytes
            try:
                while not stream.eof and (chunk := file.read(1 << 20)):
                    found += len(stream.decompress(chunk))
            except zlib.error as error:
                raise InputError(f"{where}: cannot be read ({error}); copy or export it again") from error
            whole = stream.eof and found >= expected
    if not whole:
        raise InputError(f"{where}: the file is truncated; copy or export it again")
