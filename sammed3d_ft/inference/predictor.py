"""The predictor: clicks on a scan become lesions on the scan's own voxels, with the encoder run once each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from prompts.errors import InputError
from sammed3d_ft.data.crops import CropGrid, Region, covered_region, crop_grid, logits_on_region
from sammed3d_ft.data.grids import Volume
from sammed3d_ft.data.preprocessing import Preprocessing, channels, prepare_crop
from sammed3d_ft.inference.pretrained import open_pretrained

# Clicks in mm come back to voxels through an affine that a file stores in float32. Rounded to this many
# decimals of a voxel, one scan stored in two axis orders gives the same clicks, bit for bit.
_CLICK_DECIMALS = 3
# The crop at the model's spacing, one of twice and one of four times: 0.77 m for a crop of 192 mm.
_MOST_VIEWS = 3
_log = logging.getLogger(__name__)


class PromptableModel(Protocol):
    """All that is asked of a network; `SAMMed3D` has it, and so may a stand-in."""

    @property
    def image_size(self) -> int: ...
    @property
    def in_channels(self) -> int: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def image_encoder(self) -> Callable[[Tensor], Tensor]: ...
    def decode(
        self, embedding: Tensor, coords_vox: Tensor, labels: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True, eq=False)
class LesionPrediction:
    """One lesion as its last click left it.

    Attributes:
        lesion: its number, from 1.
        region: the voxels of the canonical volume that its crops cover; the lesion is known only there.
        logits: ``region.shape`` float32, on the volume's own voxels; the lesion is where they are > 0.
        predicted_iou: the network's own estimate of its overlap with the true lesion.
        clicks: position in canonical voxels and label (1 foreground, 0 background) of every click used.
    """

    lesion: int
    region: Region
    logits: np.ndarray
    predicted_iou: float
    clicks: tuple[tuple[tuple[float, float, float], int], ...]

    @property
    def mask(self) -> np.ndarray:
        """``region.shape`` bool."""
        return self.logits > 0


@dataclass(eq=False)
class _View:
    """A lesion seen in one crop, and what is kept of it between clicks."""

    grid: CropGrid
    region: Region
    embedding: Tensor  # (1, D, g, g, g)
    low: Tensor | None = None  # (1, 1, L, L, L) logits of the last round, fed back in the next
    predicted_iou: float = 0.0


@dataclass(eq=False)
class _LesionState:
    """A lesion's clicks, and its views: the crop at the model's spacing, then coarser ones while it is followed."""

    views: list[_View]
    coords_vox: list[np.ndarray] = field(default_factory=list)  # canonical voxels, (3,) each
    labels: list[int] = field(default_factory=list)
    prediction: LesionPrediction | None = None


class Predictor:
    """Interactive segmentation of the lesions of one scan at a time.

    Each lesion is seen in a crop that is centred on its first click, as in training. The first click costs
    one pass of the encoder; every click costs one of the decoder, which is given all clicks so far and its
    own previous logits.

    A lesion that reaches its crop's border is followed: it is seen a second time in a crop of twice the spacing
    about the same centre, and if need be a third time, of four times. Where crops overlap the finer one holds,
    and gives way softly to the coarser one towards its border.

    All positions are canonical voxel coordinates (``Volume.to_vox`` gives them for world mm): integers are
    voxel centres, axes x, y, z point to Right, Anterior, Superior.

    Args:
        model: `SAMMed3D`, or anything that acts like it.
        preprocessing: what the model was trained with.
        device: where to move the model; None leaves it where it is.
        accumulate: give the decoder all clicks so far; False gives it the newest alone, for models that
            were trained so.
        follow: look further where a lesion reaches its crop's border.

    Raises:
        InputError: the model's input channels and the modalities differ in number.
    """

    def __init__(
        self,
        model: PromptableModel,
        preprocessing: Preprocessing,
        device: str | torch.device | None = None,
        accumulate: bool = True,
        follow: bool = True,
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
        self.follow = follow
        self._volume: Volume | None = None
        self._channels = torch.empty(0)
        self._lesions: dict[int, _LesionState] = {}

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | torch.device | None = None,
        base: str | Path | None = None,
    ) -> Predictor:
        """The predictor of a checkpoint.

        Args:
            path: an export (its metadata say how to preprocess), a published checkpoint (PT at the spacing of
                its variant), or the folder of a LoRA adapter.
            device: None takes a CUDA device if there is one, else the CPU.
            base: the weights an adapter was trained on.

        Raises:
            InputError: see `open_pretrained`; a device that is not there.
        """
        chosen = _device(device)  # before the weights are read, which takes longer
        found = open_pretrained(path, base)
        return cls(found.model, found.preprocessing, chosen, found.accumulate)

    def set_image(self, images: Mapping[str, Volume]) -> None:
        """Takes the scan to segment, by modality (PT in SUV, CT in HU); forgets all lesions.

        Raises:
            InputError: a modality the model needs is missing.
        """
        self._channels = channels(images, self.preprocessing)
        self._volume = images[self.preprocessing.modalities[0]]
        self.reset()

    def reset(self) -> None:
        """Forgets all lesions and clicks; the scan stays."""
        self._lesions = {}

    @property
    def volume(self) -> Volume:
        """The scan whose grid everything is on; `InputError` before `set_image`."""
        if self._volume is None:
            raise InputError("no image yet: call set_image before clicking")
        return self._volume

    @property
    def lesions(self) -> tuple[int, ...]:
        """Numbers of the lesions that were clicked, in the order of their first clicks."""
        return tuple(self._lesions)

    def add_click(self, position_vox: Any, label: int = 1, lesion: int = 1) -> LesionPrediction:
        """One more click on a lesion, and what the lesion then looks like.

        Args:
            position_vox: (3,) canonical voxel coordinates.
            label: 1 foreground, 0 background. A lesion's first click must be foreground.
            lesion: its number, from 1; a new number starts a new lesion.

        Raises:
            InputError: no image; a position outside of it; a first click in the background; a foreground
                click outside the lesion's crop. A background click outside the crop has nothing to take
                away and is left out with a warning in the log.
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
            (self._checked(position, label, lesion), int(label))
            for position, label in zip(positions_vox, labels, strict=True)
        ]
        if lesion < 1:
            raise InputError(f"lesion {lesion}: lesions are numbered from 1")
        if not clicks:
            raise InputError(f"lesion {lesion}: no clicks given; at least one is needed")
        state = self._lesions.get(lesion)
        if state is None and clicks[0][1] != 1:
            raise InputError(
                f"lesion {lesion}: its first click, {self._place(clicks[0][0])}, is background; "
                "start with a foreground click inside the lesion"
            )
        grid = state.views[-1].grid if state is not None else self._grid(clicks[0][0])
        used = []
        for position, label in clicks:
            if _holds(grid, position):
                used.append((position, label))
                continue
            reach_mm = self.model.image_size * abs(grid.step_vox[0]) * float(self.volume.spacing_mm[0])
            what = f"lesion {lesion}: the click {self._place(position)} lies outside its {reach_mm:g} mm crop"
            if label == 1:
                raise InputError(f"{what} around its first click; give it a lesion number of its own")
            _log.warning("%s; a background click there changes nothing and is left out", what)
        with torch.inference_mode(), _evaluating(self.model), self._precision():
            if state is None:
                state = _LesionState([self._view(grid)])
            for position, label in used:
                self._round(state, position, label, lesion)
        self._lesions[lesion] = state
        assert state.prediction is not None
        return state.prediction

    def crop_holds(self, position_vox: Any, lesion: int) -> bool:
        """Whether a position lies in the crop of a lesion that has been clicked."""
        return _holds(self._state(lesion).views[-1].grid, np.asarray(position_vox, np.float64))

    def lesion(self, lesion: int) -> LesionPrediction:
        """The present prediction of a lesion; `InputError` when it was never clicked."""
        prediction = self._state(lesion).prediction
        assert prediction is not None
        return prediction

    def mask(self) -> np.ndarray:
        """(X, Y, Z) uint8, canonical: 1 in any lesion."""
        mask = np.zeros(self.volume.array.shape, np.uint8)
        for number in self._lesions:
            found = self.lesion(number)
            mask[found.region.slices] |= found.mask.view(np.uint8)
        return mask

    def instances(self) -> np.ndarray:
        """(X, Y, Z) int32, canonical: the lesion's number, 0 background.

        Where lesions overlap, the one with the highest probability has the voxel (the lowest number, when
        equal).
        """
        instances = np.zeros(self.volume.array.shape, np.int32)
        highest = np.zeros(instances.shape, np.float32)
        for number in sorted(self._lesions):
            found = self.lesion(number)
            won = found.logits > highest[found.region.slices]
            instances[found.region.slices][won] = number
            highest[found.region.slices][won] = found.logits[won]
        return instances

    def probability(self) -> np.ndarray:
        """(X, Y, Z) float32, canonical: the highest probability of any lesion, 0 outside all crops."""
        probability = np.zeros(self.volume.array.shape, np.float32)
        for number in self._lesions:
            found = self.lesion(number)
            own = torch.sigmoid(torch.from_numpy(found.logits)).numpy()
            view = probability[found.region.slices]
            np.maximum(view, own, out=view)
        return probability

    def _state(self, lesion: int) -> _LesionState:
        if lesion not in self._lesions:
            known = ", ".join(map(str, self._lesions)) or "none"
            raise InputError(f"lesion {lesion} has no clicks yet; those with clicks: {known}")
        return self._lesions[lesion]

    def _grid(self, centre_vox: np.ndarray, coarser: int = 1) -> CropGrid:
        spacing_mm = coarser * self.preprocessing.spacing_mm
        return crop_grid(centre_vox, self.volume.spacing_mm, spacing_mm, self.model.image_size)

    def _view(self, grid: CropGrid) -> _View:
        """A crop, encoded."""
        # On the CPU, so that the crop is the same whatever the device.
        crop = prepare_crop(self._channels, grid)
        shape = self.volume.array.shape
        region = covered_region(grid, (shape[0], shape[1], shape[2]))
        return _View(grid, region, self.model.image_encoder(crop[None].to(self.model.device)))

    def _round(self, state: _LesionState, position_vox: np.ndarray, label: int, lesion: int) -> None:
        """One pass of the decoder with one more click, in every view of the lesion."""
        state.coords_vox.append(position_vox)
        state.labels.append(label)
        for view in state.views:
            self._decode(view, state, len(state.labels))
        views = [(view.region, self._logits(view)) for view in state.views]
        while self.follow and len(state.views) < _MOST_VIEWS and self._reaches_border(*views[-1]):
            # About the first crop's centre, which the first click is; the clicks so far, one after the other.
            view = self._view(self._grid(np.array(state.views[0].grid.centre_vox), 2 ** len(state.views)))
            for count in range(1, len(state.labels) + 1):
                self._decode(view, state, count)
            state.views.append(view)
            views.append((view.region, self._logits(view)))
        logits = views[-1][1]
        for view, (region, finer) in zip(state.views[-2::-1], views[-2::-1], strict=True):
            inner = region.within(views[-1][0])
            weight = _inner_weight(view.grid, region)
            logits[inner] += weight * (finer - logits[inner])
        clicks = tuple(
            ((float(x), float(y), float(z)), given)
            for (x, y, z), given in zip(state.coords_vox, state.labels, strict=True)
        )
        iou = state.views[-1].predicted_iou
        state.prediction = LesionPrediction(lesion, views[-1][0], logits, iou, clicks)

    def _decode(self, view: _View, state: _LesionState, count: int) -> None:
        """One pass of the decoder in one view, with the first ``count`` clicks as far as they lie in it."""
        held = [number for number in range(count) if _holds(view.grid, state.coords_vox[number])]
        if not held or held[-1] != count - 1:
            return  # the newest click lies beyond: nothing is new here
        held = held if self.accumulate else held[-1:]
        device = self.model.device
        coords = view.grid.to_crop(np.stack([state.coords_vox[number] for number in held]))
        view.low, predicted_iou = self.model.decode(
            view.embedding,
            torch.tensor(coords, dtype=torch.float32, device=device)[None],
            torch.tensor([state.labels[number] for number in held], device=device)[None],
            view.low,
        )
        view.predicted_iou = float(predicted_iou[0, 0])

    def _logits(self, view: _View) -> np.ndarray:
        assert view.low is not None
        return logits_on_region(view.low[0, 0].cpu(), view.grid, view.region).contiguous().numpy()

    def _reaches_border(self, region: Region, logits: np.ndarray) -> bool:
        """Whether a lesion touches a face of its crop beyond which the scan goes on."""
        for axis, size in enumerate(self.volume.array.shape):
            within = region.slices[axis]
            for inside_scan, face in ((within.start > 0, 0), (within.stop < size, -1)):
                if inside_scan and (np.take(logits, face, axis) > 0).any():
                    return True
        return False

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


def _inner_weight(grid: CropGrid, region: Region) -> np.ndarray:
    """``region.shape`` float32: 1 inside a crop, falling to 0 over its outermost eighth towards each face."""
    corner = grid.to_crop(np.array(region.start))
    weight = np.ones(region.shape, np.float32)
    for axis, count in enumerate(region.shape):
        place = corner[axis] + np.arange(count) / grid.step_vox[axis]
        to_face = np.minimum(place + 0.5, grid.size - 0.5 - place)
        ramp = np.clip(to_face / (grid.size / 8), 0, 1).astype(np.float32)
        weight *= ramp.reshape([-1 if other == axis else 1 for other in range(3)])
    return weight


def _holds(grid: CropGrid, position_vox: np.ndarray) -> bool:
    """Whether a position lies within the crop's outer faces."""
    position = grid.to_crop(position_vox)
    return bool((position >= -0.5).all() and (position <= grid.size - 0.5).all())


@contextmanager
def _evaluating(model: PromptableModel) -> Iterator[None]:
    """Evaluation mode for a while: a predictor may share its model with a training loop."""
    modules = model.modules() if isinstance(model, nn.Module) else ()
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(f"device {str(device)!r} cannot be used ({reason}); try cpu, cuda or cuda:1") from error
    return chosen
