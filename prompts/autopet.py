"""The click protocol of the autoPET IV challenge: 10 tumour and 10 background clicks per scan."""

from __future__ import annotations

from itertools import cycle, islice

import cc3d
import numpy as np
from scipy import ndimage

from prompts.clicks import ScanClicks
from prompts.errors import InputError
from prompts.negatives import HOT_PERCENTILE

CLICKS_PER_KIND = 10


def autopet_clicks(mask: np.ndarray, pet: np.ndarray | None, *, seed: int = 42) -> ScanClicks:
    """Simulate the clicks of autoPET IV for one scan: tumour clicks first, then background clicks.

    The protocol, as published with the challenge (lab-midas/autoPETCTIV, `clicks/simulate_clicks.py`; task 1 of
    autopet-iv.grand-challenge.org gives one click of each kind per step, 0 to 10):

    1. Find the 26-connected components of the label and draw up to 10 of them at random, without replacement.
       Clicks follow the order of the draw, not the component size.
    2. Click the deepest voxel of each drawn component, with distances counted in voxels; the first voxel wins a
       tie.
    3. If there are fewer than 10 components, go through them again in the same order and click a random voxel
       of each component's surface (smallest distance) until there are 10 clicks.
    4. Do the same for background, on the components of the PET above the 99.75th percentile of its values
       outside the label; there, the additional clicks (step 3) may fall on any voxel of the component.

    With the challenge's seed, 42, the tumour clicks equal the published ones voxel for voxel, provided that the
    array is in the file's own axis order (not reoriented), because that order determines the component numbers.
    One difference: for a background component one voxel thin, step 3 of the published script may click anywhere
    in the volume; here the click stays inside the component.

    Args:
        mask: (X, Y, Z) in the file's own axis order; nonzero is tumour.
        pet: (X, Y, Z), the PET on the same grid.
        seed: 0 to 2^32 - 1.

    Returns:
        20 clicks without lesion numbers. An empty mask yields background clicks only; a PET with no voxel above
        the percentile yields no background clicks.

    Raises:
        InputError: no PET, a PET of another shape, a seed out of range.
    """
    if pet is None:
        raise InputError("the autopet protocol places background clicks by PET uptake: provide the PET")
    if pet.shape != mask.shape:
        raise InputError(f"the PET has shape {pet.shape} and the mask {mask.shape}; they must be on the same grid")
    if not 0 <= seed < 1 << 32:
        raise InputError(f"the seed of the autopet protocol must be 0 to 4294967295, got {seed}")
    # The legacy generator, because the published clicks were drawn with it.
    random = np.random.RandomState(seed)
    tumour = np.asarray(mask) != 0
    uptake = np.asarray(pet, np.float64)
    tumour_vox = _clicks_in_components(tumour, random, surface=True)
    hot = np.zeros_like(tumour)
    if not tumour.all():
        hot = ~tumour & (uptake > np.percentile(uptake[~tumour], HOT_PERCENTILE))
    background_vox = _clicks_in_components(hot, random, surface=False)
    return ScanClicks(
        coords_vox=np.array(tumour_vox + background_vox, np.int64).reshape(-1, 3),
        labels=np.repeat([1, 0], [len(tumour_vox), len(background_vox)]),
        lesions=(None,) * (len(tumour_vox) + len(background_vox)),
    )


def _clicks_in_components(region: np.ndarray, random: np.random.RandomState, *, surface: bool) -> list[np.ndarray]:
    if not region.any():
        return []
    # Column-major, as nibabel reads files: component numbers, and therefore the draw, depend on it.
    components, n = cc3d.connected_components(np.asfortranarray(region), connectivity=26, return_N=True)
    drawn = random.choice(np.arange(1, n + 1), size=min(CLICKS_PER_KIND, n), replace=False)
    boxes = ndimage.find_objects(components)
    depths = [_depth_vox(components, number, boxes[number - 1]) for number in drawn]
    clicks = [np.array(np.unravel_index(depth.argmax(), depth.shape)) + start for depth, start in depths]
    for depth, start in islice(cycle(depths), CLICKS_PER_KIND - len(clicks)):
        candidates = np.argwhere(depth == depth[depth > 0].min() if surface else depth > 0)
        clicks.append(candidates[random.choice(len(candidates))] + start)
    return clicks


def _depth_vox(components: np.ndarray, number: int, box: tuple[slice, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Depth in voxels inside one component, computed on its bounding box plus one voxel, and that box's start.

    Unlike `depth_mm`, space beyond the volume does not count as outside, as in the published protocol.
    """
    widened = tuple(slice(max(side.start - 1, 0), side.stop + 1) for side in box)
    start = np.array([side.start for side in widened])
    component = np.ascontiguousarray(components[widened] == number)
    # A component that fills the whole volume has no outside, so its depth is undefined.
    depth = np.ones(component.shape) if component.all() else ndimage.distance_transform_edt(component)
    return depth, start
