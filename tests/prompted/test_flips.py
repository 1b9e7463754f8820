"""Test-time flips: hand-made networks that mirror or do not, and a real one on mirrored scans."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from scipy import ndimage

from sammed3d_ft.images.grids import from_array
from sammed3d_ft.model.build import seeded_model
from tests.support.stand_ins import Threshold, plain_scan, predictor


def test_a_network_that_mirrors_with_its_input_gains_nothing():
    volume = plain_scan((40, 44, 36), (1.7, 2.1, 2.4))  # all of it lies inside the crop
    found = {}
    for flips in (False, True):
        stub = Threshold(level=0.3)
        each = predictor(stub, flips=flips, scan=volume)
        each.add_click((20.3, 21.6, 17.9))
        found[flips] = each
        assert len(stub.encoded) == (8 if flips else 1)
    assert 0 < found[True].mask().sum() < volume.array.size
    np.testing.assert_array_equal(found[True].mask(), found[False].mask())
    np.testing.assert_allclose(found[True].lesion(1).logits, found[False].lesion(1).logits, atol=1e-4)


class Ramp(Threshold):
    """Logits count the crop's voxels along x, whatever the image."""

    def decode(self, embedding, coords_vox, labels, previous=None):
        super().decode(embedding, coords_vox, labels, previous)
        ramp = torch.arange(self.image_size, dtype=torch.float32).reshape(-1, 1, 1).expand_as(embedding[0, 0])
        return (ramp - 20 + len(self.decoded))[None, None], torch.full((1, 1), 0.01 * len(self.decoded))


def test_clicks_are_mirrored_along_and_every_mirroring_keeps_its_own_logits_and_embedding():
    stub, volume = Ramp(), from_array(np.ones((90, 60, 60), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    found = predictor(stub, flips=True, zoom=False, scan=volume)
    first = found.add_click((44, 30, 30))
    # Four ramps rise and four fall about the crop's voxel 24, so their mean is 24 everywhere, less 20, plus 1 to 8.
    np.testing.assert_allclose(first.logits, 24 - 20 + 4.5, atol=1e-4)
    assert first.predicted_iou == pytest.approx(0.045)
    assert first.region.start == (21, 7, 7)  # 23 voxels to either side, as all mirrorings cover
    assert first.region.stop == (68, 54, 54)
    found.add_click((46, 30, 29), 0)
    assert len(stub.encoded) == 8
    assert len(stub.decoded) == 16
    given = {tuple((coords[0, 1] - 24).int().tolist()) for coords, _, _ in stub.decoded[8:]}
    assert given == set(product((2, -2), (0,), (1, -1)))
    for number, (coords, labels, previous) in enumerate(stub.decoded[8:], 1):
        np.testing.assert_array_equal(coords[0, 0], (24, 24, 24))
        assert labels.tolist() == [[1, 0]]
        assert float(previous[0, 0, 0, 0, 0]) == number - 20  # what this mirroring gave in its first round


def mirrored_logits(found, shape, axes):
    logits = np.full(shape, np.nan, np.float32)
    logits[found.lesion(1).region.slices] = found.lesion(1).logits
    return np.flip(logits, axes)


@pytest.mark.parametrize("axes", [(0,), (0, 1, 2)])
def test_a_followed_lesion_is_mirrored_too(axes):
    array = np.random.default_rng(2).gamma(2.0, 3.0, (60, 30, 44)).astype(np.float32)
    array = ndimage.gaussian_filter(array, 2) * np.linspace(1, 2, 60, dtype=np.float32).reshape(-1, 1, 1)
    position = np.array([31.0, 14.0, 20.0])
    for axis in axes:
        position[axis] = array.shape[axis] - 1 - position[axis]
    stub = Threshold(24, level=-0.5)
    found = predictor(stub, flips=True, scan=from_array(np.flip(array, axes), np.diag([2.0, 2.0, 2.0, 1.0])))
    found.add_click(position)
    assert len(stub.encoded) == 24
    logits = mirrored_logits(found, array.shape, axes)
    assert np.isfinite(logits).all()
    reference = predictor(Threshold(24, level=-0.5), flips=True, scan=from_array(array, np.diag([2.0, 2.0, 2.0, 1.0])))
    reference.add_click((31, 14, 20))
    np.testing.assert_allclose(logits, mirrored_logits(reference, array.shape, ()), atol=1e-4)


@pytest.mark.slow
def test_a_mirrored_scan_gives_the_mirrored_lesion_with_a_real_network():
    axes = (0, 1, 2)
    model = seeded_model("mini", 4)
    array = ndimage.gaussian_filter(np.random.default_rng(5).gamma(2.0, 3.0, (70, 26, 30)), 1).astype(np.float32)
    clicks = np.array([(30.25, 12.0, 17.25), (27.0, 15.25, 11.0)])  # none at .5, which rounds up in both
    shown = {}
    for mirrored in (False, True):
        values, positions = array, clicks.copy()
        if mirrored:
            values = np.flip(array, axes)
            for axis in axes:
                positions[:, axis] = array.shape[axis] - 1 - positions[:, axis]
        for flips in (False, True):
            found = predictor(
                model, 3.0, flips=flips, zoom=False, scan=from_array(values, np.diag([4.1, 3.3, 5.2, 1.0]))
            )
            found.add_clicks(positions, [1, 0])
            shown[flips, mirrored] = mirrored_logits(found, array.shape, axes if mirrored else ())
    np.testing.assert_allclose(shown[True, True], shown[True, False], atol=1e-4, rtol=1e-4)
    assert np.isfinite(shown[True, False]).sum() > 1000
    both = np.isfinite(shown[False, True] + shown[False, False])
    assert np.abs(shown[False, True] - shown[False, False])[both].max() > 0.01  # without flips it matters
