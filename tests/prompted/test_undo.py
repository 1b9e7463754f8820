"""Undo: bit-equal to never having clicked, for the current and later predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import from_array
from sammed3d_ft.model.build import seeded_model
from tests.support.stand_ins import Remembering, plain_scan, predictor, same


def streak() -> Any:
    """A scan whose lesion leaves a crop of 24 voxels of 2 mm, so that it is seen in coarser ones too."""
    array = ndimage.gaussian_filter(np.random.default_rng(2).gamma(2.0, 3.0, (90, 30, 44)), 2).astype(np.float32)
    return from_array(array, np.diag([2.0, 2.0, 2.0, 1.0]))


CLICKS = [((41, 14, 20), 1), ((44, 15, 22), 0), ((56, 14, 20), 1), ((40, 18, 25), 0)]


@pytest.mark.parametrize("flips", [False, True])
@pytest.mark.parametrize("start", [False, True])
def test_undone_clicks_leave_no_trace(start: bool, flips: bool) -> None:
    volume = streak()
    mask = np.zeros(volume.array.shape, bool)
    mask[38:45, 12:17, 18:23] = True

    def fresh() -> Any:
        found = predictor(Remembering(24, level=-0.5), flips=flips, scan=volume)
        if start:
            found.add_mask(mask)
        return found

    never, undone = fresh(), fresh()
    as_it_was = []
    for count, (position, label) in enumerate(CLICKS):
        for other_position, other_label in (((39, 12, 19), 1 - label), ((42, 16, 21), label))[: 1 + count % 2]:
            if count or start or other_label:
                undone.add_click(other_position, other_label)
        while undone.lesions and len(undone.lesion(1).clicks) > count:
            undone.undo(1)
        if count:
            same(undone.lesion(1), never.lesion(1))
        as_it_was.append(never.add_click(position, label))
        same(undone.add_click(position, label), as_it_was[-1])
    assert len(never.lesion(1).clicks) == len(CLICKS)
    assert never.lesion(1).region.shape[0] > 24  # it was followed
    # Undo everything.
    encoded = len(undone.model.encoded)
    for count in range(len(CLICKS) - 1, 0, -1):
        same(undone.undo(1), as_it_was[count - 1])
    last = undone.undo(1)
    assert len(undone.model.encoded) == encoded
    if start:
        same(last, fresh().lesion(1))
        with pytest.raises(InputError, match="mask without clicks, so there is nothing to undo; `remove`"):
            undone.undo(1)
    else:
        assert last is None
        assert undone.lesions == ()
        assert not undone.mask().any()


def test_undo_with_a_real_network() -> None:
    found, never = (predictor(seeded_model("mini", 1)) for _ in range(2))
    for each in (found, never):
        each.set_image({"PT": plain_scan()})
        each.add_clicks([(20, 22, 18), (23, 20, 18)], [1, 1])
    found.add_clicks([(10, 30, 20), (20, 24, 18)], [0, 1])  # two clicks, and undone one by one
    found.undo(1)
    found.undo(1)
    same(found.lesion(1), never.lesion(1))
    same(found.add_click((18, 22, 20), 0), never.add_click((18, 22, 20), 0))


def test_a_click_that_a_mask_was_given_by_itself_goes_with_the_users_first() -> None:
    found = predictor(scan=plain_scan())
    mask = np.zeros((40, 44, 36), bool)
    mask[8:15, 20:25, 16:21] = True
    as_given = found.add_mask(mask)
    first = found.add_click((11, 30, 18), 0)
    assert first.clicks == (((11.0, 22.0, 18.0), 1), ((11.0, 30.0, 18.0), 0))
    found.add_click((13, 22, 18))
    same(found.undo(1), first)
    same(found.undo(1), as_given)


def test_lesions_are_removed_one_by_one() -> None:
    found = predictor(scan=plain_scan())
    for number, position in enumerate([(20, 22, 18), (10, 12, 9)], start=1):
        found.add_click(position, lesion=number)
    other = found.lesion(2)
    assert found.undo(1) is None
    assert found.lesions == (2,)
    assert found.lesion(2) is other
    found.remove(2)
    assert found.lesions == ()
    for act in (found.undo, found.remove):
        with pytest.raises(InputError, match="there is no lesion 2; existing lesions: none"):
            act(2)
