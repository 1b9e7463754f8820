"""Preprocessing, one for training, cache and prediction: from a case's images to what the encoder sees."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prompts.errors import InputError
from sammed3d_ft.data.crops import CropGrid, read_crop
from sammed3d_ft.data.images import Volume, resample_like, same_grid
from sammed3d_ft.data.intensity import CLIP_RANGES, clip, z_score


@dataclass(frozen=True)
class Preprocessing:
    """What a model was trained with and must be used with; written into every export.

    Attributes:
        modalities: the input channels in order. The first one's grid is the grid of the case.
        spacing_mm: isotropic spacing of the crop.
        clip: limits by modality, PT in SUV and CT in HU; the default ranges where it is left empty.
    """

    modalities: tuple[str, ...] = ("PT",)
    spacing_mm: float = 1.5
    clip: dict[str, tuple[float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise InputError(f"modalities {list(self.modalities)}: expected different ones, such as PT, CT")
        if not (np.isfinite(self.spacing_mm) and self.spacing_mm > 0):
            raise InputError(f"crop spacing {self.spacing_mm} mm: expected a positive number")
        limits: dict[str, tuple[float, float]] = {}
        for modality in self.modalities:
            given = self.clip.get(modality, CLIP_RANGES.get(modality))
            if given is None:
                raise InputError(f"modality {modality!r} has no clipping range; name PT or CT, or give its range")
            low, high = float(given[0]), float(given[1])
            if not low < high:
                raise InputError(f"clipping of {modality} to [{low:g}, {high:g}]: expected low < high")
            limits[modality] = (low, high)
        unused = sorted(self.clip.keys() - limits.keys())
        if unused:
            raise InputError(f"clipping of {unused[0]!r}, which is none of {', '.join(self.modalities)}")
        object.__setattr__(self, "clip", limits)

    def to_json(self) -> str:
        """One line of JSON, equal for equal settings."""
        content = {"modalities": self.modalities, "spacing_mm": self.spacing_mm, "clip": self.clip}
        return json.dumps(content, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Preprocessing:
        """Reads what `to_json` wrote; `InputError` on anything else."""
        try:
            content: dict[str, Any] = json.loads(text)
            if content.keys() != {"modalities", "spacing_mm", "clip"}:
                raise ValueError(f"has {sorted(content)}")
            limits = {name: (float(low), float(high)) for name, (low, high) in content["clip"].items()}
            return cls(tuple(content["modalities"]), float(content["spacing_mm"]), limits)
        except InputError:
            raise
        except (ValueError, TypeError, AttributeError) as error:
            raise InputError(
                f"preprocessing of an export: expected modalities, spacing_mm and clip as JSON ({error})"
            ) from error


def require_modalities(images: Mapping[str, Volume], modalities: Sequence[str], case: str = "") -> None:
    """`InputError` that names the case and its missing images, unless there is one of each modality."""
    missing = [modality for modality in modalities if modality not in images]
    if missing:
        where = f"{case}: " if case else ""
        raise InputError(
            f"{where}no {' and no '.join(missing)} image, but the network sees {' and '.join(modalities)}; "
            "add it, or use a network without it"
        )


def channels(images: Mapping[str, Volume], preprocessing: Preprocessing, case: str = "") -> Tensor:
    """The images of a case as the clipped input channels of a model, on the first modality's grid.

    Args:
        images: by modality; PT in SUV, CT in HU. More than the model needs may be there.
        case: named in error messages.

    Returns:
        (C, X, Y, Z) float32 on the CPU, canonical axes; other modalities are resampled onto the first one's
        grid where they differ, 0 outside of them.

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


def prepare_crop(volume: Tensor, grid: CropGrid, rotation: np.ndarray | None = None) -> Tensor:
    """The crop as the encoder sees it: read by linear interpolation, 0 outside the image, then z-scored.

    Args:
        volume: (C, X, Y, Z) of `channels`.
        rotation: see `read_crop`.

    Returns:
        (C, S, S, S) float32.
    """
    return z_score(read_crop(volume, grid, rotation))
