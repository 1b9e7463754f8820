"""Hand-made scans and the 48 ways in which a file can store each of them."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
from scipy.spatial.transform import Rotation

ORIENTATIONS = [(order, signs) for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]  # all 48


def affine_of(rotation: Rotation, spacing_mm, origin_mm) -> np.ndarray:
    affine = np.eye(4)
    affine[:3, :3] = rotation.as_matrix() * spacing_mm
    affine[:3, 3] = origin_mm
    return affine


def stored_as(array, affine, order, signs):
    """The same scan with its axes permuted and reversed: written out voxel by voxel, without nibabel."""
    stored = np.empty([array.shape[axis] for axis in order], array.dtype)
    index_map = np.zeros((4, 4))  # stored index -> original index
    index_map[3, 3] = 1
    for stored_axis, (axis, sign) in enumerate(zip(order, signs, strict=True)):
        index_map[axis, stored_axis] = sign
        index_map[axis, 3] = 0 if sign > 0 else array.shape[axis] - 1
    for index in np.ndindex(*stored.shape):
        original = (index_map @ (*index, 1))[:3].astype(int)
        stored[index] = array[tuple(original)]
    return stored, affine @ index_map


def scan(shape=(5, 4, 3), seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def source_vox(volume, coords_vox) -> np.ndarray:
    """Canonical voxel coordinates (..., 3) in the file's own axis order."""
    coords = np.asarray(coords_vox, float)[..., volume.source.ornt[:, 0].astype(int)]
    return np.where(volume.source.ornt[:, 1] < 0, np.array(volume.source.shape) - 1 - coords, coords)
