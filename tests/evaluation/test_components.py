"""Labelling by runs against the labelling of whole volumes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from prompts.lesions import lesions_from_mask
from sammed3d_ft.evaluation.components import Components, foreground

STORED: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "C": np.ascontiguousarray,
    "Fortran": np.asfortranarray,
    "flipped": lambda array: np.asfortranarray(array[::-1, :, ::-1])[::-1, :, ::-1],
    "other axes": lambda array: np.ascontiguousarray(array.transpose(1, 2, 0)).transpose(2, 0, 1),
}


@pytest.mark.parametrize("connectivity", [6, 18, 26])
@pytest.mark.parametrize("seed", range(25))
def test_labels_equal_those_of_the_whole_volume(seed: int, connectivity: int) -> None:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 12, 3).tolist())
    mask = rng.random(shape) < rng.choice([0.05, 0.2, 0.4, 0.6])
    expected, count = lesions_from_mask(mask, connectivity)
    found = Components.connected(foreground(mask), shape, connectivity)
    assert found.count == count
    labels = np.zeros(mask.size, int)
    labels[found.voxels] = found.labels
    np.testing.assert_array_equal(labels.reshape(shape), expected)
    assert [len(voxels) for voxels in found.by_lesion()] == found.sizes.tolist()
    for number, voxels in enumerate(found.by_lesion(), start=1):
        np.testing.assert_array_equal(voxels, np.flatnonzero(expected == number))


def test_empty_and_full() -> None:
    empty = Components.connected(foreground(np.zeros((3, 4, 5), bool)), (3, 4, 5), 18)
    assert (empty.count, len(empty.voxels), len(empty.sizes), empty.by_lesion()) == (0, 0, 0, [])
    full = Components.connected(foreground(np.ones((3, 4, 5), bool)), (3, 4, 5), 6)
    assert (full.count, full.sizes.tolist()) == (1, [60])


@pytest.mark.parametrize("stored", STORED)
def test_foreground_does_not_depend_on_memory_order(stored: str) -> None:
    values = np.random.default_rng(1).integers(0, 3, (4, 5, 6)).astype(np.int16)
    array = STORED[stored](values)
    np.testing.assert_array_equal(array, values)
    np.testing.assert_array_equal(foreground(array), np.flatnonzero(values))
