"""Threshold rules with clicks: components counted by hand, and what background clicks remove."""

from __future__ import annotations

import numpy as np
import pytest

from sammed3d_ft.comparators.threshold import FractionOfMaximum, SuvAtLeast, ThresholdByClicks
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume, from_array

SPACING = (3.0, 4.0, 4.0)


def pet(values: dict[tuple[int, int, int], float]) -> Volume:
    array = np.zeros((20, 9, 9), np.float32)
    for voxel, suv in values.items():
        array[voxel] = suv
    return from_array(array, np.diag([*SPACING, 1.0]))


def voxels(mask: np.ndarray) -> set[tuple[int, int, int]]:
    return {(int(x), int(y), int(z)) for x, y, z in np.argwhere(mask)}


def test_a_fraction_is_of_the_lesions_own_maximum() -> None:
    scan = pet({(5, 4, 4): 10.0, (6, 4, 4): 4.1, (6, 5, 5): 4.05, (7, 5, 4): 5.0, (8, 6, 5): 5.0, (17, 4, 4): 40.0})
    model = ThresholdByClicks(FractionOfMaximum(0.41))
    model.set_image({"PT": scan})
    found = model.add_click((10, 4, 4))  # 41 % of the 10 that is 15 mm away; the 40 is 21 mm away
    assert voxels(found.mask) == {(5, 4, 4), (6, 4, 4), (7, 5, 4)}  # edges connect, corners do not
    assert found.region.shape == (20, 9, 9)
    other = model.add_click((15, 4, 4), 1, lesion=2)
    assert voxels(other.mask) == {(17, 4, 4)}
    both = model.add_click((15, 4, 4), 1, lesion=1)  # a further click adds
    assert voxels(both.mask) == {(5, 4, 4), (6, 4, 4), (7, 5, 4), (17, 4, 4)}


def test_a_fraction_of_nothing_is_nothing() -> None:
    model = ThresholdByClicks(FractionOfMaximum(0.41))
    model.set_image({"PT": pet({(17, 4, 4): 40.0})})
    assert not model.add_click((5, 4, 4)).mask.any()
    assert voxels(model.add_click((15, 4, 4)).mask) == {(17, 4, 4)}


def test_a_fixed_suv_takes_the_component_under_the_click_or_the_nearest_in_reach() -> None:
    scan = pet({(3, 4, 4): 4.0, (4, 4, 4): 3.9, (5, 4, 4): 9.0, (5, 5, 5): 4.5, (14, 4, 4): 50.0})
    model = ThresholdByClicks(SuvAtLeast(4.0))
    model.set_image({"PT": scan})
    assert voxels(model.add_click((3, 4, 4), 1, 1).mask) == {(3, 4, 4)}  # not the hotter one beside it
    assert voxels(model.add_click((6, 4, 4), 1, 2).mask) == {(5, 4, 4), (5, 5, 5)}  # edges connect
    model.set_image({"PT": pet({(14, 4, 4): 50.0})})
    assert voxels(model.add_click((8, 4, 4), 1, 1).mask) == {(14, 4, 4)}  # 18 mm
    assert not model.add_click((7, 4, 4), 1, 2).mask.any()  # 21 mm


def test_a_background_click_takes_what_is_nearer_to_it() -> None:
    line = {(x, 4, 4): 9.0 for x in range(2, 16)}
    model = ThresholdByClicks(SuvAtLeast(4.0))
    model.set_image({"PT": pet(line)})
    assert voxels(model.add_click((4, 4, 4), 1).mask) == set(line)
    assert voxels(model.add_click((4, 7, 4), 0).mask) == set(line)  # on nothing that was found
    assert voxels(model.add_click((12, 4, 4), 0).mask) == {(x, 4, 4) for x in range(2, 9)}  # 8 is as near to both
    assert voxels(model.add_click((15, 4, 4), 1).mask) == {(x, 4, 4) for x in (*range(2, 9), 14, 15)}
    # Distances are in mm: 3 steps of 3 mm along x are nearer than 3 of 4 mm along y.
    sheet = {(x, y, 4): 9.0 for x in range(2, 16) for y in range(9)}
    model.set_image({"PT": pet(sheet)})
    model.add_click((5, 4, 4), 1)
    kept = voxels(model.add_click((8, 8, 4), 0).mask)
    squares = {v: ((v[0] - 5) * 3) ** 2 + ((v[1] - 4) * 4) ** 2 for v in sheet}
    cut = {v: ((v[0] - 8) * 3) ** 2 + ((v[1] - 8) * 4) ** 2 for v in sheet}
    assert kept == {v for v in sheet if squares[v] <= cut[v]}


def test_without_clicks_a_fixed_suv_is_the_whole_image() -> None:
    scan = pet({(3, 4, 4): 4.0, (4, 4, 4): 3.9, (14, 4, 4): 50.0})
    assert voxels(SuvAtLeast(4.0).mask(scan.array)) == {(3, 4, 4), (14, 4, 4)}


def test_what_is_wrong_is_one_line() -> None:
    model = ThresholdByClicks(SuvAtLeast(4.0))
    with pytest.raises(InputError, match="no image yet"):
        model.add_click((0, 0, 0))
    model.set_image({"PT": pet({})})
    with pytest.raises(InputError, match="the first click is background"):
        model.add_click((0, 0, 0), 0)
    with pytest.raises(InputError, match="outside the image"):
        model.add_click((20, 0, 0))
    for wrong in (0.0, 1.0, 41.0):
        with pytest.raises(InputError, match="expected a fraction between 0 and 1"):
            FractionOfMaximum(wrong)
    for wrong in (0.0, -1.0, float("nan")):
        with pytest.raises(InputError, match="expected a positive SUV"):
            SuvAtLeast(wrong)
