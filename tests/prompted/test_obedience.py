"""Enforced clicks: the mask agrees with the clicks for every network, scan and order of clicks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cc3d
import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sammed3d_ft.images.crops import Region
from sammed3d_ft.images.grids import from_array
from sammed3d_ft.prompted.lesion_crops import PlacedClick
from sammed3d_ft.prompted.obedience import obeyed, with_reach
from tests.support.stand_ins import Threshold, plain_scan, predictor

SHAPE = (13, 12, 11)


def clicks_at(*given: tuple[tuple[float, ...], int], shape: tuple[int, ...] = SHAPE) -> list[PlacedClick]:
    return [PlacedClick.at(np.array(position, float), label, shape) for position, label in given]


def check_obeyed(mask: np.ndarray, region: Region, clicks: Any, shape: tuple[int, ...]) -> None:
    """The newest click on a voxel counts, and every 18-connected component contains a foreground click."""
    newest: dict[tuple[int, ...], int] = {}
    for position, label in clicks:
        voxel = np.minimum(np.floor(np.array(position) + 0.5), np.array(shape) - 1) - region.start
        newest[tuple(voxel.astype(int).tolist())] = label
    for voxel, label in newest.items():
        assert mask[voxel] == (label == 1)
    components = cc3d.connected_components(mask, connectivity=18)
    clicked = {int(components[voxel]) for voxel, label in newest.items() if label == 1}
    assert set(np.unique(components)) - {0} == clicked


class Stubborn(Threshold):
    """Logits unrelated to the clicks: noise of a given smoothness and offset, different in each pass."""

    def __init__(self, seed: int, coarse: int, offset: float) -> None:
        super().__init__(12)
        self.rng, self.coarse, self.offset = np.random.default_rng(seed), coarse, offset

    def decode(self, embedding, coords_vox, labels, previous=None):
        super().decode(embedding, coords_vox, labels, previous)
        noise = torch.from_numpy(self.rng.normal(size=(1, 1, *[self.coarse] * 3)).astype(np.float32))
        return torch.nn.functional.interpolate(5 * noise + self.offset, size=(12, 12, 12)), torch.rand(1, 1)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(*[st.integers(1, 14)] * 3),
    spacing_mm=st.tuples(*[st.sampled_from([0.7, 1.5, 4.0, 30.0])] * 3),
    coarse=st.integers(1, 14),
    offset=st.sampled_from([-30.0, -3.0, 0.0, 3.0, 30.0]),
    count=st.integers(1, 9),
    corrections=st.booleans(),
)
def test_any_clicks_on_any_logits_are_obeyed(seed, shape, spacing_mm, coarse, offset, count, corrections) -> None:
    rng = np.random.default_rng(seed)
    scan = tuple(np.array(shape) + 3)
    logits = 5 * np.kron(rng.normal(size=[coarse] * 3), np.ones([14 // coarse + 1] * 3)) + offset
    logits = logits[tuple(slice(0, n) for n in shape)].astype(np.float32)
    x, y, z = shape
    region = Region((1, 2, 3), (x + 1, y + 2, z + 3))
    image = rng.gamma(2.0, 3.0, scan).astype(np.float32) * int(rng.integers(2))  # or flat
    clicks = [
        (tuple((rng.integers(0, shape) + region.start).tolist()), 1 if number == 0 else int(rng.integers(2)))
        for number in range(count)
    ]
    placed, spacing, before = clicks_at(*clicks, shape=scan), np.array(spacing_mm), logits.copy()
    if corrections:
        earlier = rng.random(shape) < rng.random()  # the mask that was corrected; its border may be anywhere
        placed = [with_reach(click, region, earlier, spacing) for click in placed]
    found = obeyed(logits, region, placed, image, spacing)
    check_obeyed(found > 0, region, clicks, scan)
    np.testing.assert_array_equal(obeyed(found, region, placed, image, spacing), found)
    np.testing.assert_array_equal(logits, before)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**31),
    shape=st.tuples(*[st.integers(3, 40)] * 3),
    coarse=st.sampled_from([2, 4, 12]),
    offset=st.sampled_from([-30.0, 0.0, 30.0]),
    corners=st.booleans(),
)
def test_a_predictor_obeys_any_clicks_whatever_its_network(seed, shape, coarse, offset, corners) -> None:
    rng = np.random.default_rng(seed)
    volume = from_array(rng.gamma(2.0, 3.0, shape).astype(np.float32), np.diag([2.0, 1.5, 3.0, 1.0]))
    found = predictor(Stubborn(seed, coarse, offset), scan=volume)
    clicks: Any = []
    asked: Any = []
    for number in range(5):
        # Some on the outer faces of voxels, and several on one voxel.
        position = rng.integers(-1, shape) + 0.5 if corners else rng.uniform(-0.5, np.array(shape) - 0.5)
        label = 1 if number == 0 else int(rng.integers(2))
        if number and rng.random() < 0.2:
            position = np.array(clicks[-1][0])
        asked.append((position, label))
        prediction = found.add_click(position, label)
        clicks = prediction.clicks
        check_obeyed(prediction.mask, prediction.region, clicks, shape)
    placed = [PlacedClick.at(np.array(position), label, shape) for position, label in clicks]
    again = obeyed(prediction.logits, prediction.region, placed, volume.array, volume.spacing_mm)
    np.testing.assert_array_equal(again, prediction.logits)
    at_once = predictor(Stubborn(seed, coarse, offset), scan=volume)
    positions, labels = zip(*asked, strict=True)
    np.testing.assert_array_equal(at_once.add_clicks(positions, labels).logits, prediction.logits)


def test_a_mask_that_obeys_already_stays_as_it_is() -> None:
    logits = np.full(SHAPE, -3.0, np.float32)
    logits[3:9, 3:9, 3:9] = 2.0
    clicks = clicks_at(((5, 5, 5), 1), ((1, 1, 1), 0))
    image = np.ones(SHAPE, np.float32)
    before = logits.copy()
    found = obeyed(logits, Region((0, 0, 0), SHAPE), clicks, image, np.ones(3))
    np.testing.assert_array_equal(found, before)
    np.testing.assert_array_equal(logits, before)  # the argument is not changed either


def test_components_without_a_foreground_click_become_background() -> None:
    logits = np.full(SHAPE, -3.0, np.float32)
    logits[1:4, 1:4, 1:4] = 2.0
    logits[4, 4, 3] = 1.0  # touches an edge of the first: 18-connected
    logits[6:9, 6:9, 6:9] = 5.0
    logits[5, 5, 5] = 4.0  # touches a corner of the second: a component of its own
    region = Region((10, 20, 30), (23, 32, 41))
    clicks = [PlacedClick.at(np.array([12.0, 22.0, 32.0]), 1, (100, 100, 100))]
    found = obeyed(logits, region, clicks, np.ones((100, 100, 100), np.float32), np.ones(3))
    expected = logits.copy()
    expected[6:9, 6:9, 6:9] = -2.0
    expected[5, 5, 5] = -2.0
    np.testing.assert_array_equal(found, expected)


def test_of_two_clicks_on_one_voxel_the_newest_holds() -> None:
    logits, image = np.full(SHAPE, -3.0, np.float32), np.ones(SHAPE, np.float32)
    logits[4:7, 4:7, 4:7] = 2.0
    region = Region((0, 0, 0), SHAPE)
    on, off = ((5, 5, 5), 1), ((5.3, 4.8, 5.2), 0)
    assert obeyed(logits, region, clicks_at(on, off, on), image, np.ones(3))[5, 5, 5] > 0
    assert not (obeyed(logits, region, clicks_at(on, off), image, np.ones(3)) > 0).any()


def line(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(-1, 1, 1)


def on_a_line(logits: np.ndarray, image: np.ndarray, *clicks: tuple[float, int]) -> list[int]:
    """The mask of a row of voxels of 2 mm."""
    placed = clicks_at(*[((x, 0, 0), label) for x, label in clicks], shape=logits.shape)
    found = obeyed(logits, Region((0, 0, 0), (len(logits), 1, 1)), placed, image, np.full(3, 2.0))
    return (found[:, 0, 0] > 0).astype(int).tolist()


def test_a_correction_takes_its_neighbourhood_along() -> None:
    hot = line(1, 1, 9, 9, 9, 9, 9, 9, 9, 1, 1, 1)
    part = line(-5, -5, 3, 3, -5, -5, -5, -5, -5, -5, -5, -5)
    # The missed voxel 6 lies three voxels from the mask: two to either side turn with it, as far as they look like it.
    assert on_a_line(part, hot, (2, 1), (6, 1)) == [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    # Likewise in a uniform image, but not beyond the midpoint to a click of the other kind.
    flat = np.ones_like(hot)
    assert on_a_line(part, flat, (2, 1), (6, 1)) == [0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0]
    assert on_a_line(part, flat, (2, 1), (6, 1), (8, 0)) == [0, 0, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0]
    # What is too much: voxel 7 lies two voxels from the mask's end, so one to either side goes; 6 would be the
    # middle to the foreground click, and 9 hangs together with nothing.
    much = line(-5, -5, 3, 3, 3, 3, 3, 3, 3, 3, -5, -5)
    assert on_a_line(much, flat, (2, 1), (7, 0)) == [0, 0, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]


def test_a_correction_reaches_to_the_border_of_the_mask_that_it_corrected() -> None:
    region, spacing_mm = Region((5, 0, 0), (17, 1, 1)), np.full(3, 2.0)
    seen = line(0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0) > 0  # voxels 7 to 14 of the scan
    place = {x: PlacedClick.at(np.array([x, 0.0, 0.0]), label, (40, 1, 1)) for x, label in ((11, 0), (7, 1), (16, 1))}
    reach_mm = {x: with_reach(click, region, seen, spacing_mm).reach_mm for x, click in place.items()}
    assert reach_mm == {11: 8.0, 7: None, 16: 4.0}  # to voxels 15 and 14; the click at 7 corrects nothing
    assert with_reach(PlacedClick.at(np.array([18.0, 0, 0]), 1, (40, 1, 1)), region, seen, spacing_mm).reach_mm is None
    assert with_reach(place[16], region, np.zeros_like(seen), spacing_mm).reach_mm is None  # nothing was found

    # Whatever the network makes of it later.
    flat = np.ones((12, 1, 1), np.float32)
    agreeing = line(-5, -5, 3, 3, 3, 3, 3, -5, 3, 3, -5, -5)
    corrected = replace(clicks_at(((7, 0, 0), 0), shape=flat.shape)[0], reach_mm=6.0)
    first = clicks_at(((2, 0, 0), 1), shape=flat.shape)
    before = agreeing.copy()
    found = obeyed(agreeing, Region((0, 0, 0), flat.shape), [*first, corrected], flat, spacing_mm)
    np.testing.assert_array_equal(agreeing, before)
    assert (found[:, 0, 0] > 0).tolist() == [False] * 2 + [True] * 3 + [False] * 7  # 5 to 9 are nearer than 6 mm


def test_a_far_correction_takes_only_what_looks_like_it() -> None:
    hot = line(*[9] * 8, *[1] * 8, *[9] * 6, *[1] * 30)
    seen = line(*[3] * 8, *[-5] * 44)
    click = clicks_at(((18, 0, 0), 1), shape=hot.shape)[0]
    first, region = clicks_at(((2, 0, 0), 1), shape=hot.shape), Region((0, 0, 0), hot.shape)
    click = with_reach(click, region, seen > 0, np.full(3, 2.0))
    assert click.reach_mm == 22.0
    found = obeyed(seen, region, [*first, click], hot, np.full(3, 2.0))
    assert (found[:, 0, 0] > 0).tolist() == (hot[:, 0, 0] > 5).tolist()


def test_a_click_where_nothing_was_found_reaches_six_millimetres_and_no_other_uptake() -> None:
    nothing = line(*[-5] * 15)
    same = np.ones_like(nothing)
    assert on_a_line(nothing, same, (7, 1)) == [0] * 5 + [1] * 5 + [0] * 5  # two voxels of 2 mm are nearer than 6 mm
    hot = line(1, 1, 1, 1, 1, 1, 8, 9, 1, 9, 1, 1, 1, 1, 1)
    assert on_a_line(nothing, hot, (7, 1)) == [0] * 6 + [1] * 2 + [0] * 7  # voxel 9 is as hot, and apart


def test_without_obedience_the_network_has_the_last_word() -> None:
    volume = plain_scan()
    shown = {}
    for obey in (False, True):
        found = predictor(Threshold(level=100), obey=obey)  # finds nothing
        found.set_image({"PT": volume})
        shown[obey] = found.add_click((20, 22, 18))
        assert found.obey is obey
    assert not shown[False].mask.any()
    assert (shown[False].logits < -90).all()
    assert shown[True].mask[20, 22, 18]
