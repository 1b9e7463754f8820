"""Sites: a lesion in the crops about one of its clicks, decoded click by click, and several of them as one lesion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sammed3d_ft.data.crops import CropGrid, Region, bounding_region, crop_grid
from sammed3d_ft.data.grids import Volume
from sammed3d_ft.inference.obedience import obeyed
from sammed3d_ft.inference.views import (
    Decoded,
    PlacedClick,
    PromptableModel,
    StartMask,
    View,
    merged_logits,
    reaches_beyond,
    shares,
)

# The crop at the model's spacing, one of twice and one of four times: 0.77 m for a crop of 192 mm.
_COARSER = 2
# Where no crop of a lesion reaches: a probability of 0 in float32, and finite, so that sums of logits stay numbers.
NOWHERE = -100.0
_AS_IT_LIES = ((False, False, False),)
_MIRRORINGS = tuple((x, y, z) for x in (False, True) for y in (False, True) for z in (False, True))


@dataclass(frozen=True, eq=False)
class Site:
    """A lesion in the crops about one of its clicks, after some clicks; the views are shared by later states.

    Attributes:
        opened_by: which of the lesion's clicks it is centred on.
        views: finest first.
        decoded: what the newest pass of the decoder gave in each.
        start: the mask that the lesion started from, in its first site.
    """

    opened_by: int
    views: tuple[View, ...]
    decoded: tuple[Decoded, ...]
    start: StartMask | None = None

    @property
    def region(self) -> Region:
        return self.views[-1].region

    def holds(self, click: PlacedClick) -> bool:
        """Whether the click's voxel lies in its largest crop."""
        return self.views[-1].holds(click)


class SiteDecoder:
    """Opens sites on one scan, gives them clicks, and makes one lesion of them.

    It keeps the logits of each site's newest state, which may be large: made anew for each call of the predictor.

    Args:
        model: the network.
        channels: (C, X, Y, Z) of the scan, see `data.preprocessing.channels`.
        volume: the scan whose grid everything is on, as it was before clipping.
        crop_spacing_mm: of the crop that a site begins with.
        accumulate: give the decoder all clicks so far, or the newest alone.
        follow: look further where a lesion reaches its crop's border.
        flips: see each crop in its eight mirrorings.
        obey: see `obedience.obeyed`.
    """

    def __init__(
        self,
        model: PromptableModel,
        channels: Tensor,
        volume: Volume,
        crop_spacing_mm: float,
        *,
        accumulate: bool,
        follow: bool,
        flips: bool,
        obey: bool,
    ) -> None:
        self.model, self.channels, self.volume, self.crop_spacing_mm = model, channels, volume, crop_spacing_mm
        self.accumulate, self.follow, self.obey = accumulate, follow, obey
        self.mirrorings = _MIRRORINGS if flips else _AS_IT_LIES
        self._view_logits: dict[Decoded, np.ndarray] = {}
        self._site_logits: dict[Site, np.ndarray] = {}
        self._site_obeyed: dict[Site, np.ndarray] = {}

    def grids(self, centre_vox: np.ndarray, scale: float = 1.0) -> tuple[CropGrid, ...]:
        """The crop about a position at ``scale`` times the spacing, in each of its mirrorings."""
        spacing_mm = scale * self.crop_spacing_mm
        return tuple(
            crop_grid(centre_vox, self.volume.spacing_mm, spacing_mm, self.model.image_size, flips=flips)
            for flips in self.mirrorings
        )

    def opened(
        self,
        clicks: Sequence[PlacedClick],
        start: StartMask | None = None,
        embeddings: Sequence[Tensor] | None = None,
    ) -> Site:
        """A site about the newest click, which is given that click and the earlier ones that its crop holds.

        Args:
            clicks: all of the lesion so far.
            start: what the decoder is given as the lesion's mask before its first click.
            embeddings: of the crops, where they were encoded before.
        """
        opened_by = len(clicks) - 1
        view = View(self.model, self.channels, self.grids(clicks[-1].position_vox), start, embeddings)
        site = Site(opened_by, (view,), (self._from_the_first(view, opened_by, clicks),), start)
        return self._followed(site, clicks)

    def clicked(self, site: Site, clicks: Sequence[PlacedClick]) -> Site:
        """The site after the newest of a lesion's clicks: a pass of the decoder in every view that holds it."""
        for last in site.decoded:
            self._view_logits.pop(last, None)
        self._site_logits.pop(site, None)
        self._site_obeyed.pop(site, None)
        ordered = _own_first(clicks, site.opened_by)
        decoded = tuple(
            view.decode(last, ordered, self.accumulate) for view, last in zip(site.views, site.decoded, strict=True)
        )
        return self._followed(Site(site.opened_by, site.views, decoded, site.start), clicks)

    def lesion(self, sites: Sequence[Site], clicks: Sequence[PlacedClick]) -> tuple[Region, np.ndarray, float]:
        """The lesion that sites show after all of its clicks: its region, logits (``region.shape``), predicted IoU."""
        each = [self._logits(site) for site in sites]
        region, logits = lesion_logits(sites, each)
        shown = self._obeyed(sites[0], clicks) if len(sites) == 1 else self._obeying(region, logits, clicks)
        return region, shown, predicted_iou(sites, each, region, shown > 0)

    def _logits(self, site: Site) -> np.ndarray:
        """``site.region.shape``, merged from its views."""
        if site not in self._site_logits:
            each = []
            for view, decoded in zip(site.views, site.decoded, strict=True):
                if decoded not in self._view_logits:
                    self._view_logits[decoded] = view.logits(decoded)
                each.append(self._view_logits[decoded])
            self._site_logits[site] = merged_logits(site.views, each)
        return self._site_logits[site]

    def _obeyed(self, site: Site, clicks: Sequence[PlacedClick]) -> np.ndarray:
        """`_logits` that obey the clicks in the site; there must have been no further ones since it was made."""
        if site not in self._site_obeyed:
            held = [click for click in clicks if site.holds(click)]
            self._site_obeyed[site] = self._obeying(site.region, self._logits(site), held)
        return self._site_obeyed[site]

    def _obeying(self, region: Region, logits: np.ndarray, clicks: Sequence[PlacedClick]) -> np.ndarray:
        if not self.obey:
            return logits
        return obeyed(logits, region, clicks, self.volume.array, self.volume.spacing_mm)

    def _followed(self, site: Site, clicks: Sequence[PlacedClick]) -> Site:
        """With coarser views, as long as the lesion leaves the coarsest."""
        while self.follow and len(site.views) <= _COARSER and self._leaves(site, clicks):
            centre_vox = np.array(site.views[0].grids[0].centre_vox)
            view = View(self.model, self.channels, self.grids(centre_vox, 2.0 ** len(site.views)), site.start)
            decoded = self._from_the_first(view, site.opened_by, clicks)
            site = Site(site.opened_by, (*site.views, view), (*site.decoded, decoded), site.start)
        return site

    def _leaves(self, site: Site, clicks: Sequence[PlacedClick]) -> bool:
        """Whether the lesion, or the mask it started from, goes on beyond the coarsest view."""
        if site.start is not None and not site.region.encloses(site.start.region):
            return True
        return reaches_beyond(site.region, self._obeyed(site, clicks) > 0, self.volume.array.shape)

    def _from_the_first(self, view: View, opened_by: int, clicks: Sequence[PlacedClick]) -> Decoded:
        """A new view after all clicks so far, one after the other."""
        ordered, decoded = _own_first(clicks, opened_by), view.unclicked
        for count in range(1, len(ordered) + 1):
            decoded = view.decode(decoded, ordered[:count], self.accumulate)
        return decoded


def _own_first(clicks: Sequence[PlacedClick], opened_by: int) -> list[PlacedClick]:
    """In training a crop's first click is the one that it is centred on."""
    return [clicks[opened_by], *clicks[:opened_by], *clicks[opened_by + 1 :]]


def lesion_logits(sites: Sequence[Site], logits: Sequence[np.ndarray]) -> tuple[Region, np.ndarray]:
    """The highest of the sites' logits on the smallest region that holds all of them; `NOWHERE` between them."""
    if len(sites) == 1:
        return sites[0].region, logits[0]
    region = bounding_region([site.region for site in sites])
    highest = np.full(region.shape, NOWHERE, np.float32)
    for site, own in zip(sites, logits, strict=True):
        part = highest[site.region.within(region)]
        np.maximum(part, own, out=part)
    return region, highest


def predicted_iou(sites: Sequence[Site], logits: Sequence[np.ndarray], region: Region, mask: np.ndarray) -> float:
    """Of the lesion: the mean over its voxels of what the views that decide them predict; of all views, if empty.

    Args:
        sites: of the lesion.
        logits: of each site; the site with the highest has a voxel, the first one of equals.
        region: of the lesion.
        mask: ``region.shape`` bool.
    """
    values = [decoded.predicted_iou for site in sites for decoded in site.decoded]
    if len(sites) == 1:
        weights = shares(sites[0].views, mask)
    else:
        highest = lesion_logits(sites, logits)[1]
        left, each = mask.copy(), []
        for site, own in zip(sites, logits, strict=True):
            inner = site.region.within(region)
            its = left[inner] & (own == highest[inner])
            left[inner] &= ~its
            each.append(shares(site.views, its))
        weights = np.concatenate(each)
    if not weights.any():
        return float(np.mean(values))
    return float(np.average(values, weights=weights))
