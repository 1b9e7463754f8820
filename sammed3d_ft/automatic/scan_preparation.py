"""Whole scans at isotropic spacing: from a case's images to the input of the U-Net family, and back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prompts.boxes import bounding_box
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume, require_modalities
from sammed3d_ft.images.resampling import OFFSET_STEP_VOX, resample_like

# Without CT, PET above this value is body: air around a patient is far below it, muscle and fat are above.
_BODY_SUV = 0.1
# Outside the body the network is not evaluated; its output there is set to a probability of 2e-9.
_OUTSIDE_LOGIT = -20.0


@dataclass(frozen=True)
class ScanPreparation:
    """Settings of scan preparation, stored in every export.

    Defaults follow the paper (arXiv 2502.02756): 2 mm RAS, PET in SUV, CT scaled to [0, 1] between its minimum and
    maximum, cropped to the foreground of the CT.

    Attributes:
        modalities: the input channels in order. The grid of the first one is the grid of the case.
        spacing_mm: isotropic spacing.
    """

    modalities: tuple[str, ...] = ("PT", "CT")
    spacing_mm: float = 2.0

    def __post_init__(self) -> None:
        if (
            not self.modalities
            or len(set(self.modalities)) != len(self.modalities)
            or not {*self.modalities} <= {"PT", "CT"}
        ):
            raise InputError(f"modalities {list(self.modalities)}: expected PT, CT or both")
        if not (np.isfinite(self.spacing_mm) and self.spacing_mm > 0):
            raise InputError(f"spacing {self.spacing_mm} mm: expected a positive number")

    def to_json(self) -> str:
        """One line of JSON, identical for equal settings."""
        return json.dumps({"modalities": self.modalities, "spacing_mm": self.spacing_mm}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ScanPreparation:
        """Read what `to_json` wrote; raises InputError for anything else."""
        try:
            content: dict[str, Any] = json.loads(text)
            if content.keys() != {"modalities", "spacing_mm"}:
                raise ValueError(f"has {sorted(content)}")
            return cls(tuple(content["modalities"]), float(content["spacing_mm"]))
        except InputError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(f"preparation: expected modalities and spacing_mm as JSON ({error})") from error


@dataclass(frozen=True, eq=False)
class PreparedScan:
    """The body region of a scan at the network's spacing.

    Attributes:
        channels: (C, x, y, z) float32, axes parallel to the scan's canonical axes.
        to_scan: (4, 4), voxel of the channels -> canonical voxel of the first modality; scaling and shift only.
        scan: the first modality.
    """

    channels: np.ndarray
    to_scan: np.ndarray
    scan: Volume

    @property
    def affine(self) -> np.ndarray:
        """(4, 4), voxel of the channels -> world mm (RAS+)."""
        return self.scan.affine @ self.to_scan

    def onto_scan(self, logits: np.ndarray) -> np.ndarray:
        """Resample logits (x, y, z) from the channels' grid to the scan's grid by linear interpolation.

        Returns:
            ``scan.array.shape`` float32; -20 outside the body's bounding box.
        """
        prepared = Volume(np.ascontiguousarray(logits, np.float32), self.affine, self.scan.source)
        return resample_like(prepared, self.scan, outside=_OUTSIDE_LOGIT).array

    def target(self, label: Volume) -> np.ndarray:
        """Resample a label's lesions to the channels' grid by nearest neighbour: (x, y, z) bool.

        Args:
            label: on the grid of the first modality.
        """
        indices = []
        for axis, size in enumerate(label.array.shape):
            place = self.to_scan[axis, axis] * np.arange(self.channels.shape[1 + axis]) + self.to_scan[axis, 3]
            # Halfway between two voxels, always choose the lower one, independent of rounding errors.
            indices.append(np.clip(np.floor(place + 0.5 - 1e-3).astype(np.intp), 0, size - 1))
        return np.ascontiguousarray(label.array[np.ix_(*indices)] > 0)


def prepare_scan(images: Mapping[str, Volume], preparation: ScanPreparation, case: str = "") -> PreparedScan:
    """Resample a case's images linearly to one isotropic grid, each from its own grid, and crop them to the body.

    The grid is parallel to the first modality's canonical axes, has the same centre, and extends to its faces.

    Args:
        images: images by modality; PT in SUV, CT in HU. Additional modalities are ignored.
        case: case ID for error messages.

    Raises:
        InputError: a modality is missing.
    """
    require_modalities(images, preparation.modalities, case)
    scan = images[preparation.modalities[0]]
    to_scan, shape = _isotropic_grid(scan, preparation.spacing_mm)
    # Only the shape of the grid's array is used.
    grid = Volume(np.broadcast_to(np.float32(0), shape), scan.affine @ to_scan, scan.source)
    resampled = {}
    for modality in preparation.modalities:
        image = images[modality]
        outside = float(image.array.min()) if modality == "CT" else 0.0
        array = resample_like(image, grid, outside=outside).array
        resampled[modality] = _min_max(array) if modality == "CT" else array
    body = bounding_box(resampled["CT"] > 0 if "CT" in resampled else resampled["PT"] > _BODY_SUV)
    if body is None:  # no foreground: the whole volume
        return PreparedScan(np.stack([*resampled.values()]), to_scan, scan)
    to_scan[:3, 3] += np.diag(to_scan)[:3] * [side.start for side in body]
    return PreparedScan(np.stack([array[body] for array in resampled.values()]), to_scan, scan)


def _isotropic_grid(scan: Volume, spacing_mm: float) -> tuple[np.ndarray, tuple[int, int, int]]:
    """An isotropic grid over a scan: the (4, 4) matrix from its voxels to the scan's, and its shape."""
    extent = np.array(scan.array.shape)
    step = np.round(spacing_mm / scan.spacing_mm, 6)
    count = np.maximum(np.ceil(extent / step - 1e-3), 1).astype(int)
    start = ((extent - 1) - (count - 1) * step) / 2
    to_scan = np.diag([*step, 1.0])
    to_scan[:3, 3] = np.round(start / OFFSET_STEP_VOX) * OFFSET_STEP_VOX
    return to_scan, (int(count[0]), int(count[1]), int(count[2]))


def _min_max(values: np.ndarray) -> np.ndarray:
    low, high = values.min(), values.max()
    return (values - low) / max(high - low, np.float32(1e-6))
