"""Auto-zoom: small lesions get finer crops, large ones coarser crops, and the crops join without a seam."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from sammed3d_ft.images.grids import Volume, from_array
from tests.support.stand_ins import Remembering, Threshold, predictor, same
from tests.support.storage_orders import ORIENTATIONS, affine_of, stored_as

CLICK = (30, 30, 30)


def cube(side: int, corner: tuple[int, int, int] = CLICK, shape: tuple[int, int, int] = (60, 60, 60)) -> Volume:
    """A hot cube in a scan of 2 mm voxels: the spacing of the crops, so that it is found voxel for voxel."""
    array = np.ones(shape, np.float32)
    array[tuple(slice(c, c + side) for c in corner)] = 10
    return from_array(array, np.diag([2.0, 2.0, 2.0, 1.0]))


def clicked(volume: Volume, model: Any = None, click: tuple[int, int, int] = CLICK, **options: Any) -> Any:
    found = predictor(model, **options, scan=volume)
    found.add_click(click)
    return found


# A crop of 48 voxels of 2 mm is 96 mm wide, a quarter of it 24 mm, a half of it 48 mm.
@pytest.mark.parametrize(("side", "finer"), [(1, 4), (6, 4), (7, 2), (12, 2), (13, None), (20, None)])
def test_a_lesion_of_at_most_half_of_a_finer_crop_is_seen_in_it(side: int, finer: int | None) -> None:
    found = clicked(cube(side))
    mask = found.mask() > 0
    assert mask.sum() == side**3
    stub = found.model
    assert len(stub.encoded) == (2 if finer else 1)  # passes of the encoder
    assert len(stub.decoded) == len(stub.encoded)
    found.add_click((29, 29, 29), 0)
    assert len(stub.encoded) == (2 if finer else 1)
    if finer:
        # A step of one voxel in the scan is one in the first crop, and as many as it is finer in the second.
        assert [coords[0, 1].tolist() for coords, _, _ in stub.decoded[2:]] == [[24 - finer] * 3, [23] * 3]
    assert len(clicked(cube(side), zoom=False).model.encoded) == 1


def test_only_the_component_that_was_clicked_says_how_large_a_lesion_is() -> None:
    volume = cube(6)
    volume.array[10:25, 10:25, 10:25] = 10
    found = clicked(volume)
    assert len(found.model.encoded) == 2
    assert found.mask().sum() == 6**3
    # Without enforced clicks, the clicked voxel may be outside the mask, so the lesion's size is unknown.
    assert len(clicked(volume, click=(50, 50, 50), obey=False).model.encoded) == 1


def test_a_small_lesion_does_not_zoom_in_later_and_a_large_one_may_zoom_out() -> None:
    """After the first round no finer crops are added, because they would undo the user's corrections."""

    class Shrinking(Threshold):
        """Finds a large lesion first, then one voxel."""

        def decode(self, embedding, coords_vox, labels, previous=None):
            logits, iou = super().decode(embedding, coords_vox, labels, previous)
            if len(self.decoded) > 1:
                logits = logits - logits.amax() + 0.1
            return logits, iou

    found = clicked(cube(20), Shrinking())
    found.add_click((29, 29, 29), 0)
    assert len(found.model.encoded) == 1

    class Growing(Threshold):
        def decode(self, embedding, coords_vox, labels, previous=None):
            logits, iou = super().decode(embedding, coords_vox, labels, previous)
            return logits + 100 * (labels.shape[1] > 1), iou

    found = clicked(cube(6), Growing())
    assert len(found.model.encoded) == 2
    prediction = found.add_click((34, 30, 30), 1)
    assert len(found.model.encoded) == 3  # finer, first, and one of twice the spacing, which holds the whole scan
    assert prediction.region.shape == (60, 60, 60)
    assert prediction.mask.all()


class ByContrast(Threshold):
    """Logits that are lower the more the brightest voxel of the crop stands out, which it does less in finer crops."""

    def decode(self, embedding, coords_vox, labels, previous=None):
        logits, iou = super().decode(embedding, coords_vox, labels, previous)
        return logits - 0.02 * embedding.amax(), iou


def test_the_finer_crop_counts_inside_and_gives_way_to_the_coarser_without_a_seam() -> None:
    index = np.moveaxis(np.indices((120, 120, 120)), 0, -1)  # of 1 mm
    blob = np.exp(-((index - 60) ** 2).sum(-1) / (2 * 1.5**2))
    array = (1 + 0.001 * index[..., 0] + 90 * blob).astype(np.float32)
    volume, click = from_array(array, np.eye(4)), (60, 60, 60)
    shown = clicked(volume, ByContrast(level=0.5), click, obey=False)
    assert len(shown.model.encoded) == 2
    merged = shown.lesion(1)
    coarse = clicked(volume, ByContrast(level=0.5), click, obey=False, zoom=False).lesion(1)
    fine = clicked(volume, ByContrast(level=0.5), click, obey=False, zoom=False, spacing_mm=0.5).lesion(1)
    assert fine.region.shape == (24, 24, 24)
    assert merged.region == coarse.region
    inner = fine.region.within(merged.region)
    outside = np.ones(merged.logits.shape, bool)
    outside[inner] = False
    np.testing.assert_array_equal(merged.logits[outside], coarse.logits[outside])
    inside, other = merged.logits[inner], coarse.logits[inner]
    # The outermost eighth of the crop are 3 mm: three voxels to each side.
    deep = (slice(3, -3),) * 3
    np.testing.assert_allclose(inside[deep], fine.logits[deep], atol=1e-5)
    apart = np.abs(fine.logits - other)
    assert apart[0].min() > 0.2  # pasted, there would be a jump of this size everywhere
    ratio = np.abs(inside - other) / apart
    assert ratio.max() <= 1 + 1e-4
    for axis in range(3):
        # On its way to each face the finer crop loses about a third per voxel: 5/6, 1/2, 1/6 by distance from the face.
        middle = np.moveaxis(ratio, axis, 0)[:, 12, 12]
        np.testing.assert_allclose(middle[:4], [0.5 / 6, 2.5 / 6, 4.5 / 6, 1], atol=1e-3)
        np.testing.assert_allclose(middle[-4:], [1, 5.5 / 6, 3.5 / 6, 1.5 / 6], atol=1e-3)


def test_predicted_iou_is_that_of_the_crops_that_decide_the_mask() -> None:
    found = clicked(cube(6))
    # The cube begins at the click. Its last voxel of six lies 3.5 voxels of the finer crop from that crop's face, where
    # the finer crop has weight 3.5 / 6. The first crop's predicted IoU is 0.51, the finer one's 0.52.
    finer = ((5 + 3.5 / 6) / 6) ** 3
    assert found.lesion(1).predicted_iou == pytest.approx(0.51 * (1 - finer) + 0.52 * finer, abs=1e-6)
    assert clicked(cube(20)).lesion(1).predicted_iou == pytest.approx(0.51)


def test_a_finer_crop_starts_from_the_lesion_in_the_coarser() -> None:
    volume = cube(6)
    volume.array[10:25, 10:25, 10:25] = 10  # in the mask, too, but not clicked
    found = clicked(volume)
    (_, _, first), (_, _, finer) = found.model.decoded
    assert first is None
    # The cube's 6 voxels are 24 of the finer crop: from its voxel 24 - 2 on, half of the way to the neighbour.
    inside = (finer[0, 0] > 0).numpy()
    assert inside[24:44, 24:44, 24:44].all()
    assert not inside[:22].any()
    assert float(finer.max()) == pytest.approx(4)
    assert float(finer.min()) == pytest.approx(-10)


def test_undo_takes_back_what_was_zoomed() -> None:
    found, never = (clicked(cube(5, (28, 28, 28)), Remembering(24, level=3.0)) for _ in range(2))
    assert len(found.model.encoded) == 2
    found.add_click((33, 30, 30), 1)
    found.add_click((31, 27, 30), 0)
    found.undo(1)
    same(found.undo(1), never.lesion(1))
    same(found.add_click((30, 34, 30), 0), never.add_click((30, 34, 30), 0))
    assert len(found.model.encoded) == len(never.model.encoded) == 2


def test_start_masks_zoom_by_their_own_extent() -> None:
    volume = cube(13)
    for side, passes in ((3, 2), (6, 2), (13, 1)):
        mask = np.zeros(volume.array.shape, bool)
        mask[tuple(slice(c, c + side) for c in CLICK)] = True
        found = predictor(scan=volume)
        found.add_mask(mask)
        found.add_click((31, 31, 31))
        assert len(found.model.encoded) == passes
        assert all(float(previous.max()) == pytest.approx(4) for _, _, previous in found.model.decoded)
    # The network's mask then does not count: here it is as small as possible.
    found = predictor(Threshold(level=100), scan=volume)
    found.add_mask(mask)
    found.add_click((31, 31, 31))
    assert len(found.model.encoded) == 1


def test_every_site_zooms_by_itself_in_all_its_mirrorings() -> None:
    volume = cube(6, shape=(120, 60, 60))
    volume.array[100:116, 28:44, 28:44] = 10
    for flips, crops in ((False, 1), (True, 8)):
        found = clicked(volume, flips=flips)
        assert len(found.model.encoded) == 2 * crops
        prediction = found.add_click((104, 34, 34))  # of 32 mm: seen in one crop
        assert len(found.model.encoded) == 3 * crops
        assert prediction.mask.sum() == 6**3 + 16**3
        assert found.crop_holds((104, 34, 34), 1)
        found.undo(1)
        assert not found.crop_holds((104, 34, 34), 1)


def test_what_was_encoded_ahead_is_used_and_only_the_finer_crop_remains(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain, ahead = clicked(cube(6)), predictor()
    ahead.set_image({"PT": cube(6)})
    for module in ("lesion_crops", "predictor"):
        monkeypatch.setattr(f"sammed3d_ft.prompted.{module}.crops_at_once", lambda device: 2)
    ahead.encode_ahead([CLICK])
    assert len(ahead.model.encoded) == 1
    same(ahead.add_click(CLICK), plain.lesion(1))
    assert len(ahead.model.encoded) == 2


def test_a_crop_smaller_than_a_voxel_still_has_the_clicked_one() -> None:
    volume = from_array(np.random.default_rng(1).gamma(2, 3, (9, 9, 9)).astype(np.float32), np.diag([40, 40, 40, 1]))
    for obey in (False, True):
        prediction = clicked(volume, Threshold(12), (4.4, 4.2, 3.8), spacing_mm=0.5, obey=obey).lesion(1)
        assert prediction.region.holds(np.array((4, 4, 4)))
        assert np.isfinite(prediction.logits).all()


def test_all_48_storage_orders_are_zoomed_and_obeyed_alike() -> None:
    affine = affine_of(Rotation.from_euler("xyz", (7, -11, 5), degrees=True), (2.1, 1.7, 2.6), (-61.7, 12.3, -40.9))
    rng = np.random.default_rng(3)
    array = ndimage.gaussian_filter(rng.gamma(2.0, 3.0, (50, 33, 26)), 1.5)
    array[10:13, 14:17, 11:13] += 25
    clicks = [((11.3, 15.1, 11.6), 1), ((14.2, 14.4, 11.9), 0), ((44.4, 12.2, 9.8), 1), ((40.3, 15.3, 11.2), 0)]
    reference: Any = None
    for order, signs in ORIENTATIONS:
        stored, its_affine = stored_as(array.astype(np.float32), affine, order, signs)
        volume = from_array(stored, its_affine.astype(np.float32))  # as a file would hold it
        found = predictor(Remembering(24, level=3.0), 1.9, scan=volume)
        for position, label in clicks:
            found.add_click(volume.to_vox(affine[:3, :3] @ position + affine[:3, 3]), label)
        if reference is None:
            reference = found.lesion(1)
            assert len(found.model.encoded) == 3  # two sites, the first of them zoomed in
            assert 20 < reference.mask.sum() < 200
        same(found.lesion(1), reference)
