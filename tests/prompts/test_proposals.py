"""Proposals on images with known maxima."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prompts import read_clicks
from prompts.proposals import clicks_of, proposals_from_pet, proposals_on_grid
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import from_array
from sammed3d_ft.images.images import write_float
from tests.support.command import command

SPACING = (2.0, 2.0, 4.0)


def image() -> np.ndarray:
    """SUV 1, with a hot spot of 8, one of 6 joined to it at 24 mm, one voxel of 9, and a large region of 5."""
    pet = np.ones((40, 40, 20), np.float32)
    pet[5:8, 5:8, 5:7] = 8
    pet[8:17, 6, 5] = 4.5
    pet[17:20, 5:8, 5:7] = 6
    pet[6, 6, 5], pet[18, 6, 5] = 8.5, 6.5
    pet[30, 5, 15] = 9
    pet[20:38, 20:38, 2:18] = 5
    pet[25, 25, 10] = 7
    return pet


def test_maxima_are_found_in_their_order() -> None:
    found = proposals_from_pet(image(), SPACING, suv=4, min_ml=0.1, max_ml=30)
    assert [p.coords_vox for p in found] == [(6, 6, 5), (18, 6, 5)]  # one voxel is 0.016 ml, the region 83 ml
    assert [p.score for p in found] == [8.5, 6.5]
    assert found[0].region_ml == found[1].region_ml == pytest.approx((18 + 9 + 18) * 0.016)


def test_limits_decide_what_is_left_out() -> None:
    assert [p.score for p in proposals_from_pet(image(), SPACING, suv=4, min_ml=0, max_ml=30)] == [9, 8.5, 6.5]
    large = proposals_from_pet(image(), SPACING, suv=4, min_ml=1, max_ml=100)
    assert (25, 25, 10) in [p.coords_vox for p in large]
    assert [p.score for p in proposals_from_pet(image(), SPACING, suv=8.2, min_ml=0)] == [9, 8.5]
    assert proposals_from_pet(image(), SPACING, suv=20) == []


def test_of_near_maxima_the_higher_one_stays() -> None:
    near = proposals_from_pet(image(), SPACING, suv=4, max_ml=30, separation_mm=25)  # they are 24 mm apart
    assert [p.coords_vox for p in near] == [(6, 6, 5)]


def test_the_grid_takes_the_highest_voxel_of_each_cube_in_the_body() -> None:
    pet = np.zeros((20, 20, 10), np.float32)
    pet[:10] = 0.5
    pet[3, 4, 5] = 2
    found = proposals_on_grid(pet, SPACING, every_mm=20)
    assert len(found) == 1 * 2 * 2
    assert found[0].coords_vox == (3, 4, 5)
    assert found[0].score == 2
    with pytest.raises(InputError, match="finer than the voxels"):
        proposals_on_grid(pet, SPACING, every_mm=1)


@pytest.mark.parametrize("wrong", [{"suv": 0}, {"min_ml": 5, "max_ml": 2}, {"separation_mm": -1}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="invalid proposal settings"):
        proposals_from_pet(image(), SPACING, **wrong)


def test_clicks_lie_where_the_proposals_do_and_the_command_writes_them(tmp_path: Path) -> None:
    affine = np.array([[0, -2, 0, 10], [2, 0, 0, -20], [0, 0, 4, 5], [0, 0, 0, 1.0]])
    pet = from_array(image(), affine)
    found = proposals_from_pet(pet.array, pet.spacing_mm, suv=4, max_ml=30)
    expected = [affine[:3, :3] @ place + affine[:3, 3] for place in ((6, 6, 5), (18, 6, 5))]
    clicks = clicks_of(found, pet.affine)
    np.testing.assert_allclose([c.position_mm for c in clicks], expected, atol=1e-9)
    assert [(c.label, c.lesion) for c in clicks] == [(1, 1), (1, 2)]

    write_float(tmp_path / "pet.nii.gz", pet.array, pet)
    out = tmp_path / "clicks.json"
    told = command("prompts", "propose", tmp_path / "pet.nii.gz", "--out", out, "--suv", 4, "--max-ml", 30)
    assert "2 proposals" in told
    np.testing.assert_allclose([c.position_mm for c in read_clicks(out)], expected, atol=1e-4)
