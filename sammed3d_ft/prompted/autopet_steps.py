"""The autoPET IV protocol with a promptable model: a first mask without clicks, then ten pairs of clicks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from prompts.autopet import CLICKS_PER_KIND, autopet_clicks
from prompts.proposals import proposals_from_pet
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume, grid_difference
from sammed3d_ft.prompted.simulated_user import Clickable, SegmentedLesion


def autopet_steps(
    model: Clickable, images: Mapping[str, Volume], label: Volume, pet: Volume, *, seed: int = 42
) -> Iterator[np.ndarray]:
    """The masks of the protocol's 11 steps, (X, Y, Z) bool, canonical; each is a new array.

    Step 0 has no user clicks: the model is clicked at every local PET maximum that `proposals_from_pet` finds with
    default settings. Each further step adds the next foreground and the next background click of the protocol
    (`prompts.autopet.autopet_clicks`), which are fixed in advance and do not depend on the masks. The protocol does not
    define to which lesion a click belongs. Here:

    - A foreground click inside the mask of a lesion corrects that lesion (the first one if masks overlap). Any other
      starts a new lesion, which also gets the background clicks so far.
    - A background click applies to every lesion whose region contains it. A lesion that only has a proposal's click is
      removed if a background click falls inside its mask.

    Args:
        model: the method; its image and lesions are replaced.
        images: the model's input images by modality.
        label: ground truth, used only to simulate the clicks.
        pet: PET in SUV on the label's grid, for proposals and background clicks.
        seed: seed of the clicks; the challenge uses 42.

    Raises:
        InputError: a PET on another grid than the label.
    """
    if difference := grid_difference(pet, label):
        raise InputError(f"the PET is on another grid than the label ({difference})")
    model.set_image(images)
    scan = _Scan(model, label.array.shape)
    for proposal in proposals_from_pet(pet.array, pet.spacing_mm):
        scan.begin(np.array(proposal.coords_vox, np.float64), confirmed=False)
    yield scan.mask()

    # In the file's own axis order, on which the protocol's random draws depend.
    stored_mask, stored_pet = (label.source.from_canonical(volume.array) for volume in (label, pet))
    clicks = autopet_clicks(stored_mask, stored_pet, seed=seed)
    positions = label.from_source_vox(clicks.coords_vox)
    foreground, background = positions[clicks.labels == 1], positions[clicks.labels == 0]
    for step in range(CLICKS_PER_KIND):
        if step < len(foreground):
            scan.click_foreground(foreground[step])
        if step < len(background):
            scan.click_background(background[step])
        yield scan.mask()


class _Scan:
    """The lesions of one scan during the protocol."""

    def __init__(self, model: Clickable, shape: tuple[int, ...]) -> None:
        self._model, self._shape = model, shape
        self._lesions: dict[int, SegmentedLesion] = {}
        self._proposed: set[int] = set()
        self._background: list[np.ndarray] = []
        self._count = 0

    def begin(self, position_vox: np.ndarray, confirmed: bool) -> None:
        self._count += 1
        number = self._count
        if not confirmed:
            self._proposed.add(number)
        self._lesions[number] = self._model.add_click(position_vox, 1, number)
        for earlier in self._background:
            self._take_away(number, earlier)

    def click_foreground(self, position_vox: np.ndarray) -> None:
        for number, lesion in self._lesions.items():
            if _inside(lesion, position_vox):
                self._proposed.discard(number)
                self._lesions[number] = self._model.add_click(position_vox, 1, number)
                return
        self.begin(position_vox, confirmed=True)

    def click_background(self, position_vox: np.ndarray) -> None:
        self._background.append(position_vox)
        for number, lesion in list(self._lesions.items()):
            if number in self._proposed and _inside(lesion, position_vox):
                del self._lesions[number]
                self._model.remove(number)
            else:
                self._take_away(number, position_vox)

    def mask(self) -> np.ndarray:
        mask = np.zeros(self._shape, bool)
        for lesion in self._lesions.values():
            mask[lesion.region.slices] |= lesion.mask
        return mask

    def _take_away(self, number: int, position_vox: np.ndarray) -> None:
        if _holds(self._lesions[number], position_vox):
            self._lesions[number] = self._model.add_click(position_vox, 0, number)


def _holds(lesion: SegmentedLesion, position_vox: np.ndarray) -> bool:
    return bool((position_vox >= lesion.region.start).all() and (position_vox < lesion.region.stop).all())


def _inside(lesion: SegmentedLesion, position_vox: np.ndarray) -> bool:
    if not _holds(lesion, position_vox):
        return False
    x, y, z = np.asarray(position_vox - lesion.region.start, np.int64)
    return bool(lesion.mask[x, y, z])
