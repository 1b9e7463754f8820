"""The predictor: clicks on a scan become lesions on the scan's own voxels, with the encoder run once each."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prompts.depth import bounding_box, deepest_point
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.crops import CropGrid
from sammed3d_ft.images.grids import Volume
from sammed3d_ft.model.build import usable_device
from sammed3d_ft.prompted.ambiguity import START_INSIDE, START_OUTSIDE
from sammed3d_ft.prompted.lesion_crops import (
    PlacedClick,
    PromptableModel,
    StartMask,
    crops_at_once,
    encode_crops,
    evaluating,
)
from sammed3d_ft.prompted.prediction import LesionPrediction, highest_probability, instance_map, union_mask
from sammed3d_ft.prompted.preprocessing import Preprocessing, channels
from sammed3d_ft.prompted.pretrained import open_pretrained
from sammed3d_ft.prompted.sites import Site, SiteDecoder

# Clicks in mm come back to voxels through an affine that a file stores in float32. Rounded to this many
# decimals of a voxel, one scan stored in two axis orders gives the same clicks, bit for bit.
_CLICK_DECIMALS = 3
# Crops and steps are rounded to 1e-6 voxels (`crop_grid`); no scanner resolves a hundredth of this.
_FINEST_MM = 0.01
_COARSEST_MM = 100.0  # a crop of 128 voxels then spans 13 m
MOST_LESION_NUMBER = int(np.iinfo(np.int32).max)  # what an instance map holds
_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _LesionState:
    """A lesion after some of its clicks. A click makes a new state, which remembers the one before for `undo`."""

    start: StartMask | None = None
    sites: tuple[Site, ...] = ()
    clicks: tuple[PlacedClick, ...] = ()
    before: _LesionState | None = None


class Predictor:
    """Interactive segmentation of the lesions of one scan at a time.

    Each lesion is seen in a crop that is centred on its first click, as in training. The first click costs
    one pass of the encoder for each crop; every click costs one of the decoder, which is given all clicks so far and
    its own previous logits. Embeddings are kept until `set_image` or `reset`.

    A lesion can start from a mask (`add_mask`), a CNN's for example, and is then corrected by clicks.

    After its first click the crop is zoomed: a lesion that is small in it is seen a second time in a crop of a quarter
    or a half of the spacing about the same centre, where it takes at most half of the edge. One that reaches the crop's
    border, then or after a later click, is seen in crops of twice and, if need be, four times the spacing. Where crops
    overlap the finer one holds, and gives way softly to the coarser one towards its border.

    A foreground click outside all crops of its lesion opens a site of its own: crops about that click, zoomed in
    the same way. Further clicks go to every site whose crop holds them, and the lesion's logits are the highest of
    its sites'.

    All positions are canonical voxel coordinates (``Volume.to_vox`` gives them for world mm): integers are
    voxel centres, axes x, y, z point to Right, Anterior, Superior.

    Args:
        model: `SAMMed3D`, or anything that acts like it.
        preprocessing: what the model was trained with.
        device: where to move the model; None leaves it where it is.
        accumulate: give the decoder all clicks so far; False gives it the newest alone, for models that
            were trained so.
        zoom: look closer where a lesion is small in its crop, and further where it reaches the crop's border.
        flips: see each crop in its eight mirrorings about the first click, clicks mirrored along, and take the mean
            of their logits: eight times the work.
        obey: what clicks say holds, whatever the network makes of them; see `obedience`. False shows the network's own
            answer.

    Raises:
        InputError: the model's input channels and the modalities differ in number.
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
    ) -> Predictor:
        """The predictor of a checkpoint.

        Args:
            path: an export (its metadata say how to preprocess), a published checkpoint (PT at the spacing of
                its variant), or the folder of a LoRA adapter.
            device: None takes a CUDA device if there is one, else the CPU.
            base: the weights an adapter was trained on.
            flips, obey: as for the class.
            spacing_mm: of the crops; None takes what the checkpoint was trained with. Finer crops show small lesions
                larger, at the price of seeing less around them.

        Raises:
            InputError: see `open_pretrained`; a device that is not there; a spacing below 0.01 mm.
        """
        chosen = usable_device(device)  # before the weights are read, which takes longer
        if spacing_mm is not None and not (_FINEST_MM <= spacing_mm <= _COARSEST_MM):
            raise InputError(f"crop spacing {spacing_mm:g} mm: expected {_FINEST_MM:g} to {_COARSEST_MM:g} mm")
        found = open_pretrained(path, base)
        preprocessing = found.preprocessing
        if spacing_mm is not None:
            preprocessing = replace(preprocessing, spacing_mm=spacing_mm)
        return cls(found.model, preprocessing, chosen, found.accumulate, flips=flips, obey=obey)

    def set_image(self, images: Mapping[str, Volume]) -> None:
        """Takes the scan to segment, by modality (PT in SUV, CT in HU); forgets all lesions.

        Raises:
            InputError: a modality the model needs is missing, or an array without its grid.
        """
        given = images.values() if isinstance(images, Mapping) else [images]
        wrong = [type(image).__name__ for image in given if not isinstance(image, Volume)]
        if wrong or not isinstance(images, Mapping):
            raise InputError(
                f"set_image got {wrong[0] if wrong else 'a Volume'}, expected images by modality, such as "
                "{'PT': read_image('pet.nii.gz')} or {'PT': from_array(array, affine)}: alone, an array has no spacing"
            )
        self._channels = channels(images, self.preprocessing)
        self._volume = images[self.preprocessing.modalities[0]]
        self.reset()

    def reset(self) -> None:
        """Forgets all lesions and clicks; the scan stays."""
        self._lesions = {}
        self._predictions = {}
        self._ahead = {}

    @property
    def volume(self) -> Volume:
        """The scan whose grid everything is on; `InputError` before `set_image`."""
        if self._volume is None:
            raise InputError("no image yet: call set_image before clicking")
        return self._volume

    @property
    def modalities(self) -> tuple[str, ...]:
        """The images it must be given; the first one's grid is that of the case."""
        return self.preprocessing.modalities

    @property
    def lesions(self) -> tuple[int, ...]:
        """Numbers of the lesions there are, in the order of their first clicks or masks."""
        return tuple(self._lesions)

    def add_mask(
        self, mask: np.ndarray, lesion: int = 1, corner_vox: tuple[int, int, int] = (0, 0, 0)
    ) -> LesionPrediction:
        """Starts a lesion from a mask; clicks then correct it. Without a click the mask stays as it is.

        The decoder is given the mask in place of its own previous logits in the lesion's first round. The first
        click need not lie in the mask, nor be foreground: of the clicks first given, the first foreground one inside
        the mask goes before the others or, if there is none, a click on the mask's deepest point, away from the
        background ones. Nothing of the mask is kept that the clicked lesion's crops do not cover.

        Args:
            mask: (X, Y, Z), canonical; bool, or 0 for background. Of the scan's shape, or a part of it.
            lesion: its number, from 1 to 2147483647; what it was before is forgotten.
            corner_vox: where the mask's first voxel lies in the scan.

        Raises:
            InputError: no image, a mask that does not fit into the scan, or an empty one.
        """
        _check_number(lesion)
        corner, shape = np.array(corner_vox), self.volume.array.shape
        if mask.ndim != 3 or (corner < 0).any() or (corner + mask.shape > shape).any():
            raise InputError(
                f"lesion {lesion}: a mask of shape {mask.shape} at {corner_vox} does not fit the scan's {shape}"
            )
        box = bounding_box(mask != 0)
        if box is None:
            raise InputError(f"lesion {lesion}: the mask to start from is empty")
        start = StartMask.of(mask[box] != 0, box, corner_vox)
        return self._keep(lesion, _LesionState(start), self._site_decoder())

    def add_click(self, position_vox: Any, label: int = 1, lesion: int = 1) -> LesionPrediction:
        """One more click on a lesion, and what the lesion then looks like.

        A foreground click outside the lesion's crops opens a crop of its own. A background click there has nothing
        to take away and is left out with a warning in the log.

        Args:
            position_vox: (3,) canonical voxel coordinates.
            label: 1 foreground, 0 background. A lesion's first click must be foreground, unless it has a mask.
            lesion: its number, from 1 to 2147483647; a new number starts a new lesion.

        Raises:
            InputError: no image; a position outside of it; a first click in the background.
        """
        return self.add_clicks([position_vox], [label], lesion)

    def add_clicks(self, positions_vox: Iterable[Any], labels: Iterable[int], lesion: int = 1) -> LesionPrediction:
        """Several clicks on one lesion, as if given one after the other: one decoder pass each.

        Nothing changes when one of them is refused.

        Args:
            positions_vox: (N, 3), N at least 1.
            labels: (N,).

        Raises:
            InputError: as `add_click`; no clicks.
        """
        clicks = [
            PlacedClick.at(self._checked(position, label, lesion), int(label), self.volume.array.shape)
            for position, label in zip(positions_vox, labels, strict=True)
        ]
        _check_number(lesion)
        if not clicks:
            raise InputError(f"lesion {lesion}: no clicks given; at least one is needed")
        state = given = self._lesions.get(lesion, _LesionState())
        first_by_itself = False
        if not state.sites and state.start is not None:
            # The crop must be that of the mask: about a click far away from it, nothing of the mask would be left.
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
            for number, click in enumerate(clicks):
                sites = self._after_click(state, click, decoder)
                if sites is None:
                    _log.warning(
                        "lesion %d: the background click %s lies outside its crops, changes nothing and is left out",
                        lesion,
                        self._place(click.position_vox),
                    )
                    continue
                state = _LesionState(state.start, sites, (*state.clicks, click), before)
                # A click that the mask was given by itself is taken back together with the user's first.
                before = before if number == 0 and first_by_itself else state
            return self._predictions[lesion] if state is given else self._keep(lesion, state, decoder)

    def undo(self, lesion: int) -> LesionPrediction | None:
        """Takes back a lesion's newest click (the last of `LesionPrediction.clicks`), as if it had never been given.

        The encoder is not run. The click on a start mask's deepest point that the predictor gave by itself is taken
        back together with the user's first.

        Returns:
            The lesion without the click: the mask again where it started from one; None when it is gone.

        Raises:
            InputError: no such lesion, or a mask without clicks.
        """
        state = self._state(lesion)
        if not state.clicks:
            raise InputError(f"lesion {lesion}: it is a mask without clicks; `remove` takes it away altogether")
        if state.before is None:
            self.remove(lesion)
            return None
        with torch.inference_mode():
            return self._keep(lesion, state.before, self._site_decoder())

    def remove(self, lesion: int) -> None:
        """Forgets a lesion with all its clicks; `InputError` when there is none of this number."""
        self._state(lesion)
        del self._lesions[lesion], self._predictions[lesion]

    def encode_ahead(self, positions_vox: Iterable[Any]) -> None:
        """Encodes the crops of lesions that will first be clicked at these positions, several at once.

        Where that gains nothing, as on a CPU, nothing is done; the first clicks cost the same there.

        Raises:
            InputError: no image; a position outside of it.
        """
        if crops_at_once(self.model.device) == 1:
            return
        decoder = self._site_decoder()
        crops = [decoder.grids(self._checked(position, 1, 1)) for position in positions_vox]
        with torch.inference_mode(), evaluating(self.model), self._precision():
            embeddings = iter(encode_crops(self.model, self._channels, [grid for grids in crops for grid in grids]))
        self._ahead = {grids: [next(embeddings) for _ in grids] for grids in crops}

    def crop_holds(self, position_vox: Any, lesion: int) -> bool:
        """Whether a position lies in a crop of a lesion; never of a mask without clicks, which has none."""
        voxel = np.floor(np.asarray(position_vox, np.float64) + 0.5)
        return any(site.region.holds(voxel) for site in self._state(lesion).sites)

    def lesion(self, lesion: int) -> LesionPrediction:
        """The present prediction of a lesion; `InputError` when it was never clicked."""
        self._state(lesion)
        return self._predictions[lesion]

    def mask(self) -> np.ndarray:
        """(X, Y, Z) uint8, canonical: 1 in any lesion."""
        return union_mask(self._predictions.values(), self.volume.array.shape)

    def instances(self) -> np.ndarray:
        """(X, Y, Z) int32, canonical: the lesion's number, 0 background.

        Where lesions overlap, the one with the highest probability has the voxel (the lowest number, when
        equal).
        """
        return instance_map(self._predictions.values(), self.volume.array.shape)

    def probability(self) -> np.ndarray:
        """(X, Y, Z) float32, canonical: the highest probability of any lesion, 0 outside all crops."""
        return highest_probability(self._predictions.values(), self.volume.array.shape)

    def _state(self, lesion: int) -> _LesionState:
        if lesion not in self._lesions:
            known = ", ".join(map(str, self._lesions)) or "none"
            raise InputError(f"lesion {lesion} has no clicks yet; those that have: {known}")
        return self._lesions[lesion]

    def _site_decoder(self) -> SiteDecoder:
        return SiteDecoder(
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
        """The lesion's sites after one more click; None when it is in the background and in no crop."""
        clicks = (*state.clicks, click)
        if any(site.holds(click) for site in state.sites):
            return tuple(decoder.clicked(site, clicks) if site.holds(click) else site for site in state.sites)
        if click.label == 0:
            return None
        # The mask belongs to the first site; one that opens far away from it sees the lesion there as a new one.
        start = None if state.sites else state.start
        ahead = self._ahead.pop(decoder.grids(click.position_vox), None)
        return (*state.sites, decoder.opened(clicks, start, ahead))

    def _own_click(self, start: StartMask, clicks: list[PlacedClick]) -> PlacedClick:
        """On the deepest point of a mask whose voxels with background clicks count as outside."""
        mask = start.mask.copy()
        for click in clicks:
            if click.label == 0 and start.holds(click):
                mask[tuple(click.voxel - start.region.start)] = False
        deepest = deepest_point(mask, self.volume.spacing_mm)
        if deepest is None:
            raise InputError("every voxel of the mask has a background click; nothing remains to start from")
        position_vox = deepest[0] + np.array(start.region.start, np.float64)
        return PlacedClick.at(position_vox, 1, self.volume.array.shape)

    def _keep(self, lesion: int, state: _LesionState, decoder: SiteDecoder) -> LesionPrediction:
        """Makes this the lesion's present state, and the prediction of it."""
        if not state.sites:
            start = state.start
            assert start is not None
            logits = np.where(start.mask, START_INSIDE, START_OUTSIDE).astype(np.float32)
            prediction = LesionPrediction(lesion, start.region, logits, math.nan, ())
        else:
            region, logits, iou = decoder.lesion(state.sites, state.clicks)
            prediction = LesionPrediction(lesion, region, logits, iou, tuple(map(_as_told, state.clicks)))
        self._lesions[lesion], self._predictions[lesion] = state, prediction
        return prediction

    def _checked(self, position_vox: Any, label: int, lesion: int) -> np.ndarray:
        """The position, rounded, after making sure that it can be a click on this scan."""
        position = np.asarray(position_vox, np.float64)
        if position.shape != (3,) or not np.isfinite(position).all():
            raise InputError(f"lesion {lesion}: a click is three finite voxel coordinates, got {position_vox}")
        if label not in (0, 1):
            raise InputError(f"lesion {lesion}: a click's label is 1 (foreground) or 0, got {label!r}")
        position = np.round(position, _CLICK_DECIMALS) + 0.0  # no negative zero
        shape = self.volume.array.shape
        if (position < -0.5).any() or (position > np.asarray(shape) - 0.5).any():
            allowed = ", ".join(f"0..{n - 1}" for n in shape)
            raise InputError(
                f"lesion {lesion}: the click {self._place(position)} lies outside the image, whose voxels "
                f"run over ({allowed}) in RAS+ order; check that the clicks belong to this image"
            )
        return position

    def _place(self, position_vox: np.ndarray) -> str:
        vox = ", ".join(f"{c:g}" for c in position_vox)
        mm = ", ".join(f"{c:.1f}" for c in self.volume.to_mm(position_vox))
        return f"at RAS+ voxel ({vox}), RAS ({mm}) mm,"

    def _precision(self) -> torch.autocast:
        """Full precision, also where a caller trains in mixed precision."""
        return torch.autocast(self.model.device.type, enabled=False)


def _check_number(lesion: int) -> None:
    if not isinstance(lesion, int | np.integer) or not 1 <= lesion <= MOST_LESION_NUMBER:
        raise InputError(f"lesion {lesion!r}: lesions are numbered from 1 to {MOST_LESION_NUMBER}")


def _as_told(click: PlacedClick) -> tuple[tuple[float, float, float], int]:
    x, y, z = (float(c) for c in click.position_vox)
    return (x, y, z), click.label
