"""The predictor: turns clicks on a scan into lesions on the scan's own voxels."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prompts.boxes import bounding_box
from prompts.depth import deepest_point
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.crops import CropGrid, Region
from sammed3d_ft.images.grids import Volume
from sammed3d_ft.model.build import usable_device
from sammed3d_ft.model.published import click_mode
from sammed3d_ft.prompted.ambiguity import START_INSIDE, START_OUTSIDE
from sammed3d_ft.prompted.lesion_crops import (
    PlacedClick,
    PromptableModel,
    StartMask,
    crops_at_once,
    encode_crops,
    evaluating,
)
from sammed3d_ft.prompted.obedience import with_reach
from sammed3d_ft.prompted.prediction import LesionPrediction, highest_probability, instance_map, union_mask
from sammed3d_ft.prompted.preprocessing import Preprocessing, channels
from sammed3d_ft.prompted.pretrained import open_pretrained
from sammed3d_ft.prompted.sites import Site, SiteDecoder

# Clicks in mm are converted to voxels with an affine that is stored in float32. They are rounded to this many decimals,
# so that a scan stored in two axis orders gives the same clicks, bit for bit.
_CLICK_DECIMALS = 3
# Crops and steps are rounded to 1e-6 voxels (`crop_grid`); no scanner resolves a hundredth of this.
_FINEST_MM = 0.01
_COARSEST_MM = 100.0  # a crop of 128 voxels then spans 13 m
MOST_LESION_NUMBER = int(np.iinfo(np.int32).max)  # the largest number that an instance map can hold
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _LesionState:
    """A lesion after some of its clicks. Each click creates a new state that keeps the previous one for `undo`."""

    start: StartMask | None = None
    sites: tuple[Site, ...] = ()
    clicks: tuple[PlacedClick, ...] = ()
    before: _LesionState | None = None


_NOTHING = _LesionState()


class Predictor:
    """Interactive segmentation of the lesions of one scan at a time.

    Each lesion has a crop centred on its first click, as in training. The encoder runs once per crop, the decoder at
    every click, with all clicks so far and its own previous logits. Embeddings are kept until `set_image` or `reset`.

    A lesion can start from a mask (`add_mask`), such as a CNN's, which clicks then correct.

    Auto-zoom: after the first click, a lesion that is small in its crop gets a finer crop with the same centre, at 1/4
    or 1/2 of the spacing, of whose edge it spans at most half. A lesion that reaches the crop's border, after the first
    or a later click, gets coarser crops, at 2 and if needed 4 times the spacing. Where crops overlap, the finer one is
    used, blended into the coarser one towards its border.

    A foreground click outside all crops of its lesion opens another site: crops around that click, zoomed likewise.
    Later clicks go to every site whose crop contains them. The lesion's logits are the maximum over its sites.

    All positions are canonical voxel coordinates (``Volume.to_vox`` converts world mm): integers are voxel centres, and
    the axes x, y, z point to Right, Anterior, Superior.

    Args:
        model: `SAMMed3D`, or another `PromptableModel`.
        preprocessing: the preprocessing used in training.
        device: device to move the model to; None leaves it where it is.
        accumulate: pass all clicks so far to the decoder; False passes only the newest, for models trained that way.
        zoom: use auto-zoom.
        flips: test-time augmentation: average the logits over the eight mirrored versions of each crop (about its
            centre, clicks included). Eight times the cost.
        obey: enforce the clicks, see `obedience`; False returns the network's own prediction.

    Raises:
        InputError: the number of the model's input channels differs from the number of modalities.
    """

    def __init__(
        self,
        model: PromptableModel,
        preprocessing: Preprocessing,
        device: str | torch.device | None = None,
        accumulate: bool = True,
        zoom: bool = True,
        flips: bool = False,
        obey: bool = True,
    ) -> None:
        if model.in_channels != len(preprocessing.modalities):
            raise InputError(
                f"the model has {model.in_channels} input channels, but its preprocessing names "
                f"{' and '.join(preprocessing.modalities)}"
            )
        if device is not None and isinstance(model, nn.Module):
            model.to(device)
        self.model = model
        self.preprocessing = preprocessing
        self.accumulate = accumulate
        self.zoom = zoom
        self.flips = flips
        self.obey = obey
        self.preset: str | None = None
        """Name of the published weights whose settings are used; set by `from_pretrained`."""
        self._volume: Volume | None = None
        self._channels = torch.empty(0)
        self._lesions: dict[int, _LesionState] = {}
        self._predictions: dict[int, LesionPrediction] = {}
        self._ahead: dict[tuple[CropGrid, ...], list[Tensor]] = {}

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device | None = None,
        base: str | Path | None = None,
        flips: bool = False,
        spacing_mm: float | None = None,
        obey: bool = True,
        accumulate: bool | None = None,
    ) -> Predictor:
        """Load a predictor from a checkpoint.

        Args:
            path: an export (its metadata define the preprocessing), a published checkpoint (by name or file;
                see `open_pretrained`), the folder of a LoRA adapter, or ``hub:owner/name`` for an export or adapter on
                the Hugging Face hub.
            device: None selects CUDA if available, else the CPU.
            base: the weights that an adapter was trained on.
            flips: see the class.
            obey: see the class.
            spacing_mm: crop spacing; None uses that of the training. Finer crops enlarge small lesions but show less of
                their surroundings.
            accumulate: see the class; None uses that of the training.

        A ``spacing_mm`` or ``accumulate`` that differs from the training is used, with a warning in the log.

        Raises:
            InputError: see `open_pretrained`; an unavailable device; a spacing outside 0.01 to 100 mm.
        """
        chosen = usable_device(device)  # checked first, because reading the weights takes longer
        if spacing_mm is not None and not (_FINEST_MM <= spacing_mm <= _COARSEST_MM):
            raise InputError(f"crop spacing {spacing_mm:g} mm: expected {_FINEST_MM:g} to {_COARSEST_MM:g} mm")
        found = open_pretrained(path, base)
        preprocessing = found.preprocessing
        if spacing_mm is not None:
            if "preprocessing" in found.stated and spacing_mm != preprocessing.spacing_mm:
                was = preprocessing.spacing_mm
                _log.warning("%s was trained with crops at %g mm; used here at %g mm", path, was, spacing_mm)
            preprocessing = replace(preprocessing, spacing_mm=spacing_mm)
        if accumulate is not None and "accumulate_clicks" in found.stated and accumulate != found.accumulate:
            modes = click_mode(found.accumulate), click_mode(accumulate)
            _log.warning("%s was trained with %s; used here with %s", path, *modes)
        accumulate = found.accumulate if accumulate is None else accumulate
        predictor = cls(found.model, preprocessing, chosen, accumulate, found.zoom, flips, obey)
        predictor.preset = found.preset
        return predictor

    def set_image(self, images: Mapping[str, Volume]) -> None:
        """Set the scan to segment, by modality (PT in SUV, CT in HU), and remove all lesions.

        Raises:
            InputError: a required modality is missing, or an array without its grid.
        """
        given = images.values() if isinstance(images, Mapping) else [images]
        wrong = [type(image).__name__ for image in given if not isinstance(image, Volume)]
        if wrong or not isinstance(images, Mapping):
            raise InputError(
                f"set_image got {wrong[0] if wrong else 'a Volume'}, expected images by modality, such as "
                "{'PT': read_image('pet.nii.gz')} or {'PT': from_array(array, affine)}: an array alone has no spacing"
            )
        self._channels = channels(images, self.preprocessing)
        self._volume = images[self.preprocessing.modalities[0]]
        self.reset()

    def reset(self) -> None:
        """Remove all lesions and clicks; keep the scan."""
        self._lesions = {}
        self._predictions = {}
        self._ahead = {}

    @property
    def volume(self) -> Volume:
        """The scan whose grid all results have; InputError before `set_image`."""
        if self._volume is None:
            raise InputError("no image yet: call set_image before clicking")
        return self._volume

    @property
    def modalities(self) -> tuple[str, ...]:
        """The required images; results are on the grid of the first."""
        return self.preprocessing.modalities

    @property
    def lesions(self) -> tuple[int, ...]:
        """Numbers of the lesions, in the order of their first clicks or masks."""
        return tuple(self._lesions)

    def add_mask(
        self, mask: np.ndarray, lesion: int = 1, corner_vox: tuple[int, int, int] = (0, 0, 0)
    ) -> LesionPrediction:
        """Start a lesion from a mask that clicks can correct. Without clicks the mask is returned unchanged.

        In the lesion's first round, the decoder gets the mask instead of previous logits. The first click may be
        background or lie outside the mask: the first foreground click inside the mask is used before the others. If
        there is none, the predictor adds one at the mask's deepest point, away from background clicks. Parts of the
        mask outside the lesion's crops are dropped at the first click.

        Args:
            mask: (X, Y, Z), canonical; bool, or 0 for background. Of the scan's shape or smaller.
            lesion: the lesion's number, from 1 to 2147483647; an existing lesion is replaced.
            corner_vox: position of the mask's first voxel in the scan.

        Raises:
            InputError: no image, a mask that does not fit into the scan, or an empty mask.
        """
        _check_number(lesion)
        corner, shape = np.array(corner_vox), self.volume.array.shape
        if mask.ndim != 3 or (corner < 0).any() or (corner + mask.shape > shape).any():
            raise InputError(
                f"lesion {lesion}: a mask of shape {mask.shape} at {corner_vox} does not fit the scan's {shape}"
            )
        box = bounding_box(mask != 0)
        if box is None:
            raise InputError(f"lesion {lesion}: the start mask is empty")
        start = StartMask.of(mask[box] != 0, box, corner_vox)
        return self._keep(lesion, _LesionState(start), self._site_decoder())

    def add_click(self, position_vox: Any, label: int = 1, lesion: int = 1) -> LesionPrediction:
        """Add a click to a lesion and return the lesion's new prediction.

        A foreground click outside the lesion's crops opens another crop. A background click there is ignored, with a
        warning in the log.

        Args:
            position_vox: (3,) canonical voxel coordinates.
            label: 1 foreground, 0 background. A lesion's first click must be foreground, unless it has a start mask.
            lesion: the lesion's number, from 1 to 2147483647; a new number starts a new lesion.

        Raises:
            InputError: no image, a position outside the image, or a first click in the background.
        """
        return self.add_clicks([position_vox], [label], lesion)

    def add_clicks(self, positions_vox: Iterable[Any], labels: Iterable[int], lesion: int = 1) -> LesionPrediction:
        """Add several clicks to one lesion, in order, with one decoder pass each.

        If one of them is invalid, nothing changes.

        Args:
            positions_vox: (N, 3), N at least 1.
            labels: (N,).

        Raises:
            InputError: as `add_click`, or no clicks.
        """
        clicks = [
            PlacedClick.at(self._checked(position, label, lesion), int(label), self.volume.array.shape)
            for position, label in zip(positions_vox, labels, strict=True)
        ]
        _check_number(lesion)
        if not clicks:
            raise InputError(f"lesion {lesion}: no clicks given; at least one is needed")
        state = given = self._lesions.get(lesion, _NOTHING)
        first_by_itself = False
        if not state.sites and state.start is not None:
            # The crop must be on the mask: a crop around a distant click would contain nothing of it.
            inside = (n for n, click in enumerate(clicks) if click.label == 1 and state.start.holds(click))
            first = next(inside, None)
            first_by_itself = first is None
            clicks.insert(0, self._own_click(state.start, clicks) if first is None else clicks.pop(first))
        elif not state.sites and clicks[0].label != 1:
            raise InputError(
                f"lesion {lesion}: its first click, {self._place(clicks[0].position_vox)} is background; "
                "start with a foreground click inside the lesion"
            )
        before = state if state.clicks or state.start is not None else None
        decoder = self._site_decoder()
        with torch.inference_mode(), evaluating(self.model), self._precision():
            for number, placed in enumerate(clicks):
                click = self._with_reach(placed, lesion, state, decoder)
                sites = self._after_click(state, click, decoder)
                if sites is None:
                    _log.warning(
                        "lesion %d: the background click %s lies outside its crops and is ignored",
                        lesion,
                        self._place(click.position_vox),
                    )
                    continue
                state = _LesionState(state.start, sites, (*state.clicks, click), before)
                # A click that the predictor added to the mask is undone together with the user's first click.
                before = before if number == 0 and first_by_itself else state
            return self._predictions[lesion] if state is given else self._keep(lesion, state, decoder)

    def undo(self, lesion: int) -> LesionPrediction | None:
        """Undo a lesion's newest click (the last of `LesionPrediction.clicks`), bit for bit; the encoder is not run.

        A click that the predictor added at a start mask's deepest point is undone together with the user's first click.

        Returns:
            The lesion without the click, or its start mask; None if nothing is left of it.

        Raises:
            InputError: no such lesion, or a mask without clicks.
        """
        state = self._state(lesion)
        if not state.clicks:
            raise InputError(
                f"lesion {lesion} is a mask without clicks, so there is nothing to undo; `remove` deletes it"
            )
        if state.before is None:
            self.remove(lesion)
            return None
        with torch.inference_mode():
            return self._keep(lesion, state.before, self._site_decoder())

    def remove(self, lesion: int) -> None:
        """Delete a lesion and its clicks; InputError if there is no lesion with this number."""
        self._state(lesion)
        del self._lesions[lesion], self._predictions[lesion]

    def encode_ahead(self, positions_vox: Iterable[Any]) -> None:
        """Encode the crops of lesions whose first clicks will be at these positions, several crops per batch.

        Does nothing on a CPU, where batches gain nothing.

        Raises:
            InputError: no image, or a position outside it.
        """
        if crops_at_once(self.model.device) == 1:
            return
        decoder = self._site_decoder()
        crops = [decoder.grids(self._checked(position, 1, 1)) for position in positions_vox]
        with torch.inference_mode(), evaluating(self.model), self._precision():
            embeddings = iter(encode_crops(self.model, self._channels, [grid for grids in crops for grid in grids]))
        self._ahead = {grids: [next(embeddings) for _ in grids] for grids in crops}

    def crop_holds(self, position_vox: Any, lesion: int) -> bool:
        """Whether a position lies in one of a lesion's crops; a mask without clicks has none."""
        voxel = np.floor(np.asarray(position_vox, np.float64) + 0.5)
        return any(site.region.holds(voxel) for site in self._state(lesion).sites)

    def lesion(self, lesion: int) -> LesionPrediction:
        """The current prediction of a lesion; InputError if there is no lesion with this number."""
        self._state(lesion)
        return self._predictions[lesion]

    def mask(self) -> np.ndarray:
        """(X, Y, Z) uint8, canonical: 1 in any lesion."""
        return union_mask(self._predictions.values(), self.volume.array.shape)

    def instances(self) -> np.ndarray:
        """(X, Y, Z) int32, canonical: the lesion's number, 0 background.

        Where lesions overlap, the voxel belongs to the one with the highest probability (if equal, the lowest number).
        """
        return instance_map(self._predictions.values(), Region.of((0, 0, 0), self.volume.array.shape))

    def probability(self) -> np.ndarray:
        """(X, Y, Z) float32, canonical: the highest probability of any lesion, 0 outside all crops."""
        return highest_probability(self._predictions.values(), self.volume.array.shape)

    def _state(self, lesion: int) -> _LesionState:
        if lesion not in self._lesions:
            known = ", ".join(map(str, self._lesions)) or "none"
            raise InputError(f"there is no lesion {lesion}; existing lesions: {known}")
        return self._lesions[lesion]

    def _site_decoder(self) -> SiteDecoder:
        return self._decoders()()

    def _decoders(self) -> Callable[[], SiteDecoder]:
        """A function that creates a decoder for the current scan."""
        return partial(
            SiteDecoder,
            self.model,
            self._channels,
            self.volume,
            self.preprocessing.spacing_mm,
            accumulate=self.accumulate,
            zoom=self.zoom,
            flips=self.flips,
            obey=self.obey,
        )

    def _after_click(self, state: _LesionState, click: PlacedClick, decoder: SiteDecoder) -> tuple[Site, ...] | None:
        """The lesion's sites after one more click; None for a background click outside all crops."""
        clicks = (*state.clicks, click)
        if any(site.holds(click) for site in state.sites):
            return tuple(decoder.clicked(site, clicks) if site.holds(click) else site for site in state.sites)
        if click.label == 0:
            return None
        # The start mask belongs to the first site; further sites segment the lesion without it.
        start = None if state.sites else state.start
        ahead = self._ahead.pop(decoder.grids(click.position_vox), None)
        return (*state.sites, decoder.opened(clicks, start, ahead))

    def _with_reach(self, click: PlacedClick, lesion: int, state: _LesionState, decoder: SiteDecoder) -> PlacedClick:
        """The click, measured on the lesion's mask before it, as the user saw it or would have seen it."""
        if not self.obey or state is _NOTHING:
            return click
        if state is self._lesions.get(lesion):
            region, mask = self._predictions[lesion].region, self._predictions[lesion].mask
        else:
            region, logits, _ = decoder.lesion(state.sites, state.clicks)
            mask = logits > 0
        return with_reach(click, region, mask, self.volume.spacing_mm)

    def _own_click(self, start: StartMask, clicks: list[PlacedClick]) -> PlacedClick:
        """A click at the deepest point of a mask; voxels with background clicks count as outside the mask."""
        mask = start.mask.copy()
        for click in clicks:
            if click.label == 0 and start.holds(click):
                mask[tuple(click.voxel - start.region.start)] = False
        deepest = deepest_point(mask, self.volume.spacing_mm)
        if deepest is None:
            raise InputError("every voxel of the start mask has a background click")
        position_vox = deepest[0] + np.array(start.region.start, np.float64)
        return PlacedClick.at(position_vox, 1, self.volume.array.shape)

    def _keep(self, lesion: int, state: _LesionState, decoder: SiteDecoder) -> LesionPrediction:
        """Store the lesion's new state and its prediction."""
        if not state.sites:
            start = state.start
            assert start is not None
            logits = np.where(start.mask, START_INSIDE, START_OUTSIDE).astype(np.float32)
            prediction = LesionPrediction.of(lesion, start.region, logits, math.nan, (), lambda: logits)
        else:
            region, logits, iou = decoder.lesion(state.sites, state.clicks)
            again = partial(_logits, self._decoders(), state)
            clicks = tuple(map(_position_and_label, state.clicks))
            prediction = LesionPrediction.of(lesion, region, logits, iou, clicks, again)
        self._lesions[lesion], self._predictions[lesion] = state, prediction
        return prediction

    def _checked(self, position_vox: Any, label: int, lesion: int) -> np.ndarray:
        """The rounded position; InputError if it is not a valid click on this scan."""
        position = np.asarray(position_vox, np.float64)
        if position.shape != (3,) or not np.isfinite(position).all():
            raise InputError(f"lesion {lesion}: expected three finite voxel coordinates, got {position_vox}")
        if label not in (0, 1):
            raise InputError(f"lesion {lesion}: expected label 1 (foreground) or 0 (background), got {label!r}")
        position = np.round(position, _CLICK_DECIMALS) + 0.0  # no negative zero
        shape = self.volume.array.shape
        if (position < -0.5).any() or (position > np.asarray(shape) - 0.5).any():
            allowed = ", ".join(f"0..{n - 1}" for n in shape)
            raise InputError(
                f"lesion {lesion}: the click {self._place(position)} lies outside the image (RAS+ voxel indices "
                f"{allowed}); check that the clicks belong to this image"
            )
        return position

    def _place(self, position_vox: np.ndarray) -> str:
        vox = ", ".join(f"{c:g}" for c in position_vox)
        mm = ", ".join(f"{c:.1f}" for c in self.volume.to_mm(position_vox))
        return f"at RAS+ voxel ({vox}), RAS ({mm}) mm,"

    def _precision(self) -> torch.autocast:
        """Full precision, even if the caller trains in mixed precision."""
        return torch.autocast(self.model.device.type, enabled=False)


def _check_number(lesion: int) -> None:
    if not isinstance(lesion, int | np.integer) or not 1 <= lesion <= MOST_LESION_NUMBER:
        raise InputError(f"lesion {lesion!r}: expected a lesion number from 1 to {MOST_LESION_NUMBER}")


@torch.inference_mode()
def _logits(decoders: Callable[[], SiteDecoder], state: _LesionState) -> np.ndarray:
    """Recompute a lesion's logits on its region, by a new `SiteDecoder`, because each caches what it computes."""
    return decoders().lesion(state.sites, state.clicks)[1]


def _position_and_label(click: PlacedClick) -> tuple[tuple[float, float, float], int]:
    x, y, z = (float(c) for c in click.position_vox)
    return (x, y, z), click.label
