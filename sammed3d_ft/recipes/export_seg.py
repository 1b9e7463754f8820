"""Export a mask as a DICOM SEG that references its source series."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np

from sammed3d_ft.dicom import seg
from sammed3d_ft.dicom.folder import choose_series, scan_folder
from sammed3d_ft.dicom.series import Series, order_slices
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume, grid_difference, source_grid, without_voxels
from sammed3d_ft.images.images import read_label


def run(mask: Path, source: Path, out: Path, series: str | None = None, made: str = "SEMIAUTOMATIC") -> dict[str, Any]:
    """Write a mask or instance map as a DICOM SEG that references its source series.

    Args:
        mask: an image file on the grid of the series, in any axis order.
        source: folder of the DICOM files that the image was imported from.
        out: DICOM file to write.
        series: Series Instance UID; by default the PET, or the CT if there is no PET.
        made: MANUAL, SEMIAUTOMATIC or AUTOMATIC.

    Returns:
        ``series``, and the numbers of ``segments`` and ``voxels`` written.

    Raises:
        InputError: the mask is not on the grid of the series, or is empty.
    """
    if made not in get_args(seg.AlgorithmType):
        raise InputError(f"--made {made}: expected {', '.join(get_args(seg.AlgorithmType))}")
    label = read_label(mask)
    target = find_series(source, label, mask, series)
    segments = write_seg(out, label.array, label, target, made)  # type: ignore[arg-type]
    return {"series": target.uid, "segments": segments, "voxels": int(np.count_nonzero(label.array))}


def find_series(source: Path, volume: Volume, name: Path, series: str | None = None) -> Series:
    """The DICOM series that an image or mask was made from.

    Args:
        source: folder of DICOM files.
        volume: the image.
        name: its file, for messages.
        series: Series Instance UID; by default the PET, or the CT if there is no PET.

    Raises:
        InputError: no such series, several, or one on another grid.
    """
    contents = scan_folder(source)
    modality = next((one.modality for one in contents.series if one.uid == series), None)
    if modality not in ("PT", "CT"):
        modality = "CT" if series is None and all(one.modality != "PT" for one in contents.series) else "PT"
    target = order_slices(choose_series(contents, modality, () if series is None else (series,)))
    if difference := grid_difference(volume, _grid(target)):
        raise InputError(
            f"{name}: not on the grid of series {target.uid}: {difference}; name its source series with --series, or "
            "resample it"
        )
    return target


def write_seg(
    out: Path, labels: np.ndarray, like: Volume, target: Series, made: seg.AlgorithmType = "SEMIAUTOMATIC"
) -> int:
    """Write a mask or instance map as a DICOM SEG and return the number of segments.

    Args:
        labels: (X, Y, Z), canonical, on the grid of ``like``.
        like: a volume on the grid of the series (as `find_series` checks), in any axis order.

    Raises:
        InputError: see `seg.write_segmentation`.
    """
    assert labels.shape == like.array.shape
    return seg.write_segmentation(out, _grid(target).source.from_canonical(labels), target, made)


def _grid(series: Series) -> Volume:
    return without_voxels(source_grid(series.shape, series.affine))
