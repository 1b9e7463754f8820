"""Plausibility checks of image values: warnings and errors if they do not look like SUV (PET) or HU (CT)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from sammed3d_ft.errors import InputError

# Above any SUV in a scan (bladder and kidneys reach a few hundred); values in Bq/ml are in the thousands.
_MAX_SUV = 1000.0
# PET has few and small negative values, from noise; CT has many: everything less dense than water.
_NEGATIVE_SUV = -1.0
_SHARE = 0.01
# Every CT of a body contains fat (-100 HU) or air (-1000 HU).
_LIGHTEST_HU = -50.0


def doubts(modality: str, values: np.ndarray) -> Iterator[str]:
    """Reasons to doubt that an image is PET in SUV or CT in HU, one phrase each."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        yield f"every voxel is {low:g}"
    elif modality == "PT":
        if high > _MAX_SUV:
            yield f"the maximum of {high:.5g} is too high for SUV; are the values in Bq/ml?"
        if low < _NEGATIVE_SUV and (share := float((values < _NEGATIVE_SUV).mean())) > _SHARE:
            yield f"{share:.0%} of the voxels are below {_NEGATIVE_SUV:g}, too low for SUV; is it a CT?"
    elif low > _LIGHTEST_HU:
        yield f"no voxel is below {_LIGHTEST_HU:g} HU, not even fat or air; are the values in HU, or is it a PET?"


def check_suv(values: np.ndarray, where: str) -> None:
    """Raise InputError for a PET whose values cannot be SUV by body weight, for any dose, time and tracer.

    SUV is the activity concentration divided by the injected dose per body weight (decay-corrected; QIBA profile of FDG
    PET/CT), so the sum of voxel volume times SUV is at most the body weight. In a scan of 30 litres, more than 1 % of
    the voxels above SUV 1000 would mean hundreds of kilograms; in Bq/ml, most of the body is above 1000. Negative
    concentrations do not exist: more than 1 % of the voxels below -1 is not noise, but fat and air of a CT.
    A single hot spot (extravasation, urine) is accepted.

    Raises:
        InputError: more than 1 % of the voxels above 1000 or below -1, or all voxels equal.
    """
    share_hot, share_negative = (float(part.mean()) for part in (values > _MAX_SUV, values < _NEGATIVE_SUV))
    if share_negative > _SHARE:
        raise InputError(
            f"{where}: does not look like PET in SUV ({share_negative:.0%} of the voxels are below "
            f"{_NEGATIVE_SUV:g}, minimum {values.min():.5g}); is it a CT?"
        )
    if share_hot > _SHARE:
        raise InputError(
            f"{where}: does not look like PET in SUV ({share_hot:.0%} of the voxels are above {_MAX_SUV:g}, "
            f"maximum {values.max():.5g}); if it is in Bq/ml, convert its DICOM files with `sammed3d-ft import`"
        )
    if values.min() == values.max():
        raise InputError(f"{where}: every voxel is {values.max():g}, so the image is empty")
