"""Start masks: the decoder's input, and the results with and without clicks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sammed3d_ft.errors import InputError
from sammed3d_ft.images.crops import Region, crop_grid
from sammed3d_ft.prompted.ambiguity import START_INSIDE, START_OUTSIDE
from sammed3d_ft.prompted.lesion_crops import StartMask
from tests.support.stand_ins import Threshold, plain_scan, predictor


def low_resolution(mask: np.ndarray) -> np.ndarray:
    """Of a mask in a crop of 8 voxels, read in 2 x 2 x 2 low-resolution voxels of 4 x 4 x 4."""
    grid = crop_grid(np.array((4, 4, 4)), np.ones(3), 1.0, 8)
    start = StartMask(Region((0, 0, 0), (8, 8, 8)), mask)
    return start.low_resolution(grid, 2)[0, 0].numpy()


@pytest.mark.parametrize(("layers", "expected"), [(4, 4.0), (3, 2.0), (2, 0.0), (1, -5.0), (0, -10.0)])
def test_logits_go_by_how_much_of_a_low_resolution_voxel_is_covered(layers, expected):
    assert (START_INSIDE, START_OUTSIDE) == (4.0, -10.0)
    mask = np.zeros((8, 8, 8), bool)
    mask[4:, 4:, 4:] = True  # one is covered in full
    mask[:layers, :4, :4] = True
    low = low_resolution(mask)
    assert low[1, 1, 1] == pytest.approx(4)
    assert low[0, 0, 0] == pytest.approx(expected)
    assert low[0, 1, 1] == pytest.approx(-10)


def test_a_lesion_smaller_than_a_low_resolution_voxel_is_seen():
    mask = np.zeros((8, 8, 8), bool)
    mask[5, 1:3, 2] = True
    low = low_resolution(mask)
    assert low[1, 0, 0] == pytest.approx(4)
    assert (np.delete(low.ravel(), 4) == -10).all()


def test_the_part_of_a_scan_that_a_mask_fills_is_found_wherever_its_box_lies():
    mask = np.zeros((8, 8, 8), bool)
    mask[4:, :4, 4:] = True
    grid = crop_grid(np.array((54, 34, 24)), np.ones(3), 1.0, 8)
    start = StartMask(Region((54, 30, 24), (58, 34, 28)), np.ones((4, 4, 4), bool))
    np.testing.assert_array_equal(start.low_resolution(grid, 2)[0, 0].numpy(), low_resolution(mask))
    flipped = crop_grid(np.array((54, 34, 24)), np.ones(3), 1.0, 8, flips=(True, False, False))
    # Mirrored about voxel 4, x = 4 to 7 becomes 4 to 1: three of the first four, and a third of that of the others.
    low = start.low_resolution(flipped, 2)[0, 0].numpy()
    assert low[0, 0, 1] == pytest.approx(4)
    assert low[1, 0, 1] == pytest.approx(-10 / 3)


def ball(shape, centre, radius):
    index = np.moveaxis(np.indices(shape), 0, -1)
    return ((index - np.array(centre)) ** 2).sum(-1) <= radius**2


def test_the_mask_is_fed_in_the_first_round_and_the_decoders_own_logits_afterwards():
    stub, volume = Threshold(), plain_scan()
    mask = ball(volume.array.shape, (20, 22, 18), 6)
    found = predictor(stub, scan=volume)
    found.add_mask(mask)
    found.add_click((20, 22, 18))
    found.add_click((25, 22, 18), 0)
    (_, _, first), (_, _, second) = stub.decoded
    # Crop and scan have one spacing and the low resolution is the crop's: voxel for voxel.
    np.testing.assert_array_equal(first[0, 0, 4:44, 2:46, 6:42] > 0, torch.from_numpy(mask))
    assert set(first.unique().tolist()) == {4.0, -10.0}
    torch.testing.assert_close(second, stub.encoded[0], rtol=0, atol=0)
    assert len(stub.encoded) == 1


def test_a_mask_without_clicks_stays_as_it_is():
    stub, volume = Threshold(), plain_scan()
    mask = ball(volume.array.shape, (9, 10, 8), 4)
    found = predictor(stub, scan=volume)
    prediction = found.add_mask(mask, 3)
    found.add_click((25, 30, 25), lesion=5)
    assert found.lesions == (3, 5)
    assert prediction.clicks == ()
    assert math.isnan(prediction.predicted_iou)
    assert prediction.region == Region((5, 6, 4), (14, 15, 13))
    np.testing.assert_array_equal(found.instances() == 3, mask & (found.instances() != 5))
    assert (found.probability()[mask] >= 1 / (1 + np.exp(-4.0)) - 1e-6).all()
    assert not found.crop_holds((9, 10, 8), 3)
    # A part of the scan and where it lies is the same.
    other = predictor(stub, scan=volume)
    part = other.add_mask(mask[3:20, 2:30, 4:20].astype(np.uint8), 3, (3, 2, 4))
    np.testing.assert_array_equal(part.mask, prediction.mask)
    assert part.region == prediction.region
    found.reset()
    assert not found.mask().any()


def test_background_first_is_preceded_by_the_masks_deepest_point():
    stub, volume = Threshold(), plain_scan()
    mask = ball(volume.array.shape, (12, 22, 18), 6) | ball(volume.array.shape, (28, 22, 18), 7)
    found = predictor(stub, scan=volume)
    found.add_mask(mask)
    prediction = found.add_click((28, 22, 18), 0)
    # The larger ball is the deeper one, but for the click in its centre.
    assert prediction.clicks == (((12.0, 22.0, 18.0), 1), ((28.0, 22.0, 18.0), 0))
    assert len(stub.decoded) == 2
    found.add_mask(mask)  # earlier state is removed
    prediction = found.add_clicks([(28, 22, 18), (14, 22, 18), (12, 20, 18)], [0, 1, 1])
    assert prediction.clicks == (((14.0, 22.0, 18.0), 1), ((28.0, 22.0, 18.0), 0), ((12.0, 20.0, 18.0), 1))
    single = np.zeros(mask.shape, bool)
    single[5, 6, 7] = True
    found.add_mask(single, 2)
    with pytest.raises(InputError, match="every voxel of the start mask has a background click"):
        found.add_click((5, 6, 7), 0, lesion=2)
    with pytest.raises(InputError, match="its first click.*is background"):
        found.add_click((5, 6, 7), 0, lesion=4)


def test_a_foreground_click_beside_the_mask_is_preceded_by_one_inside():
    volume = plain_scan((40, 44, 120))
    mask = ball(volume.array.shape, (12, 22, 18), 6)
    found = predictor(zoom=False, scan=volume)
    found.add_mask(mask)
    # The crop is placed on the mask, which a crop around the distant click would not contain.
    prediction = found.add_click((12, 22, 30))
    assert prediction.clicks == (((12.0, 22.0, 18.0), 1), ((12.0, 22.0, 30.0), 1))
    found.add_mask(mask)
    prediction = found.add_clicks([(12, 22, 30), (14, 22, 18)], [1, 1])
    assert prediction.clicks == (((14.0, 22.0, 18.0), 1), ((12.0, 22.0, 30.0), 1))
    found.add_mask(mask)
    # Outside the mask's crop, it opens another one, without the mask.
    stub = found.model
    stub.decoded.clear()
    prediction = found.add_click((12, 22, 110))
    assert prediction.clicks == (((12.0, 22.0, 18.0), 1), ((12.0, 22.0, 110.0), 1))
    assert [previous is None for _, _, previous in stub.decoded] == [False, True]


def test_a_mask_that_leaves_the_crop_is_followed():
    volume = plain_scan((40, 40, 120))
    mask = np.zeros(volume.array.shape, bool)
    mask[18:22, 18:22, 20:100] = True
    for given, crops in ((mask, 2), (mask & (np.arange(120) > 40) & (np.arange(120) < 80), 1)):
        stub = Threshold(level=100)  # which finds nothing, so that only the mask counts
        found = predictor(stub, scan=volume)
        found.add_mask(given)
        found.add_click((20, 20, 60))
        assert len(stub.encoded) == crops
        assert all((previous > 0).any() for _, _, previous in stub.decoded)


def test_wrong_masks_are_named():
    found = predictor()
    with pytest.raises(InputError, match="set_image"):
        found.add_mask(np.ones((2, 2, 2)))
    volume = plain_scan()
    found.set_image({"PT": volume})
    for mask, corner, says in (
        (np.zeros(volume.array.shape), (0, 0, 0), "is empty"),
        (np.ones((41, 44, 36)), (0, 0, 0), "does not fit"),
        (np.ones((4, 4, 4)), (0, 0, 33), "does not fit"),
        (np.ones((4, 4, 4)), (-1, 0, 0), "does not fit"),
        (np.ones((4, 4)), (0, 0, 0), "does not fit"),
    ):
        with pytest.raises(InputError, match=says):
            found.add_mask(mask, 1, corner)
    assert found.lesions == ()
