"""From a case's images to the encoder's input; the same for training, cache and prediction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sammed3d_ft.errors import InputError
from sammed3d_ft.images.crops import CropGrid, read_crop
from sammed3d_ft.images.grids import Volume, require_modalities, same_grid
from sammed3d_ft.images.intensity import CLIP_RANGES, clip, z_score
from sammed3d_ft.images.resampling import resample_like


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing settings of a model, needed for its use and stored in every export.

    Attributes:
        modalities: the input channels in order. The grid of the first one is the grid of the case.
        spacing_mm: isotropic spacing of the crop.
        clip: clipping limits by modality, PT in SUV and CT in HU; missing modalities get the default range, and None
            leaves the values as they are.
    """

    modalities: tuple[str, ...] = ("PT",)
    spacing_mm: float = 1.5
    clip: dict[str, tuple[float, float] | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise InputError(f"modalities {list(self.modalities)}: expected distinct modalities, such as PT, CT")
        if not (np.isfinite(self.spacing_mm) and self.spacing_mm > 0):
            raise InputError(f"crop spacing {self.spacing_mm} mm: expected a positive number")
        limits: dict[str, tuple[float, float] | None] = {}
        for modality in self.modalities:
            if modality not in self.clip and modality not in CLIP_RANGES:
                raise InputError(f"modality {modality!r} has no clipping range; use PT or CT, or set its range")
            given = self.clip.get(modality, CLIP_RANGES.get(modality))
            if given is None:
                limits[modality] = None
                continue
            low, high = float(given[0]), float(given[1])
            if not low < high:
                raise InputError(f"clipping of {modality} to [{low:g}, {high:g}]: expected low < high")
            limits[modality] = (low, high)
        unused = sorted(self.clip.keys() - limits.keys())
        if unused:
            raise InputError(f"clipping of {unused[0]!r}: not among the modalities {', '.join(self.modalities)}")
        object.__setattr__(self, "clip", limits)

    def __str__(self) -> str:
        clipped = (f"{name} {_range(self.clip[name])}" for name in self.modalities)
        return f"{', '.join(clipped)}, crops at {self.spacing_mm:g} mm"

    def to_json(self) -> str:
        """One line of JSON, identical for equal settings."""
        content = {"modalities": self.modalities, "spacing_mm": self.spacing_mm, "clip": self.clip}
        return json.dumps(content, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Read what `to_json` wrote; raises InputError for anything else."""
        try:
            content: dict[str, Any] = json.loads(text)
            if content.keys() != {"modalities", "spacing_mm", "clip"}:
                raise ValueError(f"has {sorted(content)}")
            limits = {name: None if given is None else _pair(*given) for name, given in content["clip"].items()}
            return cls(tuple(content["modalities"]), float(content["spacing_mm"]), limits)
        except InputError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"preprocessing of an export: expected modalities, spacing_mm and clip as JSON ({error})"
            ) from error


def _pair(low: Any, high: Any) -> tuple[float, float]:
    return float(low), float(high)


def _range(limits: tuple[float, float] | None) -> str:
    return "not clipped" if limits is None else f"clipped to [{limits[0]:g}, {limits[1]:g}]"


def channels(images: Mapping[str, Volume], preprocessing: Preprocessing, case: str = "") -> Tensor:
    """The clipped input channels of a model from a case's images, on the first modality's grid.

    Args:
        images: images by modality; PT in SUV, CT in HU. Additional modalities are ignored.
        case: case ID for error messages.

    Returns:
        (C, X, Y, Z) float32 on the CPU, canonical axes; other modalities are resampled onto the first one's grid if
        needed, with 0 outside their extent.

    Raises:
        InputError: a modality is missing.
    """
    require_modalities(images, preprocessing.modalities, case)
    reference = images[preprocessing.modalities[0]]
    arrays = []
    for modality in preprocessing.modalities:
        image = images[modality]
        array = image.array if same_grid(image, reference) else resample_like(image, reference).array
        array = np.ascontiguousarray(array, dtype=np.float32)
        arrays.append(clip(torch.from_numpy(array), preprocessing.clip[modality]))
    return torch.stack(arrays)


def prepare_crop(volume: Tensor, grid: CropGrid) -> Tensor:
    """The encoder's input: a crop read by linear interpolation, 0 outside the image, then z-scored.

    Args:
        volume: (C, X, Y, Z) from `channels`.

    Returns:
        (C, S, S, S) float32.
    """
    return z_score(read_crop(volume, grid))
