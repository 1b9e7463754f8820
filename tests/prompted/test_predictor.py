"""The predictor: geometry by property tests; rounds, embeddings and errors with hand-made networks."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from scipy.spatial.transform import Rotation

from sammed3d_ft.errors import InputError
from sammed3d_ft.images.crops import Region, crop_grid
from sammed3d_ft.images.grids import from_array
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.prompted import prediction as prediction_module
from sammed3d_ft.prompted.predictor import Predictor
from sammed3d_ft.prompted.preprocessing import Preprocessing, channels, prepare_crop
from tests.support.stand_ins import Remembering, Threshold, plain_scan, predictor, scan_of_blobs
from tests.support.storage_orders import ORIENTATIONS, affine_of, stored_as


class EncodeOnce:
    """A real network whose embeddings are kept by the crop's bytes: 48 equal crops cost one encoder pass."""

    def __init__(self, model):
        self.model, self.embeddings = model, {}
        self.image_size, self.in_channels, self.device = model.image_size, model.in_channels, model.device
        self.decode = model.decode

    def image_encoder(self, image):
        key = image.numpy().tobytes()
        if key not in self.embeddings:
            self.embeddings[key] = self.model.image_encoder(image)
        return self.embeddings[key]


def test_all_48_storage_orders_give_one_mask_with_a_real_network():
    rng = np.random.default_rng(3)
    affine = affine_of(Rotation.from_euler("xyz", (7, -11, 5), degrees=True), (4.1, 3.3, 5.2), (-61.7, 12.3, -40.9))
    array = ndimage.gaussian_filter(rng.gamma(2.0, 3.0, (18, 21, 16)), 1).astype(np.float32)
    click_mm = affine[:3, :3] @ (9.3, 10.1, 7.6) + affine[:3, 3]
    second_mm = affine[:3, :3] @ (6.2, 12.4, 8.9) + affine[:3, 3]
    model = EncodeOnce(seeded_model("mini", 0))
    by_orientation = []
    for order, signs in ORIENTATIONS:
        stored, its_affine = stored_as(array, affine, order, signs)
        # As a file would hold it.
        volume = from_array(stored, its_affine.astype(np.float32))
        found = predictor(model, 3.0, scan=volume)
        found.add_click(volume.to_vox(click_mm))
        prediction = found.add_click(volume.to_vox(second_mm), 0)
        by_orientation.append((found.mask(), prediction, volume.affine))
    assert len(model.embeddings) == 1  # crops are equal to the last bit
    reference, prediction, its_affine = by_orientation[0]
    assert reference.shape == array.shape  # this scan is canonical as made
    assert 0 < reference.sum() < reference.size  # otherwise equality means little
    for mask, other, other_affine in by_orientation[1:]:
        np.testing.assert_array_equal(mask, reference)
        np.testing.assert_array_equal(other.logits, prediction.logits)  # to the last bit
        assert other.clicks == prediction.clicks
        assert other.predicted_iou == prediction.predicted_iou
        np.testing.assert_allclose(other_affine, its_affine, atol=1e-4)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    angles=st.tuples(*[st.floats(-180, 180)] * 3),
    spacing=st.tuples(*[st.floats(1.5, 5.0)] * 3),
    radius_mm=st.floats(12.0, 16.0),
    orientation=st.sampled_from(ORIENTATIONS),
)
def test_oblique_anisotropic_mask_lies_within_one_voxel_layer(angles, spacing, radius_mm, orientation):
    affine = affine_of(Rotation.from_euler("xyz", angles, degrees=True), spacing, (13.0, -70.0, 22.0))
    shape = tuple(int(np.ceil(70 / s)) for s in spacing)
    centre_mm = affine[:3, :3] @ (np.array(shape) / 2) + affine[:3, 3] + (1.1, -2.3, 0.7)
    volume = from_array(*stored_as(scan_of_blobs(affine, shape, [centre_mm], radius_mm), affine, *orientation))

    # The stub's threshold in SUV is what the z-score makes of its level; put it at SUV 6 (distance = radius).
    preprocessing = Preprocessing(("PT",), 2.0)
    click_vox = volume.to_vox(centre_mm)
    crop = prepare_crop(channels({"PT": volume}, preprocessing), crop_grid(click_vox, volume.spacing_mm, 2.0, 48))
    outside = float(crop.min())  # z-score of 0
    inside = float(crop.max())  # z-score of 10
    stub = Threshold(level=outside + 0.6 * (inside - outside))
    found = Predictor(stub, preprocessing, zoom=False)  # the level is that of this crop
    found.set_image({"PT": volume})
    found.add_click(click_vox)

    index = np.stack(np.indices(volume.array.shape), -1)
    distance = np.linalg.norm(volume.to_mm(index) - centre_mm, axis=-1)
    truth = distance <= radius_mm
    layer = ndimage.generate_binary_structure(3, 3)
    mask = found.mask().astype(bool)
    assert mask.any()
    assert not (mask & ~ndimage.binary_dilation(truth, layer)).any()
    assert not (ndimage.binary_erosion(truth, layer) & ~mask).any()


@pytest.mark.parametrize("images", [np.zeros((8, 8, 8)), {"PT": plain_scan(), "CT": np.zeros((8, 8, 8))}])
def test_an_array_without_its_grid_is_refused(images):
    with pytest.raises(InputError, match="set_image got ndarray, expected images by modality"):
        predictor(Threshold()).set_image(images)


def test_second_click_reuses_the_embedding_and_feeds_everything_back():
    stub, volume = Threshold(), plain_scan()
    found = predictor(stub, zoom=False, scan=volume)
    found.add_click((20, 22, 18))
    prediction = found.add_click((22, 22, 17), 0)
    assert len(stub.encoded) == 1
    (_, _, first_previous), (coords, labels, previous) = stub.decoded
    assert first_previous is None  # zeros, by the model's own rule
    # Crop centre is voxel 24 of 48; spacing of scan and crop are equal, so a step is a step.
    np.testing.assert_array_equal(coords[0], [[24, 24, 24], [26, 24, 23]])
    assert labels.tolist() == [[1, 0]]
    torch.testing.assert_close(previous, stub.encoded[0], rtol=0, atol=0)
    assert prediction.clicks == (((20.0, 22.0, 18.0), 1), ((22.0, 22.0, 17.0), 0))
    assert prediction.predicted_iou == pytest.approx(0.52)
    found.add_click((10, 12, 9), lesion=2)
    assert len(stub.encoded) == 2
    found.reset()
    assert found.lesions == ()
    assert not found.mask().any()


def test_several_clicks_at_once_equal_the_same_clicks_one_by_one():
    model, volume = seeded_model("mini", 1), plain_scan()
    positions, labels = [(20, 22, 18), (23, 20, 18), (10, 30, 20)], [1, 1, 0]
    together, apart = predictor(model), predictor(model)
    for each in (together, apart):
        each.set_image({"PT": volume})
    together.add_clicks(positions, labels)
    for position, label in zip(positions, labels, strict=True):
        apart.add_click(position, label)
    np.testing.assert_array_equal(together.lesion(1).logits, apart.lesion(1).logits)
    assert together.lesion(1).clicks == apart.lesion(1).clicks


def test_without_accumulation_the_decoder_sees_the_newest_click_alone():
    stub = Threshold()
    found = predictor(stub, accumulate=False, scan=plain_scan())
    found.add_clicks([(20, 22, 18), (22, 22, 17)], [1, 0])
    coords, labels, previous = stub.decoded[1]
    np.testing.assert_array_equal(coords[0], [[26, 24, 23]])
    assert labels.tolist() == [[0]]
    assert previous is not None
    assert len(found.lesion(1).clicks) == 2


def test_overlap_goes_to_the_higher_probability():
    class ByCentre(Threshold):
        """Each lesion is higher than the other on its own side."""

        def decode(self, embedding, coords_vox, labels, previous=None):
            ramp = torch.linspace(1, 3, self.image_size).reshape(-1, 1, 1).expand_as(embedding[0, 0])
            return (ramp if len(self.encoded) == 1 else 4 - ramp)[None, None], torch.ones(1, 1)

    volume = from_array(np.ones((60, 8, 8), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    found = predictor(ByCentre(), zoom=False, scan=volume)
    found.add_click((24, 4, 4), lesion=7)  # crop over x 0..47
    found.add_click((30, 4, 4), lesion=2)  # crop over x 6..53
    one, two = found.lesion(7), found.lesion(2)
    assert (one.region.start[0], one.region.stop[0]) == (0, 48)
    assert (two.region.start[0], two.region.stop[0]) == (6, 54)
    x = np.arange(60)
    # Lesion 7 is 1 + 2x/47 over its crop, lesion 2 is 3 - 2(x - 6)/47: equal at x = 26.5.
    expected = np.select([x >= 54, x < 6, x <= 26, x < 48], [0, 7, 2, 7], default=2)
    np.testing.assert_array_equal(found.instances()[:, 4, 4], expected)
    np.testing.assert_array_equal(found.mask()[:, 4, 4], (x < 54).astype(np.uint8))
    assert found.instances().dtype == np.int32
    assert found.mask().dtype == np.uint8
    probability = found.probability()[:, 4, 4]
    assert probability.dtype == np.float32
    assert probability[0] == pytest.approx(1 / (1 + np.exp(-1.0)))
    assert probability[10] == pytest.approx(1 / (1 + np.exp(-(3 - 8 / 47))))
    assert (probability[54:] == 0).all()


def test_a_lesion_beyond_the_image_border_is_cut_there():
    stub = Threshold(level=-100)  # everything
    found = predictor(stub, zoom=False, scan=plain_scan((100, 44, 36)))
    found.add_click((0, 22, 18))
    mask = found.mask()
    assert mask[:24].all()  # half of a crop of 48
    assert not mask[24:].any()


def test_ct_is_put_on_the_grid_of_the_pet():
    pet = plain_scan()
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (-40, -50, 0)
    ct = from_array(np.full((110, 120, 100), 2000.0, np.float32), affine)
    stub = Threshold(in_channels=2)
    found = Predictor(stub, Preprocessing(("PT", "CT"), 2.0))
    found.set_image({"PT": pet, "CT": ct})
    found.add_click((20, 22, 18))
    assert stub.encoded[0].shape == (1, 2, 48, 48, 48)
    stack = channels({"PT": pet, "CT": ct}, Preprocessing(("PT", "CT"), 2.0))
    assert stack.shape == (2, *pet.array.shape)
    assert (stack[1] == 1000).all()  # clipped


def test_training_mode_of_every_part_comes_back():
    model = seeded_model("mini", 0)
    model.train()
    model.image_encoder.eval()  # a frozen part
    found = predictor(model, scan=plain_scan())
    found.add_click((20, 22, 18))
    assert model.training
    assert model.mask_decoder.training
    assert not any(module.training for module in model.image_encoder.modules())


def test_wrong_clicks_are_named():
    found = predictor()
    with pytest.raises(InputError, match="set_image"):
        found.add_click((1, 1, 1))
    found.set_image({"PT": plain_scan((100, 44, 36))})
    with pytest.raises(InputError, match=r"\(100, 22, 18\).*outside the image.*0\.\.99, 0\.\.43, 0\.\.35"):
        found.add_click((100, 22, 18))
    with pytest.raises(InputError, match=r"lesion 3.*first click.*\) mm, is background"):
        found.add_click((20, 22, 18), 0, lesion=3)
    with pytest.raises(InputError, match="no clicks"):
        found.add_clicks([], [])
    with pytest.raises(InputError, match="three finite"):
        found.add_click((1, float("nan"), 2))
    with pytest.raises(InputError, match="label"):
        found.add_click((20, 22, 18), -1)
    for number in (0, 2**31, "liver", 1.5):
        with pytest.raises(InputError, match="expected a lesion number from 1 to 2147483647"):
            found.add_click((20, 22, 18), lesion=number)
    with pytest.raises(InputError, match="there is no lesion"):
        found.lesion(1)
    assert found.lesions == ()


def test_clicks_outside_the_crop(caplog):
    stub = Threshold()
    found = predictor(stub, zoom=False, scan=plain_scan((100, 44, 36)))
    before = found.add_click((20, 22, 18))
    assert found.crop_holds((43, 22, 18), 1)
    assert not found.crop_holds((44, 22, 18), 1)
    with caplog.at_level(logging.WARNING):
        after = found.add_click((60, 22, 18), 0)
    assert "the background click at RAS+ voxel (60, 22, 18), RAS (90.0, 4.0, 46.0) mm, lies outside" in caplog.text
    assert "is ignored" in caplog.text
    assert after is before
    assert len(stub.decoded) == 1
    assert len(after.clicks) == 1


@pytest.mark.parametrize("most_kept", [2**22, 0])
def test_only_the_logits_of_the_lesion_itself_are_kept(most_kept, monkeypatch):
    """Others are made anew, also when lesion and scan have changed meanwhile."""
    monkeypatch.setattr(prediction_module, "_MOST_KEPT", most_kept)
    found, volume = predictor(Remembering(level=0.8)), plain_scan((100, 44, 36))
    found.set_image({"PT": volume})
    clicks = [((50, 22, 18), 1), ((53, 22, 18), 0), ((93, 22, 18), 1)]
    seen = [found.add_click(position, label) for position, label in clicks]
    logits = [prediction.logits for prediction in seen]
    found.set_image({"PT": plain_scan()})
    assert [len(prediction.clicks) for prediction in seen] == [1, 2, 3]
    assert not np.array_equal(logits[0], logits[1])
    for prediction, before in zip(seen, logits, strict=True):
        np.testing.assert_array_equal(prediction.logits, before)
        np.testing.assert_array_equal(prediction.mask, before > 0)
        held = before[prediction.box.within(prediction.region)]
        np.testing.assert_array_equal(prediction.box_logits, held)
        np.testing.assert_array_equal(prediction.box_mask, held > 0)
        for others in ((1, 2), (0, 2), (0, 1)):  # no larger than needed
            assert (held > 0).any(axis=others)[[0, -1]].all()
        kept = sum(value.nbytes for value in vars(prediction).values() if isinstance(value, np.ndarray))
        assert kept <= held.size / 8 + 1 + (held.nbytes if most_kept else 0)


def instances_by_hand(lesions, shape):
    instances, highest = np.zeros(shape, int), np.zeros(shape)
    for number in sorted(lesions):
        logits = np.full(shape, -100.0)
        logits[lesions[number].region.slices] = lesions[number].logits
        instances[logits > highest] = number
        highest = np.maximum(highest, logits)
    return instances


@pytest.mark.parametrize("most_kept", [2**22, 0])
def test_overlapping_lesions_share_the_map_by_their_logits(most_kept, monkeypatch):
    monkeypatch.setattr(prediction_module, "_MOST_KEPT", most_kept)
    found, volume = predictor(Remembering(level=0.3), zoom=False), plain_scan((100, 44, 36))
    found.set_image({"PT": volume})
    starts = {3: (44, 22, 18), 1: (52, 24, 16), 2: (50, 20, 20), 7: (9, 9, 9)}
    lesions = {number: found.add_click(place, lesion=number) for number, place in starts.items()}
    expected = instances_by_hand(lesions, (100, 44, 36))
    claims = sum((found.lesion(number).box_mask.sum() for number in starts), 0)
    assert claims > (expected > 0).sum()  # they do overlap
    assert len(np.unique(expected)) > 3
    np.testing.assert_array_equal(found.instances(), expected)
    part = Region((45, 10, 0), (60, 44, 19))
    np.testing.assert_array_equal(prediction_module.instance_map(lesions.values(), part), expected[part.slices])


def test_an_empty_lesion_keeps_nothing():
    found, shape = predictor(Threshold(level=9.0), obey=False), (40, 44, 36)
    found.set_image({"PT": plain_scan(shape)})
    prediction = found.add_click((20, 22, 18))
    assert prediction.box_logits.size == prediction.box_mask.size == 0
    assert not prediction.mask.any()
    assert prediction.mask.shape == prediction.region.shape == prediction.logits.shape
    assert not found.mask().any()
    assert not found.instances().any()
    assert found.probability().max() < 0.5


def test_a_foreground_click_outside_the_crop_opens_one_of_its_own():
    stub, volume = Threshold(level=0.3), plain_scan((100, 44, 36))
    found, far = predictor(stub, zoom=False), predictor(Threshold(level=0.3), zoom=False)
    for each in (found, far):
        each.set_image({"PT": volume})
    near = found.add_click((20, 22, 18))
    other = far.add_click((75, 22, 18))
    both = found.add_click((75, 22, 18))
    assert len(stub.encoded) == 2
    np.testing.assert_array_equal(stub.decoded[1][0][0], [[24, 24, 24]])  # the first site's click lies elsewhere
    assert stub.decoded[1][2] is None
    # Crops over x 0..43 and 51..98, with a gap between them.
    assert (both.region.start, both.region.stop) == ((0, 0, 0), (99, 44, 36))
    np.testing.assert_array_equal(both.logits[:44], near.logits)
    np.testing.assert_array_equal(both.logits[51:], other.logits)
    assert (both.logits[44:51] == -100).all()
    assert (found.probability()[44:51] == 0).all()
    assert [label for _, label in both.clicks] == [1, 1]
    assert found.crop_holds((75, 22, 18), 1)
    assert not found.crop_holds((47, 22, 18), 1)
    # A later click applies to the sites that contain it: here only the second.
    found.add_click((60, 20, 18), 0)
    assert len(stub.decoded) == 3
    np.testing.assert_array_equal(stub.decoded[2][0][0], [[24, 24, 24], [9, 22, 24]])
    assert stub.decoded[2][1].tolist() == [[1, 0]]
    np.testing.assert_array_equal(found.undo(1).logits, both.logits)
    np.testing.assert_array_equal(found.undo(1).logits, near.logits)
    assert found.undo(1) is None
    assert len(stub.encoded) == 2


def test_where_sites_overlap_the_higher_logits_hold_and_both_are_given_the_click():
    class ByCentre(Threshold):
        """Logits rise along x in the crop encoded first and fall in the second; each predicts a different IoU."""

        def image_encoder(self, image):
            return torch.full_like(super().image_encoder(image), float(len(self.encoded)))

        def decode(self, embedding, coords_vox, labels, previous=None):
            super().decode(embedding, coords_vox, labels, previous)
            ramp = torch.linspace(-1, 3, self.image_size).reshape(-1, 1, 1).expand_as(embedding[0, 0])
            first = float(embedding.mean()) == 1
            return (ramp if first else -ramp)[None, None], torch.full((1, 1), 0.8 if first else 0.4)

    volume = from_array(np.ones((90, 8, 8), np.float32), np.diag([2.0, 2.0, 2.0, 1.0]))
    stub = ByCentre()
    found = predictor(stub, zoom=False, obey=False, scan=volume)
    assert found.add_click((24, 4, 4)).predicted_iou == pytest.approx(0.8)  # crop over x 0..47
    both = found.add_click((50, 4, 4))  # 26..73
    assert len(stub.decoded) == 2
    x = np.arange(90)
    one = np.where(x < 48, -1 + 4 * x / 47, -100)
    two = np.where((x >= 26) & (x < 74), 1 - 4 * (x - 26) / 47, -100)
    np.testing.assert_allclose(both.logits[:, 4, 4], np.maximum(one, two)[:74], atol=1e-5)
    # The first site has x = 12 to 47, the second what is above zero beyond; 1 - 4 (x - 26) / 47 ends at x = 37.
    assert both.mask[:, 4, 4].nonzero()[0].tolist() == list(range(12, 48))
    assert both.predicted_iou == pytest.approx(0.8)
    found.add_click((40, 4, 4), 0)
    assert len(stub.decoded) == 4
    assert [labels.tolist() for _, labels, _ in stub.decoded[2:]] == [[[1, 0]], [[1, 0]]]
    # The second site's own click comes first in it, whatever the order in the lesion.
    found.add_click((30, 4, 4), 1)
    np.testing.assert_array_equal(stub.decoded[5][0][0], [[24, 24, 24], [14, 24, 24], [4, 24, 24]])


def test_channels_and_modalities_must_agree():
    with pytest.raises(InputError, match="1 input channels"):
        Predictor(Threshold(), Preprocessing(("PT", "CT")))
    with pytest.raises(InputError, match="no CT image"):
        Predictor(Threshold(in_channels=2), Preprocessing(("PT", "CT"))).set_image({"PT": plain_scan()})


class Halfway(Threshold):
    """Logits cross zero halfway between the darkest and the brightest voxel of the crop that lie in the scan."""

    def decode(self, embedding, coords_vox, labels, previous=None):
        self.decoded.append((coords_vox.clone(), labels.clone(), previous))
        inside = embedding[embedding != 0]
        return embedding - (inside.max() + inside.min()) / 2, torch.full((1, 1), 0.5)


def long_spindle():
    """A spindle of 220 mm along z, narrower than the crops of 96 mm, in a scan of 320 mm; and its ground truth."""
    shape, spacing = (50, 50, 160), 2.0
    affine = affine_of(Rotation.identity(), (spacing,) * 3, (-50, -50, -160))
    x, y, z = (np.moveaxis(np.indices(shape), 0, -1) * spacing + affine[:3, 3]).transpose(3, 0, 1, 2)
    inside = np.clip((1 - np.sqrt((x / 18) ** 2 + (y / 18) ** 2 + (z / 110) ** 2)) * 18 / spacing + 0.5, 0, 1)
    return from_array((1 + 9 * inside).astype(np.float32), affine), inside > 0.5


@pytest.mark.parametrize("along", ["z", "x"])
def test_a_lesion_larger_than_its_crop_is_followed_without_a_seam(along):
    volume, truth = long_spindle()
    if along == "x":
        truth = truth.transpose(2, 1, 0)
        volume = from_array(volume.array.transpose(2, 1, 0).copy(), volume.affine)
    centre = np.array(volume.array.shape) // 2
    masks = {}
    for zoom in (False, True):
        stub = Halfway()
        found = Predictor(stub, Preprocessing(("PT",), 2.0), zoom=zoom)
        found.set_image({"PT": volume})
        found.add_click(centre)
        masks[zoom] = found.mask().astype(bool)
        assert len(stub.encoded) == (3 if zoom else 1)
    axis = 0 if along == "x" else 2
    other = tuple(a for a in range(3) if a != axis)
    reach = {zoom: np.flatnonzero(mask.any(other)) for zoom, mask in masks.items()}
    assert len(reach[False]) == 48  # cut at the crop's faces
    assert len(reach[True]) == pytest.approx(110, abs=5)
    area, expected = masks[True].sum(other), truth.sum(other)
    # Between the crops' faces and far beyond, every cross-section is that of the spindle: no seam.
    middle = slice(centre[axis] - 45, centre[axis] + 45)
    assert (np.abs(area[middle] / expected[middle] - 1) < 0.2).all()
    assert np.abs(np.diff(area[middle].astype(int))).max() <= 40
    np.testing.assert_array_equal(  # well inside the first crop, nothing changes
        np.take(masks[True], range(centre[axis] - 15, centre[axis] + 15), axis),
        np.take(masks[False], range(centre[axis] - 15, centre[axis] + 15), axis),
    )


def test_a_click_beyond_the_first_crop_counts_where_the_lesion_was_followed():
    volume, _ = long_spindle()
    stub = Halfway()
    found = Predictor(stub, Preprocessing(("PT",), 2.0))
    found.set_image({"PT": volume})
    found.add_click((25, 25, 80))
    before = len(stub.decoded)
    prediction = found.add_click((25, 25, 120), 0)  # 80 mm away
    assert len(stub.decoded) == before + 2  # only in the two coarser crops
    assert len(prediction.clicks) == 2
    assert len(stub.encoded) == 3


def test_a_lesion_at_the_scans_own_border_is_not_followed():
    stub = Halfway()
    hot = np.full((20, 20, 10), 9.0, np.float32)
    array = np.pad(hot, ((10, 10), (10, 10), (0, 30)), constant_values=1)
    volume = from_array(array, affine_of(Rotation.identity(), (2.0,) * 3, (0, 0, 0)))
    found = Predictor(stub, Preprocessing(("PT",), 2.0))
    found.set_image({"PT": volume})
    found.add_click((20, 20, 3))
    assert found.mask()[20, 20, 0]
    assert len(stub.encoded) == 1


@pytest.mark.parametrize("flips", [False, True])
def test_crops_encoded_ahead_in_batches_are_those_of_the_clicks(monkeypatch: pytest.MonkeyPatch, flips: bool) -> None:
    clicks = [(10.0, 12.0, 9.0), (20.0, 22.0, 18.0), (30.0, 30.0, 27.0)]
    plain, batched = (predictor(flips=flips, zoom=False) for _ in range(2))
    for one in (plain, batched):
        one.set_image({"PT": plain_scan()})
    plain.encode_ahead(clicks)  # no gain on a CPU
    assert plain.model.encoded == []
    for module in ("lesion_crops", "predictor"):
        monkeypatch.setattr(f"sammed3d_ft.prompted.{module}.crops_at_once", lambda device: 2)
    batched.encode_ahead(clicks)
    assert [len(crops) for crops in batched.model.encoded] == ([2] * 12 if flips else [2, 1])
    monkeypatch.undo()
    batched.model.encoded.clear()
    for number, click in enumerate(clicks, start=1):
        expected = plain.add_click(click, lesion=number)
        np.testing.assert_array_equal(batched.add_click(click, lesion=number).logits, expected.logits)
    assert batched.model.encoded == []

    for module in ("lesion_crops", "predictor"):
        monkeypatch.setattr(f"sammed3d_ft.prompted.{module}.crops_at_once", lambda device: 2)
    batched.encode_ahead(clicks)
    batched.reset()  # removes them too
    batched.model.encoded.clear()
    batched.add_click(clicks[0])
    assert len(batched.model.encoded) == (4 if flips else 1)
    with pytest.raises(InputError, match="outside"):
        batched.encode_ahead([(1000.0, 0.0, 0.0)])
