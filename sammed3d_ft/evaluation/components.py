"""The lesions of a mask as lists of foreground voxels, so that later steps need not scan the whole volume."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sammed3d_ft.errors import InputError


@dataclass(frozen=True)
class Components:
    """Lesions of one mask, numbered from 1."""

    voxels: np.ndarray
    """(n,) int64 flat indices into the volume in C order, increasing."""
    labels: np.ndarray
    """(n,) lesion number of each voxel, 1..count."""
    count: int

    @classmethod
    def of(cls, instances: np.ndarray, count: int) -> Components:
        """From an (x, y, z) instance map with lesions 1..count."""
        voxels = foreground(instances)
        return cls(voxels, np.ravel(instances)[voxels], count)

    @classmethod
    def connected(cls, voxels: np.ndarray, shape: tuple[int, int, int], connectivity: int) -> Components:
        """The connected components of a mask's foreground ``voxels``, increasing flat indices into ``shape``.

        Lesions are numbered by their first voxel, as in `prompts.lesions_from_mask`. That function scans the whole
        volume; this one joins runs of foreground along z that touch runs in neighbouring lines.
        """
        _, y, z = shape
        # Each line is padded at both ends and each x by one line, so that no step wraps round the volume's border.
        line, depth = np.divmod(voxels, z)
        place = (line + line // y) * (z + 2) + depth + 1
        breaks = np.flatnonzero(np.diff(place) != 1) + 1
        starts = np.concatenate(([0], breaks)) if len(place) else breaks
        first, last = place[starts], place[np.append(breaks, len(place))[: len(starts)] - 1]
        edges = [
            _touching(first, last, (y + 1) * dx * (z + 2) + dy * (z + 2), reach)
            for dx, dy, reach in _neighbour_lines(connectivity)
        ]
        i, j = (np.concatenate(ends) for ends in zip(*edges, strict=True))
        graph = coo_array((np.ones(len(i), bool), (i, j)), shape=(len(first), len(first)))
        group = connected_components(graph, directed=False)[1] if len(first) else np.zeros(0, np.int64)
        _, first_run, number = np.unique(group, return_index=True, return_inverse=True)
        rank = np.argsort(np.argsort(first_run)) + 1
        labels = np.repeat(rank[number], last - first + 1)
        return cls(voxels, labels, len(first_run))

    @classmethod
    def numbered(cls, voxels: np.ndarray, numbers: np.ndarray) -> tuple[Components, np.ndarray]:
        """One lesion for each distinct value of ``numbers`` (n,), and (count,) the value of each lesion."""
        ids, index = np.unique(numbers, return_inverse=True)
        return cls(voxels, index + 1, len(ids)), ids

    @cached_property
    def sizes(self) -> np.ndarray:
        """(count,) number of voxels of each lesion."""
        return np.bincount(self.labels, minlength=self.count + 1)[1:]

    def by_lesion(self) -> list[np.ndarray]:
        """The voxels of each lesion, increasing."""
        order = np.argsort(self.labels, kind="stable")
        return np.split(self.voxels[order], np.cumsum(self.sizes)[:-1])[: self.count]


def foreground(mask: np.ndarray) -> np.ndarray:
    """(n,) flat C-order indices of the non-zero voxels of an (x, y, z) array, increasing.

    The array is read in its own memory order, because images come in Fortran order and would otherwise be copied.
    """
    order = np.argsort([-abs(stride) for stride in mask.strides], kind="stable")
    stored = mask.transpose(order)
    flat = np.flatnonzero(stored)
    if (order == np.arange(3)).all():
        return flat
    place = np.unravel_index(flat, stored.shape)
    coords = tuple(place[position] for position in np.argsort(order))
    return np.sort(np.ravel_multi_index(coords, mask.shape))


def _neighbour_lines(connectivity: int) -> Iterator[tuple[int, int, int]]:
    """Half of the neighbouring lines along z as steps (dx, dy), each with the largest z offset of touching voxels."""
    for dx, dy in ((0, 1), (1, 0), (1, -1), (1, 1)):
        straight = dx == 0 or dy == 0
        if straight:
            yield dx, dy, 0 if connectivity == 6 else 1
        elif connectivity != 6:
            yield dx, dy, 0 if connectivity == 18 else 1


def _touching(first: np.ndarray, last: np.ndarray, step: int, reach: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of runs (i, j) such that j, moved back by ``step``, comes within ``reach`` of i."""
    low = np.searchsorted(last, first + step - reach)
    high = np.searchsorted(first, last + step + reach, side="right")
    number = np.maximum(high - low, 0)
    i = np.repeat(np.arange(len(first)), number)
    within = np.arange(len(i)) - np.repeat(np.cumsum(number) - number, number)
    return i, low[i] + within


def instance_numbers(values: np.ndarray, name: str) -> np.ndarray:
    """(n,) the foreground values of an instance map as integers.

    Raises:
        InputError: negative or fractional values.
    """
    with np.errstate(invalid="ignore"):
        whole = values.astype(np.int64)
    wrong = values[(whole != values) | (whole < 0)]
    if len(wrong):
        raise InputError(f"{name} is not an instance map: it contains {wrong[0]}; expected 0 background, 1.. lesions")
    return whole
