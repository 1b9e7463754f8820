"""Generic promptable shapes: synthetic PET-like crops around irregular objects, generated on the fly for pre-training.

They complement the phantom with objects from one voxel to most of the crop, with cold parts, cut by the edge of the
scan, and with similar objects nearby. They do not represent anatomy.
"""

from __future__ import annotations

import math

import cc3d
import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.utils.data import Dataset

from prompts.first_clicks import first_click
from sammed3d_ft.images.intensity import z_score
from sammed3d_ft.prompted.ambiguity import component_at, smooth_noise
from sammed3d_ft.prompted.samples import Sample, SampleSettings, draw_target, generator

_RADIUS_VOX = (1.0, 0.38)  # radius of a ball with the object's volume: minimum in voxels, maximum relative to the crop
_CONTRAST = (1.8, 25.0)  # ratio of object to background
_LEVELS = (0.15, 3.0)  # ratio of compartments to background
_PSF_SD_VOX = (0.25, 3.5)  # FWHM of 4 to 7 mm at crop spacings from 12 to 0.75 mm
_PSF_SHARE = 0.45  # maximum SD relative to the object's radius
_MAX_OTHERS = 4


class ShapeSamples(Dataset[Sample]):
    """The generic shapes of one epoch; each depends only on (seed, epoch, number).

    Args:
        count: shapes per epoch.
        settings: settings for drawing samples; spacing and zoom are not used.
        epoch: the training epoch.
        first_index: sample index of the first shape (lesions come before).
    """

    def __init__(self, count: int, settings: SampleSettings, epoch: int, first_index: int = 0) -> None:
        self.count, self.settings, self.epoch, self.first_index = count, settings, epoch, first_index

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> Sample:
        settings = self.settings
        key = (settings.seed, self.epoch, number, 0)
        rng = generator(key, "shape")
        size = settings.crop_size
        form = draw_form(size, rng)
        click = first_click(
            torch.from_numpy(form > 0)[None], strategy=_without_pet(settings.first_click), keys=[key]
        ).coords_vox[0]
        jitter = settings.ranges.jitter_vox if settings.ranges is not None else 0
        place = size // 2 - rng.integers(-jitter, jitter + 1, 3)  # position of the click in the crop
        form = _shifted(form, place - click.numpy().astype(int), fill=-1.0)
        image, cold = draw_intensities(form, rng)
        lesion = form > 0
        if rng.random() < settings.ambiguous and not cold[tuple(place)]:
            lesion = component_at(lesion & ~cold, place)  # an object without its cold part
        if rng.random() < 0.3:  # the scan ends inside the crop
            beyond = _beyond_the_scan(size, place, rng)
            image[beyond], lesion[beyond] = 0, False
        target, start = draw_target(lesion, place, settings, rng)
        return Sample(
            image=z_score(torch.from_numpy(image)[None]),
            target=target,
            start=start,
            coords_vox=torch.from_numpy(place.astype(np.float32)),
            label=torch.tensor(1),
            index=self.first_index + number,
        )


def draw_form(size: int, rng: np.random.Generator) -> np.ndarray:
    """(size, size, size) float32: positive inside one connected object near the centre, 1 at its deepest point."""
    low, high = math.log(_RADIUS_VOX[0]), math.log(_RADIUS_VOX[1] * size)
    radius = math.exp(rng.uniform(low, high))
    middle, shape = (size - 1) / 2 + rng.uniform(-0.5, 0.5, 3), (size, size, size)
    depth = 1 - _ellipsoid(size, middle, radius * np.exp(rng.normal(0, 0.25, 3)), rng)
    if radius > 2:  # irregularities at the scale of the object, and finer ones
        bumps = smooth_noise(shape, max(radius, 1.5), rng) + 0.3 * smooth_noise(shape, max(radius / 3, 1.0), rng)
        depth += rng.uniform(0, 0.4) * bumps
    inside = depth > 0
    parts = cc3d.connected_components(inside, connectivity=6)
    if parts.max() == 0:  # smaller than a voxel
        centre = tuple(np.round(middle).astype(int))
        depth = np.full_like(depth, -1)
        depth[centre] = 1
    elif parts.max() > 1:
        largest = np.bincount(parts.ravel())[1:].argmax() + 1
        depth[inside & (parts != largest)] = -0.01
    return np.minimum(depth / depth.max(), 1).astype(np.float32)


def draw_intensities(form: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """PET-like intensities inside and around an object (float32, not negative), and a mask of its cold part (bool).

    Both have the shape of `form`, from `draw_form`.
    """
    size, shape, inside = len(form), form.shape, form > 0
    cold = np.zeros_like(inside)
    image = np.exp(rng.uniform(0, 0.35) * smooth_noise(shape, rng.uniform(4, 14), rng))
    for _ in range(rng.integers(0, 5)):  # compartments, like organs
        middle, radii = rng.uniform(0, size, 3), np.exp(rng.uniform(math.log(4), math.log(size / 2), 3))
        image[_ellipsoid(size, middle, radii, rng) < 1] *= math.exp(rng.uniform(*np.log(_LEVELS)))
    if rng.random() < 0.4:  # edge of the body, with air outside
        middle = size / 2 + rng.normal(0, size / 8, 3)
        radii = np.exp(rng.uniform(math.log(size / 4), math.log(size), 3))
        image[_ellipsoid(size, middle, radii, rng) > 1] *= 0.03
    level = math.exp(rng.uniform(*np.log(_CONTRAST))) * float(image[inside].mean())
    for _ in range(rng.integers(0, _MAX_OTHERS + 1)):  # other objects of similar intensity, separate or touching
        radii = np.exp(rng.uniform(math.log(1), math.log(size / 6))) * np.exp(rng.normal(0, 0.3, 3))
        other = _ellipsoid(size, rng.uniform(0, size, 3), radii, rng) < 1
        image[other & ~inside] = level * math.exp(rng.normal(0, 0.5))
    radius = (inside.sum() * 3 / (4 * math.pi)) ** (1 / 3)
    uptake = np.exp(rng.uniform(0, 0.6) * smooth_noise(shape, max(radius / 3, 1.5), rng))
    if radius > 3 and rng.random() < 0.6:  # a cold interior that still belongs to the object
        cold = form + rng.uniform(0, 0.3) * smooth_noise(shape, max(radius / 2, 1.5), rng) > rng.uniform(0.2, 0.7)
        cold &= inside
        uptake[cold] *= rng.uniform(0.05, 0.7)
    image[inside] = level * uptake[inside]
    finest, widest = _PSF_SD_VOX
    blur = min(widest, max(0.8, _PSF_SHARE * radius))  # limited, because more blur would erase a small object
    blur = math.exp(rng.uniform(math.log(finest), math.log(blur)))
    image = gaussian_filter(image, blur)
    noise = gaussian_filter(rng.standard_normal(shape, dtype=np.float32), 0.7 * max(blur, 1.0))
    image += rng.uniform(0.01, 0.25) * noise / noise.std() * np.sqrt(image * image.mean())
    return np.maximum(image, 0).astype(np.float32), cold


def _ellipsoid(size: int, middle: np.ndarray, radii: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Normalised distance from the centre of a randomly rotated ellipsoid: 1 on its surface."""
    turn = np.linalg.qr(rng.standard_normal((3, 3)))[0] / np.maximum(radii, 0.5)
    axes = [np.arange(size, dtype=np.float32) - np.float32(m) for m in middle]
    square = np.zeros((size, size, size), np.float32)
    for column in turn.T.astype(np.float32):
        x, y, z = (c * axis for c, axis in zip(column, axes, strict=True))
        square += (x[:, None, None] + y[None, :, None] + z[None, None]) ** 2
    return np.sqrt(square)


def _shifted(array: np.ndarray, by: np.ndarray, fill: float) -> np.ndarray:
    """Shift an array by whole voxels; new voxels are set to `fill`."""
    result = np.full_like(array, fill)
    into = tuple(slice(max(s, 0), n + min(s, 0)) for s, n in zip(by, array.shape, strict=True))
    out_of = tuple(slice(max(-s, 0), n + min(-s, 0)) for s, n in zip(by, array.shape, strict=True))
    result[into] = array[out_of]
    return result


def _beyond_the_scan(size: int, click: np.ndarray, rng: np.random.Generator) -> tuple[slice, slice, slice]:
    """A slab on one side of the crop that does not reach the click."""
    axis = int(rng.integers(3))
    slices = [slice(None)] * 3
    if rng.random() < 0.5:
        slices[axis] = slice(0, int(rng.integers(1, max(click[axis] - 1, 2))))
    else:
        slices[axis] = slice(int(rng.integers(min(click[axis] + 2, size - 1), size)), size)
    return slices[0], slices[1], slices[2]


def _without_pet(strategy: str) -> str:
    """Replace `suvmax`, because the click is drawn before the intensities."""
    return "uniform" if strategy == "suvmax" else strategy
