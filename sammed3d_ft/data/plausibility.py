"""Whether the values of an image can be SUV (PET) or HU (CT): what is doubtful, and what is refused."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prompts.errors import InputError

# Above any SUV that a scan shows (bladder and kidneys reach some hundred); Bq/ml starts at thousands.
_MAX_SUV = 1000.0
# A PET has few and small negative values, from noise; a CT has many: everything lighter than water.
_NEGATIVE_SUV = -1.0
_SHARE = 0.01
# Every CT of a body shows fat (-100 HU) or air (-1000 HU).
_LIGHTEST_HU = -50.0


def doubts(modality: str, values: np.ndarray) -> Iterator[str]:
    """What makes one doubt that an image is PET in SUV or CT in HU, in one phrase each."""
    low, high = float(values.min()), float(values.max())
    if low == high:
        yield f"every voxel is {low:g}"
    elif modality == "PT":
        if high > _MAX_SUV:
            yield f"maximum {high:.5g} is no SUV; is it in Bq/ml?"
        if low < _NEGATIVE_SUV and (share := float((values < _NEGATIVE_SUV).mean())) > _SHARE:
            yield f"{share:.0%} of the voxels are below {_NEGATIVE_SUV:g}, which no SUV is; is it a CT?"
    elif low > _LIGHTEST_HU:
        yield f"no voxel is below {_LIGHTEST_HU:g}, though fat and air are; are the values HU, is it a PET?"


def check_suv(values: np.ndarray, where: str) -> None:
    """Refuse a PET whose values cannot be SUV by body weight, at whatever dose, time and tracer.

    SUV is the concentration over the injected dose per body weight (decay taken into account; QIBA's profile of FDG
    PET/CT), so its sum over an image, voxel volume times SUV, is at most the body's weight. More than 1 % of the voxels
    above SUV 1000 would be hundreds of kilograms in a scan of 30 litres; values in Bq/ml have most of the body there. A
    negative concentration does not exist: more than 1 % of the voxels below -1 is no noise, but fat and air of a CT.
    A single hot spot (an extravasation, urine) is not refused.

    Raises:
        InputError: one of the two, or all voxels are equal.
    """
    share_hot, share_negative = (float(part.mean()) for part in (values > _MAX_SUV, values < _NEGATIVE_SUV))
    if share_negative > _SHARE:
        raise InputError(
            f"{where}: is no PET in SUV, {share_negative:.0%} of its voxels are below {_NEGATIVE_SUV:g} "
            f"(down to {values.min():.5g}); is it a CT?"
        )
    if share_hot > _SHARE:
        raise InputError(
            f"{where}: is no PET in SUV, {share_hot:.0%} of its voxels are above {_MAX_SUV:g} "
            f"(up to {values.max():.5g}); is it in Bq/ml? `sammed3d-ft import` makes SUV of its DICOM files"
        )
    if values.min() == values.max():
        raise InputError(f"{where}: every voxel is {values.max():g}, so there is nothing to see in it")
