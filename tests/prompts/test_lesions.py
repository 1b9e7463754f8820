"""Lesions: connectivity, numbering, separate values, invalid input."""

import numpy as np
import pytest
from scipy import ndimage

from prompts import InputError, deepest_point, lesions_from_mask
from prompts.depth import depth_mm


def corner_edge_face() -> np.ndarray:
    """Two voxels that share a face, a third that touches them by an edge only, a fourth by a corner only."""
    mask = np.zeros((5, 5, 5), np.uint8)
    mask[0, 0, 0] = mask[0, 0, 1] = 1
    mask[1, 1, 1] = 1  # edge with (0, 0, 1)
    mask[2, 2, 2] = 1  # corner with (1, 1, 1)
    return mask


@pytest.mark.parametrize(("connectivity", "expected"), [(6, 3), (18, 2), (26, 1)])
def test_connectivity_decides_what_touches(connectivity: int, expected: int) -> None:
    assert lesions_from_mask(corner_edge_face(), connectivity)[1] == expected


def test_lesions_are_numbered_by_value_then_by_their_first_voxel() -> None:
    mask = np.zeros((4, 4, 9), np.int16)
    mask[0, 0, 8] = 1
    mask[3, 0, 0] = 1
    mask[0, 0, 0] = 7
    mask[1, 1, 4] = 300
    lesions, n = lesions_from_mask(mask)
    assert n == 4
    assert lesions.dtype == np.int32
    assert [lesions[0, 0, 8], lesions[3, 0, 0], lesions[0, 0, 0], lesions[1, 1, 4]] == [1, 2, 3, 4]


def test_touching_voxels_of_different_value_are_different_lesions() -> None:
    mask = np.zeros((6, 3, 3), np.uint8)
    mask[:3], mask[3:] = 1, 2
    lesions, n = lesions_from_mask(mask)
    assert n == 2
    np.testing.assert_array_equal(lesions, mask)


def test_numbering_does_not_depend_on_memory_layout_and_components_agree_with_scipy() -> None:
    mask = np.random.default_rng(0).random((14, 11, 9)) < 0.15
    for connectivity, rank in ((6, 1), (18, 2), (26, 3)):
        lesions, n = lesions_from_mask(mask, connectivity)
        np.testing.assert_array_equal(lesions_from_mask(np.asfortranarray(mask), connectivity)[0], lesions)
        expected, expected_n = ndimage.label(mask, ndimage.generate_binary_structure(3, rank))
        assert n == expected_n
        # scipy numbers in the order of the first voxel, too.
        np.testing.assert_array_equal(lesions, expected)


def test_bool_lesions_on_a_line_of_voxels() -> None:
    mask = np.zeros((9, 5, 5), bool)
    mask[[1, 3, 4, 6, 7], 2, 2] = True
    lesions, count = lesions_from_mask(mask, connectivity=26)
    assert count == 3
    assert lesions[1:8, 2, 2].tolist() == [1, 0, 2, 2, 0, 3, 3]


def test_empty_mask_has_no_lesions() -> None:
    lesions, n = lesions_from_mask(np.zeros((3, 4, 5)))
    assert n == 0
    assert lesions.shape == (3, 4, 5)
    assert not lesions.any()


@pytest.mark.parametrize(
    ("mask", "connectivity", "says"),
    [
        (np.zeros((2, 2, 2)), 8, "6, 18 or 26"),
        (np.zeros((2, 2)), 18, "three axes"),
        (np.full((2, 2, 2), 0.5), 18, "fractions"),
        (np.full((2, 2, 2), -1), 18, "negative"),
    ],
)
def test_wrong_input_is_refused_in_one_line(mask: np.ndarray, connectivity: int, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        lesions_from_mask(mask, connectivity)
    assert "\n" not in str(caught.value)


def test_depth_counts_beyond_the_volume_as_outside_and_is_in_mm() -> None:
    depth = depth_mm(np.ones((3, 3, 3), bool), (2.0, 3.0, 5.0))
    assert depth[1, 1, 1] == 4.0  # two voxels of 2 mm to either side
    assert depth[0, 1, 1] == 2.0
    assert depth[1, 0, 1] == 3.0


def test_deepest_point_follows_mm_not_voxels() -> None:
    # A bar of 3 x 13 x 13 voxels and a plate of 15 x 15 x 1: the bar is deeper in voxels, the plate at
    # slices of 5 mm.
    mask = np.zeros((30, 30, 30), bool)
    mask[2:5, 2:15, 2:15] = True
    mask[10:25, 10:25, 20] = True
    by_voxels = deepest_point(mask)
    assert by_voxels is not None
    assert by_voxels[0][0] == 3
    assert by_voxels[1] == 2.0
    by_mm = deepest_point(mask, (1.0, 1.0, 5.0))
    assert by_mm is not None
    assert by_mm[0][2] == 20
    assert by_mm[1] == 5.0


def test_equally_deep_voxels_give_the_middle_then_the_first() -> None:
    rod = np.zeros((5, 5, 21), bool)
    rod[2, 2, 3:16] = True
    assert (deepest_point(rod) or [None])[0].tolist() == [2, 2, 9]
    block = np.zeros((6, 6, 6), bool)
    block[2:4, 2:4, 2:4] = True
    assert (deepest_point(block) or [None])[0].tolist() == [2, 2, 2]


def test_deepest_point_of_nothing_is_none() -> None:
    assert deepest_point(np.zeros((3, 3, 3), bool)) is None
