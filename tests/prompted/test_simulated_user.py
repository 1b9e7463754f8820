"""The simulated user: click positions, results, and both protocols with hand-made models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from prompts.depth import deepest_point
from prompts.lesions import lesions_from_mask
from sammed3d_ft.dataset.case_images import read_case
from sammed3d_ft.dataset.manifest import Case
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.crops import Region
from sammed3d_ft.images.grids import Volume, from_array
from sammed3d_ft.prompted.autopet_steps import autopet_steps
from sammed3d_ft.prompted.simulated_user import simulate_case, simulate_files
from tests.support.storage_orders import stored_as
from tests.support.tiny_cases import write_case


class Model:
    """Clickable; each lesion's mask is a function of its clicks, inside a region."""

    modalities = ("PT",)

    def __init__(self, mask_of: Callable[[list[tuple[tuple[float, ...], int]]], np.ndarray], region: Region) -> None:
        self.mask_of, self.region = mask_of, region
        self.lesions: dict[int, list[tuple[tuple[float, ...], int]]] = {}
        self.removed: list[int] = []

    def set_image(self, images: Mapping[str, Volume]) -> None:
        self.lesions, self.removed = {}, []

    def add_click(self, position_vox: Any, label: int = 1, lesion: int = 1) -> Any:
        clicks = self.lesions.setdefault(lesion, [])
        clicks.append((tuple(np.asarray(position_vox, float).tolist()), label))
        mask = self.mask_of(clicks)[self.region.slices].astype(bool)
        return SimpleNamespace(region=self.region, mask=mask, predicted_iou=0.1 * len(clicks))

    def remove(self, lesion: int) -> None:
        self.removed.append(lesion)


WHOLE = Region((0, 0, 0), (20, 12, 12))


def volume(array: np.ndarray) -> Volume:
    return from_array(array, np.diag([2.0, 2.0, 2.0, 1.0]))


def boxes(*spans: tuple[int, int]) -> np.ndarray:
    mask = np.zeros((20, 12, 12), np.uint8)
    for start, stop in spans:
        mask[start:stop, 3:8, 3:8] = 1
    return mask


def test_the_user_sees_each_mask_and_clicks_its_deepest_error() -> None:
    label = volume(boxes((2, 7), (11, 16)))
    after = {1: boxes((2, 4)), 2: boxes((2, 10)), 3: boxes((2, 7))}

    def mask_of(clicks: list[Any]) -> np.ndarray:
        if clicks[0][0][0] > 10:
            return boxes((11, 16))  # the second lesion is right at once
        return after[len(clicks)]

    model = Model(mask_of, WHOLE)
    masks: dict[int, np.ndarray] = {}
    score = simulate_case(model, {"PT": label}, label, [1, 2, 3, 5], case="c", on_mask=masks.__setitem__)
    assert model.lesions == {
        1: [((4.0, 5.0, 5.0), 1), ((5.0, 5.0, 5.0), 1), ((8.0, 5.0, 5.0), 0)],
        2: [((13.0, 5.0, 5.0), 1)],  # perfect: no further click
    }
    assert {k: np.array_equal(mask, boxes(*spans)) for (k, mask), spans in zip(
        masks.items(), [[(2, 4), (11, 16)], [(2, 10), (11, 16)], [(2, 7), (11, 16)], [(2, 7), (11, 16)]], strict=True
    )} == dict.fromkeys((1, 2, 3, 5), True)  # fmt: skip
    assert score.dice == pytest.approx({1: 2 * 7 / (7 + 10), 2: 2 * 10 / (13 + 10), 3: 1, 5: 1})
    assert score.lesions[0].dice == pytest.approx({1: 2 * 2 / 7, 2: 2 * 5 / 13, 3: 1, 5: 1})
    assert score.lesions[0].predicted_iou == pytest.approx({1: 0.1, 2: 0.2, 3: 0.3, 5: 0.3})
    assert score.lesions[1].volume_ml == pytest.approx(125 * 0.008)
    assert [(click.lesion, click.label) for click in score.clicks] == [(1, 1), (1, 1), (1, 0), (2, 1)]
    assert score.clicks[2].position_mm == (16.0, 10.0, 10.0)
    assert model.removed == [1, 2]


def test_a_method_that_encodes_ahead_gets_all_first_clicks_first() -> None:
    label = volume(boxes((2, 7), (11, 16)))
    model, told = Model(ball_clicks, WHOLE), []

    class Ahead(Model):
        def encode_ahead(self, positions_vox: Any) -> None:
            assert not self.lesions
            told.extend(tuple(position) for position in positions_vox)

    ahead = Ahead(ball_clicks, WHOLE)
    scores = [simulate_case(one, {"PT": label}, label, [1, 3], case="c") for one in (model, ahead)]
    assert told == [(4.0, 5.0, 5.0), (13.0, 5.0, 5.0)]
    assert scores[0] == scores[1]


def in_whole_volumes(model: Model, label: Volume, rounds: int) -> tuple[list[dict[int, float]], dict[int, float]]:
    """Dice of each lesion and of the case, by the plain form: every mask and error as large as the scan."""
    lesions, count = lesions_from_mask(label.array)
    unions = {k: np.zeros(label.array.shape, bool) for k in range(1, rounds + 1)}
    scores = []
    for number in range(1, count + 1):
        truth, dice, done = lesions == number, {}, False
        position, sign = deepest_point(truth, label.spacing_mm)[0].astype(float), 1
        for k, union in unions.items():
            if not done:
                found = model.add_click(position, sign, number)
                mask, known = np.zeros_like(truth), np.zeros_like(truth)
                mask[found.region.slices], known[found.region.slices] = found.mask, True
                missed, false = (deepest_point(e & known, label.spacing_mm) for e in (truth & ~mask, mask & ~truth))
                done = missed is None and false is None
                sign = int(false is None or (missed is not None and missed[1] >= false[1]))
                if not done:
                    position = (missed if sign else false)[0].astype(float)
            dice[k] = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
            union |= mask
        scores.append(dice)
    whole = lesions > 0
    return scores, {k: 2 * (u & whole).sum() / (u.sum() + whole.sum()) for k, u in unions.items()}


@pytest.mark.parametrize("region", [WHOLE, Region((3, 2, 0), (17, 12, 7)), Region((6, 0, 0), (9, 4, 4))])
def test_boxes_give_what_whole_volumes_give(region: Region) -> None:
    """Also where a region holds a part of a lesion, or nothing of it; and after more than eight numbers of clicks."""
    label = volume(ndimage.gaussian_filter(np.random.default_rng(1).normal(size=(20, 12, 12)), 1) > 0.35)
    models = Model(ball_clicks, region), Model(ball_clicks, region)
    score = simulate_case(models[0], {"PT": label}, label, list(range(1, 11)), case="c")
    lesions, case = in_whole_volumes(models[1], label, 10)
    assert len(lesions) > 3
    assert models[0].lesions == models[1].lesions
    assert [lesion.dice for lesion in score.lesions] == lesions
    assert score.dice == case


def test_lesions_as_one_are_clicked_as_one() -> None:
    label = volume(boxes((2, 7), (11, 16)))
    model = Model(lambda clicks: label.array.astype(bool), WHOLE)
    score = simulate_case(model, {"PT": label}, label, [1, 3], case="c", targets="all")
    assert {number: len(clicks) for number, clicks in model.lesions.items()} == {1: 1}
    assert score.dice == {1: 1.0, 3: 1.0}


def test_a_case_without_lesions_has_masks_and_no_dice() -> None:
    label = volume(boxes())
    masks: dict[int, np.ndarray] = {}
    model = Model(lambda clicks: label.array.astype(bool), WHOLE)
    score = simulate_case(model, {"PT": label}, label, [1, 3], case="c", on_mask=masks.__setitem__)
    assert score.dice is None
    assert not model.lesions
    assert {k: mask.any() for k, mask in masks.items()} == {1: False, 3: False}


def test_files_are_read_and_refused_in_one_line(tmp_path: Any) -> None:
    case = write_case(tmp_path, "c", [((12, 12, 12), 13.0)])
    truth = read_case(case, ["PT"])[1].array.astype(bool)
    model = Model(lambda clicks: truth, Region((0, 0, 0), (24, 24, 24)))
    assert simulate_files(model, case, [1]).dice == {1: 1.0}
    with pytest.raises(InputError, match="case c: training and scoring need a label"):
        read_case(Case("c", case.images, None), ["PT"])
    with pytest.raises(InputError, match="case c: the manifest has no CT image"):
        read_case(case, ["PT", "CT"])
    other = write_case(tmp_path, "d", [((12, 12, 12), 13.0)], spacing_mm=(6.0, 6.0, 5.0))
    with pytest.raises(InputError, match="case c: its label is on another grid than its PT"):
        read_case(Case("c", case.images, other.label), ["PT"])


def ball_clicks(clicks: list[Any]) -> np.ndarray:
    """Balls of 2 voxels at foreground clicks, without balls at background clicks."""
    index = np.moveaxis(np.indices((20, 12, 12)), 0, -1)
    balls = {kind: np.zeros((20, 12, 12), bool) for kind in (0, 1)}
    for position, label in clicks:
        balls[label] |= np.linalg.norm(index - np.array(position), axis=-1) <= 2
    return balls[1] & ~balls[0]


def autopet_scan() -> tuple[Volume, Volume]:
    """A lesion with uptake, one without, and uptake that is not a lesion."""
    truth = np.zeros((20, 12, 12), np.uint8)
    truth[2:5, 3:6, 3:6] = 1
    truth[9:12, 3:6, 3:6] = 1
    rng = np.random.default_rng(0)
    pet = rng.uniform(0.5, 1.0, truth.shape).astype(np.float32)
    pet[2:5, 3:6, 3:6] += 8
    pet[3, 4, 4] = 12
    pet[16:19, 7:10, 7:10] = 20
    pet[17, 8, 8] = 25
    return volume(truth), volume(pet)


def test_autopet_steps_begin_with_proposals_and_end_with_ten_pairs() -> None:
    label, pet = autopet_scan()
    model = Model(ball_clicks, WHOLE)
    masks = list(autopet_steps(model, {"PT": pet}, label, pet))
    assert len(masks) == 11
    assert np.array_equal(masks[0], ball_clicks([((3, 4, 4), 1), ((17, 8, 8), 1)]))
    # Proposals in order of uptake: first the one that is not a lesion. Its first background click removes it.
    assert model.lesions[1][0] == ((17.0, 8.0, 8.0), 1)
    assert model.lesions[2][0] == ((3.0, 4.0, 4.0), 1)
    assert masks[0][17, 8, 8]
    assert not masks[1][14:].any()
    assert len(model.lesions[1]) == 1
    # Both lesions are clicked in the first two steps: the one that was missed begins a new lesion.
    assert masks[2][10, 4, 4]
    assert model.lesions[3][0] == ((10.0, 4.0, 4.0), 1)
    given = [label for clicks in model.lesions.values() for _, label in clicks]
    assert given.count(1) == 2 + 10  # proposals, and ten of the user's
    assert all(not np.shares_memory(a, b) for a, b in pairwise(masks))


def test_autopet_steps_do_not_depend_on_how_the_scan_is_kept_in_memory() -> None:
    """Clicks are drawn in the file's own axis order and given in canonical voxels."""
    label, pet = autopet_scan()
    order, signs = (2, 0, 1), (-1, 1, -1)
    turned = [from_array(*stored_as(volume.array, volume.affine, order, signs)) for volume in (label, pet)]
    for mine, canonical in zip(turned, (label, pet), strict=True):
        assert np.array_equal(mine.array, canonical.array)
    masks = list(autopet_steps(Model(ball_clicks, WHOLE), {"PT": turned[1]}, turned[0], turned[1]))
    truth = label.array > 0
    first = ball_clicks([((3, 4, 4), 1), ((17, 8, 8), 1)])
    assert np.array_equal(masks[0], first)
    assert (masks[10] & truth).sum() > (masks[0] & truth).sum()
    assert not (masks[10] & ~truth)[14:].any()


def test_autopet_steps_without_a_lesion_or_on_two_grids() -> None:
    label, pet = autopet_scan()
    empty = volume(np.zeros(label.array.shape, np.uint8))
    masks = list(autopet_steps(Model(ball_clicks, WHOLE), {"PT": pet}, empty, pet))
    assert len(masks) == 11
    assert masks[0].any()
    assert not masks[10][14:].any()
    shifted = from_array(pet.array, np.diag([2.0, 2.0, 2.1, 1.0]))
    with pytest.raises(InputError, match="the PET is on another grid than the label"):
        next(autopet_steps(Model(ball_clicks, WHOLE), {"PT": pet}, label, shifted))
