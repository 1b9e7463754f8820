"""Opens the segmenter of a method, either promptable by clicks or automatic."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from scipy import ndimage
from torch import nn

from prompts.depth import deepest_point
from prompts.lesions import lesions_from_mask
from sammed3d_ft.benchmark.config import CheckpointRow, RuleRow, SliceSamRow
from sammed3d_ft.comparators.slice_sam import MetaSAM, SliceSAM
from sammed3d_ft.comparators.threshold import SuvAtLeast, ThresholdByClicks
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume, grid_difference
from sammed3d_ft.images.images import IMAGE_SUFFIXES, read_label
from sammed3d_ft.prompted.predictor import Predictor
from sammed3d_ft.prompted.simulated_user import Clickable
from sammed3d_ft.provenance import file_hash, state_hash


class Automatic(Protocol):
    """Segments a scan without clicks."""

    @property
    def modalities(self) -> tuple[str, ...]: ...  # the first one's grid is the mask's
    def mask(self, images: Mapping[str, Volume], case: str) -> np.ndarray: ...  # (X, Y, Z) bool, canonical


Segmenter = Clickable | Automatic


@dataclass(frozen=True)
class Source:
    """What makes a run's masks."""

    clickable: bool
    made_of: dict[str, Any]
    """What the masks depend on besides the cases; JSON-serialisable."""
    open: Callable[[], Segmenter] | None = None
    """None if the masks already exist."""
    accumulate: bool | None = None
    """Whether the decoder receives all clicks so far, or only the newest; None except for untrained prompted models."""


OpenTrained = Callable[[Path, bool], Source]


@lru_cache(maxsize=32)  # one model per method, shared by its folds
def source_untrained(row: CheckpointRow | RuleRow | SliceSamRow) -> Source:
    """The source of a method that is not trained; `InputError` if its weights cannot be used."""
    if isinstance(row, CheckpointRow):
        predictor = Predictor.from_pretrained(
            row.checkpoint, spacing_mm=row.spacing_mm, accumulate=row.accumulate_clicks
        )
        assert isinstance(predictor.model, nn.Module)
        weights = state_hash(predictor.model.state_dict())
        made_of: dict[str, Any] = {"model": weights, "preprocessing": predictor.preprocessing.to_json()}
        if not predictor.accumulate:
            made_of["accumulate_clicks"] = False
        return Source(True, made_of, lambda: predictor, predictor.accumulate)
    if isinstance(row, SliceSamRow):
        sam = SliceSAM(MetaSAM(row.slice_sam))
        weights = row.slice_sam if row.slice_sam == "random" else file_hash(row.slice_sam)
        return Source(True, {"slice_sam": weights}, lambda: sam)
    rule = row.rule.build()
    made_of = {"rule": row.rule.model_dump()}
    if row.clicks == "seeded":
        return Source(True, made_of, lambda: ThresholdByClicks(rule))
    assert isinstance(rule, SuvAtLeast), "checked by the config"
    return Source(False, made_of, lambda: WholeImageThreshold(rule))


def source_trained(folder: Path, prompted: bool) -> Source:
    """The model that a training exported into its run folder; `InputError` if it is missing."""
    export = folder / "export" / "model.safetensors"
    if not export.is_file():
        raise InputError(f"{export} is missing, although the training is done: restore it, or delete {folder}")
    made_of = {"model": file_hash(export)}
    return Source(prompted, made_of, lambda: Predictor.from_pretrained(export) if prompted else Network(export))


def source_masks(folders: Mapping[str, Path], cases: Sequence[str]) -> Source:
    """Masks that already exist; ``folders`` by level."""
    return Source(False, {"masks": {level: masks_in(folder, cases) for level, folder in folders.items()}})


def find_mask(folder: Path, case: str) -> Path | None:
    """The mask of a case in a folder, in any readable format; None if there is none."""
    paths = (folder / f"{case}{suffix}" for suffix in IMAGE_SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def masks_in(folder: Path, cases: Sequence[str]) -> dict[str, str | None]:
    """The hash of each case's mask; None if there is none."""
    return {case: None if (path := find_mask(folder, case)) is None else file_hash(path) for case in cases}


def source_cascade(
    found: Path, cases: Sequence[str], prompted: Source, connectivity: int, min_volume_ml: float
) -> Source:
    """A prompted source that is clicked at the components of the masks in the folder ``found``."""
    made_of = {"detector": masks_in(found, cases), "prompted": prompted.made_of, "connectivity": connectivity}
    if min_volume_ml:
        made_of["min_volume_ml"] = min_volume_ml

    def open_cascade() -> Segmenter:
        model = prompted.open and prompted.open()
        assert isinstance(model, Predictor | SliceSAM | ThresholdByClicks)
        return Cascade(found, model, connectivity, min_volume_ml)

    return Source(False, made_of, open_cascade)


class WholeImageThreshold:
    """A threshold on the whole image, without clicks."""

    modalities = ("PT",)

    def __init__(self, rule: SuvAtLeast) -> None:
        self._rule = rule

    def mask(self, images: Mapping[str, Volume], case: str) -> np.ndarray:
        """Every voxel at or above the SUV."""
        return self._rule.mask(images["PT"].array)


class Network:
    """A trained automatic network."""

    def __init__(self, export: Path) -> None:
        from sammed3d_ft.automatic.segmenter import AutomaticSegmenter  # imports MONAI, which takes seconds

        self._segmenter = AutomaticSegmenter.from_pretrained(export, None)
        self.modalities = tuple(self._segmenter.modalities)

    def mask(self, images: Mapping[str, Volume], case: str) -> np.ndarray:
        """Voxels whose logits are above 0."""
        return np.asarray(self._segmenter.segment(images)) > 0


class Cascade:
    """A prompted model clicked once at the deepest point of every component of a detector's masks.

    There is no user: lesions that the detector misses are missed, and its false-positive components are clicked too.

    Args:
        masks: folder of the detector's masks.
        model: the prompted model.
        connectivity: of the components.
        min_volume_ml: smaller components are ignored.
    """

    def __init__(self, masks: Path, model: Clickable, connectivity: int, min_volume_ml: float = 0) -> None:
        self._masks, self._model, self._connectivity = masks, model, connectivity
        self._min_volume_ml = min_volume_ml
        self.modalities = model.modalities

    def mask(self, images: Mapping[str, Volume], case: str) -> np.ndarray:
        """The union of the lesions; empty if the detector found none.

        Raises:
            InputError: the detector's mask of this case is missing, unreadable or on another grid.
        """
        path = find_mask(self._masks, case)
        if path is None:
            raise InputError(f"case {case}: the detector has no mask in {self._masks}")
        found = read_label(path, case=case)
        image = images[self.modalities[0]]
        if difference := grid_difference(found, image):
            raise InputError(f"case {case}: mask in {self._masks} and image are on different grids ({difference})")
        components, _ = lesions_from_mask(found.array > 0, self._connectivity)
        self._model.set_image(images)
        mask = np.zeros(found.array.shape, bool)
        voxel_ml = float(np.prod(image.spacing_mm)) / 1000
        for number, box in enumerate(ndimage.find_objects(components), start=1):
            component = components[box] == number
            if np.count_nonzero(component) * voxel_ml < self._min_volume_ml:
                continue
            deepest = deepest_point(component, image.spacing_mm)
            assert deepest is not None, "a component has voxels"
            lesion = self._model.add_click(deepest[0] + [side.start for side in box], 1, number)
            mask[lesion.region.slices] |= lesion.mask
        return mask
