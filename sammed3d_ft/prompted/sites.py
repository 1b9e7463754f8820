"""Sites: the crops around one click of a lesion, decoded click by click, and merged into one lesion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from prompts.boxes import bounding_box
from sammed3d_ft.images.crops import CropGrid, Region, bounding_region, closer_spacing, crop_grid
from sammed3d_ft.images.grids import Volume
from sammed3d_ft.prompted.lesion_crops import (
    Decoded,
    LesionCrop,
    PlacedClick,
    PromptableModel,
    StartMask,
    merged_logits,
    reaches_beyond,
    shares,
)
from sammed3d_ft.prompted.obedience import obeyed, with_a_click

_COARSEST = 4.0  # times the model's spacing: a crop of 192 mm becomes one of 0.77 m
# Logit outside all crops of a lesion: a probability of 0 in float32, but finite, so that sums of logits are finite.
NOWHERE = -100.0
_AS_IT_LIES = ((False, False, False),)
_MIRRORINGS = tuple((x, y, z) for x in (False, True) for y in (False, True) for z in (False, True))


@dataclass(frozen=True, eq=False)
class Site:
    """A lesion in the crops around one of its clicks, after some clicks. Immutable; later states share the crops.

    Attributes:
        opened_by: index of the click on which the site is centred.
        crops: the crops, finest first.
        scales: spacing of each crop, as a multiple of the model's.
        decoded: newest decoder output of each crop.
        start: the lesion's start mask; only in its first site.
    """

    opened_by: int
    crops: tuple[LesionCrop, ...]
    scales: tuple[float, ...]
    decoded: tuple[Decoded, ...]
    start: StartMask | None = None

    @property
    def region(self) -> Region:
        return self.crops[-1].region

    def holds(self, click: PlacedClick) -> bool:
        """Whether the click's voxel lies in the site's largest crop."""
        return self.crops[-1].holds(click)


class SiteDecoder:
    """Opens sites on one scan, applies clicks to them, and merges them into one lesion.

    It caches the logits of each site's newest state, which can be large; the predictor creates one for each call.

    Args:
        model: the network.
        channels: (C, X, Y, Z) of the scan, see `preprocessing.channels`.
        volume: the scan before clipping, whose grid the results have.
        crop_spacing_mm: spacing of a site's first crop.
        accumulate: pass all clicks so far to the decoder, or only the newest.
        zoom: use auto-zoom, see `Predictor`.
        flips: average over the eight mirrored versions of each crop.
        obey: enforce the clicks, see `obedience.obeyed`.
    """

    def __init__(
        self,
        model: PromptableModel,
        channels: Tensor,
        volume: Volume,
        crop_spacing_mm: float,
        *,
        accumulate: bool,
        zoom: bool,
        flips: bool,
        obey: bool,
    ) -> None:
        self.model, self.channels, self.volume, self.crop_spacing_mm = model, channels, volume, crop_spacing_mm
        self.accumulate, self.zoom, self.obey = accumulate, zoom, obey
        self.mirrorings = _MIRRORINGS if flips else _AS_IT_LIES
        self._crop_logits: dict[Decoded, np.ndarray] = {}
        self._site_logits: dict[Site, np.ndarray] = {}
        self._site_obeyed: dict[Site, np.ndarray] = {}

    def grids(self, centre_vox: np.ndarray, scale: float = 1.0) -> tuple[CropGrid, ...]:
        """The crop centred on a position at ``scale`` times the spacing, in each mirrored version."""
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
        """A new site around the newest click, decoded with that click and the earlier ones inside its crop.

        Args:
            clicks: all clicks of the lesion so far.
            start: mask passed to the decoder as the previous mask of the first click.
            embeddings: embeddings of the crops, if already computed.
        """
        opened_by = len(clicks) - 1
        crop = LesionCrop(self.model, self.channels, self.grids(clicks[-1].position_vox), start, embeddings)
        site = Site(opened_by, (crop,), (1.0,), (self._from_the_first(crop, opened_by, clicks),), start)
        return self._zoomed_out(self._zoomed_in(site, clicks), clicks)

    def clicked(self, site: Site, clicks: Sequence[PlacedClick]) -> Site:
        """The site after a lesion's newest click: one decoder pass in every crop that contains it."""
        self._forget(site)
        ordered = _own_first(clicks, site.opened_by)
        decoded = tuple(
            crop.decode(last, ordered, self.accumulate) for crop, last in zip(site.crops, site.decoded, strict=True)
        )
        return self._zoomed_out(replace(site, decoded=decoded), clicks)

    def lesion(self, sites: Sequence[Site], clicks: Sequence[PlacedClick]) -> tuple[Region, np.ndarray, float]:
        """The lesion after all its clicks, merged from its sites: region, logits (``region.shape``), predicted IoU."""
        each = [self._logits(site) for site in sites]
        region, logits = lesion_logits(sites, each)
        shown = self._obeyed(sites[0], clicks) if len(sites) == 1 else self._obeying(region, logits, clicks)
        return region, shown, predicted_iou(sites, each, region, shown > 0)

    def _logits(self, site: Site) -> np.ndarray:
        """``site.region.shape``, merged from its crops."""
        if site not in self._site_logits:
            each = []
            for crop, decoded in zip(site.crops, site.decoded, strict=True):
                if decoded not in self._crop_logits:
                    self._crop_logits[decoded] = crop.logits(decoded)
                each.append(self._crop_logits[decoded])
            self._site_logits[site] = merged_logits(site.crops, each)
        return self._site_logits[site]

    def _obeyed(self, site: Site, clicks: Sequence[PlacedClick]) -> np.ndarray:
        """`_logits` with the clicks inside the site enforced; valid only if the site has had no click since."""
        if site not in self._site_obeyed:
            held = [click for click in clicks if site.holds(click)]
            self._site_obeyed[site] = self._obeying(site.region, self._logits(site), held)
        return self._site_obeyed[site]

    def _obeying(self, region: Region, logits: np.ndarray, clicks: Sequence[PlacedClick]) -> np.ndarray:
        if not self.obey:
            return logits
        return obeyed(logits, region, clicks, self.volume.array, self.volume.spacing_mm)

    def _forget(self, site: Site) -> None:
        for decoded in site.decoded:
            self._crop_logits.pop(decoded, None)
        self._site_logits.pop(site, None)
        self._site_obeyed.pop(site, None)

    def _zoomed_in(self, site: Site, clicks: Sequence[PlacedClick]) -> Site:
        """Add a finer crop if the lesion is small in the first one.

        Done only when a site opens, because a finer crop replaces the prediction inside it and would later undo the
        user's corrections. A coarser crop (`_zoomed_out`) adds only voxels outside the others, so it can come later.
        """
        if not self.zoom:
            return site
        lesion = site.start or self._about(clicks[site.opened_by], site, clicks)
        if lesion is None:
            return site
        longest_mm = float((np.array(lesion.region.shape) * self.volume.spacing_mm).max())
        edge_mm = self.model.image_size * self.crop_spacing_mm
        scale = closer_spacing(longest_mm, edge_mm)
        if scale == 1:
            return site
        # The finer crop starts from the lesion as predicted in the coarser one. Starting from nothing is worse at one
        # click (Dice of small phantom lesions 0.65 against 0.71) and equal from three clicks on.
        return self._with_crop(site, scale, clicks, lesion)

    def _zoomed_out(self, site: Site, clicks: Sequence[PlacedClick]) -> Site:
        """Add coarser crops while the lesion extends beyond the coarsest one."""
        while self.zoom and site.scales[-1] < _COARSEST and self._leaves(site, clicks):
            site = self._with_crop(site, 2 * site.scales[-1], clicks, site.start)
        return site

    def _with_crop(self, site: Site, scale: float, clicks: Sequence[PlacedClick], start: StartMask | None) -> Site:
        """Add a crop with the same centre, finer or coarser than all others, decoded with all clicks so far."""
        centre_vox = np.array(site.crops[0].grids[0].centre_vox)
        crop = LesionCrop(self.model, self.channels, self.grids(centre_vox, scale), start)
        decoded = self._from_the_first(crop, site.opened_by, clicks)
        self._site_logits.pop(site, None)
        self._site_obeyed.pop(site, None)
        at = 0 if scale < site.scales[0] else len(site.crops)
        return Site(
            site.opened_by,
            (*site.crops[:at], crop, *site.crops[at:]),
            (*site.scales[:at], scale, *site.scales[at:]),
            (*site.decoded[:at], decoded, *site.decoded[at:]),
            site.start,
        )

    def _about(self, click: PlacedClick, site: Site, clicks: Sequence[PlacedClick]) -> StartMask | None:
        """The component of the site's mask that contains a click; None if none does."""
        mask = self._obeyed(site, clicks) > 0
        x, y, z = (int(v) for v in click.voxel - np.array(site.region.start))
        part = with_a_click(mask, [(x, y, z)]) if mask[x, y, z] else np.zeros_like(mask)
        return None if (box := bounding_box(part)) is None else StartMask.of(part[box], box, site.region.start)

    def _leaves(self, site: Site, clicks: Sequence[PlacedClick]) -> bool:
        """Whether the lesion, or its start mask, extends beyond the coarsest crop."""
        if site.start is not None and not site.region.encloses(site.start.region):
            return True
        return reaches_beyond(site.region, self._obeyed(site, clicks) > 0, self.volume.array.shape)

    def _from_the_first(self, crop: LesionCrop, opened_by: int, clicks: Sequence[PlacedClick]) -> Decoded:
        """Decoder output of a new crop after all clicks so far, applied in order."""
        ordered, decoded = _own_first(clicks, opened_by), crop.unclicked
        for count in range(1, len(ordered) + 1):
            decoded = crop.decode(decoded, ordered[:count], self.accumulate)
        return decoded


def _own_first(clicks: Sequence[PlacedClick], opened_by: int) -> list[PlacedClick]:
    """The clicks with the site's own click first, because in training a crop is centred on its first click."""
    return [clicks[opened_by], *clicks[:opened_by], *clicks[opened_by + 1 :]]


def lesion_logits(sites: Sequence[Site], logits: Sequence[np.ndarray]) -> tuple[Region, np.ndarray]:
    """The maximum of the sites' logits on the smallest region that contains all sites; `NOWHERE` between them."""
    if len(sites) == 1:
        return sites[0].region, logits[0]
    region = bounding_region([site.region for site in sites])
    highest = np.full(region.shape, NOWHERE, np.float32)
    for site, own in zip(sites, logits, strict=True):
        part = highest[site.region.within(region)]
        np.maximum(part, own, out=part)
    return region, highest


def predicted_iou(sites: Sequence[Site], logits: Sequence[np.ndarray], region: Region, mask: np.ndarray) -> float:
    """The lesion's predicted IoU: the crops' predictions, weighted by the number of lesion voxels that each decides.

    If the mask is empty, the unweighted mean over all crops.

    Args:
        sites: the lesion's sites.
        logits: logits of each site; a voxel is decided by the site with the highest (if equal, the first).
        region: the lesion's region.
        mask: ``region.shape`` bool.
    """
    values = [decoded.predicted_iou for site in sites for decoded in site.decoded]
    if len(sites) == 1:
        weights = shares(sites[0].crops, mask)
    else:
        highest = lesion_logits(sites, logits)[1]
        left, each = mask.copy(), []
        for site, own in zip(sites, logits, strict=True):
            inner = site.region.within(region)
            its = left[inner] & (own == highest[inner])
            left[inner] &= ~its
            each.append(shares(site.crops, its))
        weights = np.concatenate(each)
    if not weights.any():
        return float(np.mean(values))
    return float(np.average(values, weights=weights))
