"""Generic shapes for pre-training: one object, clicked inside, determined by its key."""

from __future__ import annotations

import cc3d
import numpy as np
import pytest
import torch

from sammed3d_ft.prompted.augment import AugmentationRanges
from sammed3d_ft.prompted.promptable_shapes import ShapeSamples, draw_form, draw_intensities
from sammed3d_ft.prompted.samples import SampleSettings

SIZE = 32


def samples(
    epoch: int = 0, count: int = 40, first: str = "uniform", jitter: int = 3, ambiguous: float = 0.0
) -> ShapeSamples:
    ranges = AugmentationRanges(jitter_vox=jitter)
    drawn = SampleSettings(SIZE, SIZE // 2, 3.0, first, ranges, seed=4, ambiguous=ambiguous)
    return ShapeSamples(count, drawn, epoch, first_index=100)


@pytest.mark.parametrize(
    ("first", "ambiguous"), [("uniform", 0.0), ("uniform", 1.0), ("deepest", 0.0), ("suvmax", 0.0)]
)
def test_the_click_lies_in_the_object_near_the_middle(first: str, ambiguous: float) -> None:
    dataset = samples(first=first, ambiguous=ambiguous)
    places = []
    for number in range(len(dataset)):
        sample = dataset[number]
        x, y, z = (int(c) for c in sample["coords_vox"])
        assert bool(sample["target"][0, x, y, z])
        assert sample["image"].shape == sample["target"].shape == (1, SIZE, SIZE, SIZE)
        assert sample["index"] == 100 + number
        assert sample["label"] == 1
        assert bool(torch.isfinite(sample["image"]).all())
        places.append([x, y, z])
    offsets = np.array(places) - SIZE // 2
    assert np.abs(offsets).max() == 3
    assert np.abs(offsets).min() == 0


def test_epoch_and_number_alone_decide_a_sample() -> None:
    first = samples()[7]
    np.random.default_rng(0).random(10)
    torch.rand(3)
    again = samples(count=8)[7]
    other = samples(epoch=1)[7]
    assert torch.equal(first["image"], again["image"])
    assert torch.equal(first["target"], again["target"])
    assert not torch.equal(first["image"], other["image"])


def test_forms_are_one_piece_of_all_sizes() -> None:
    rng = np.random.default_rng(3)
    forms = [draw_form(SIZE, rng) for _ in range(150)]
    sizes = np.array([(form > 0).sum() for form in forms])
    for form in forms:
        assert int(cc3d.connected_components(form > 0, connectivity=6).max()) == 1
        assert float(form.max()) == 1
    assert sizes.min() <= 8
    assert sizes.max() > SIZE**3 / 10
    assert 20 < (sizes < 100).sum() < 130  # neither end is rare


def test_the_object_is_brighter_than_what_is_around_it_on_the_whole() -> None:
    rng = np.random.default_rng(5)
    ratios = []
    for _ in range(40):
        form = draw_form(SIZE, rng)
        image, cold = draw_intensities(form, rng)
        assert not (cold & (form <= 0)).any()
        assert image.dtype == np.float32
        assert image.min() >= 0
        ratios.append(float(image[form > 0].mean() / image[form <= 0].mean()))
    assert np.median(ratios) > 2


def test_beyond_the_scan_there_is_neither_image_nor_object() -> None:
    cut = 0
    for sample in (samples()[number] for number in range(40)):
        flat = sample["image"].amax(dim=(0, 2, 3)) == sample["image"].amin(dim=(0, 2, 3))
        cut += int(flat.any())
        assert not bool(sample["target"][0, flat].any())
    assert cut  # some are cut across the first axis
