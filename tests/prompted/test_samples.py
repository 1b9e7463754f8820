"""Samples: dependence on the key, the lesion store and the embedding cache."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

from prompts.lesions import lesions_from_mask
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.crops import Region, crop_grid, read_crop, spacings_shown, touched_region
from sammed3d_ft.images.images import read_image, read_label
from sammed3d_ft.prompted import lesion_store
from sammed3d_ft.prompted.augment import AugmentationRanges, draw_augmentation
from sammed3d_ft.prompted.embedding_cache import CachedSamples, EmbeddingCache
from sammed3d_ft.prompted.lesion_store import LesionStore, open_store, prepare_case
from sammed3d_ft.prompted.preprocessing import Preprocessing, channels
from sammed3d_ft.prompted.samples import LesionSamples, SampleSettings
from sammed3d_ft.training.batches import collate
from sammed3d_ft.training.scan_files import ScanPart
from tests.support.tiny_cases import write_case

RANGES = AugmentationRanges()
PREPROCESSING = Preprocessing(("PT",), 3.0)
SETTINGS = SampleSettings(crop_size=16, logits_size=8, spacing_mm=3.0, first_click="uniform", ranges=RANGES, seed=7)
# A ball, a thin one at the border, and a lesion of a single voxel.
BALLS = [((7.0, 7.0, 7.0), 16.0), ((17.0, 16.0, 23.0), 9.0), ((18.0, 5.0, 5.0), 1.0)]


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    return write_case(tmp_path_factory.mktemp("scan"), "a", BALLS, spacing_mm=(4.07, 4.07, 5.0))


@pytest.fixture(scope="module")
def store(case, tmp_path_factory) -> LesionStore:
    folder = tmp_path_factory.mktemp("store")
    return open_store(folder, [prepare_case(folder, case, PREPROCESSING)])


# The store


def test_each_lesion_is_a_target(store, case):
    assert [entry.id for entry in store.entries] == ["a/1", "a/2", "a/3"]
    voxels = []
    for index, entry in enumerate(store.entries):
        part = store.read(index, entry.region)
        voxels.append(int(part.target.sum()))
        assert entry.volume_ml == pytest.approx(voxels[-1] * 4.07 * 4.07 * 5.0 / 1000, rel=1e-5)
        assert entry.spacing_mm == pytest.approx((4.07, 4.07, 5.0), rel=1e-6)
        assert entry.shape == (24, 24, 24)
        x, y, z = part.target.shape
        assert entry.extent_mm == pytest.approx(max(x * 4.07, y * 4.07, z * 5.0))
        assert part.channels.shape == (1, *part.target.shape)
        assert part.channels[0][part.target].min() > 8  # SUV 9 with noise: image and mask lie on each other
        assert all(part.target.any(dim=axis).flatten().any() for axis in range(3))
        whole = store.read(index, Region((0, 0, 0), entry.shape))
        assert int(whole.target.sum()) == voxels[-1]  # all of it, and nothing of the other lesions
    assert sorted(voxels)[0] == 1  # the single voxel is kept


def test_a_scan_is_stored_once_whatever_its_lesions(store, case):
    (file,) = store.folder.glob("*.safetensors")
    assert file.stat().st_size < 24**3 * 5 + 1000  # one channel of four bytes, and a lesion's number of one


class PlainStore(LesionStore):
    """Cuts the same boxes out of the images as they are read."""

    def __init__(self, store, case):
        super().__init__(store.folder, store.entries)
        self.channels = channels({"PT": read_image(case.images["PT"])}, PREPROCESSING)
        self.lesions = lesions_from_mask(read_label(case.label).array)[0]

    def read(self, index, region):
        target = self.lesions[region.slices] == self.entries[index].number
        return ScanPart(self.channels[(slice(None), *region.slices)], torch.from_numpy(target))


def test_samples_are_those_cut_out_of_the_images_bit_for_bit(store, case):
    wild = replace(SETTINGS, ranges=AugmentationRanges(rotate_deg=40.0, zoom=0.5), ambiguous=0.3, start_masks=0.3)
    for epoch in range(6):
        found, plain = (LesionSamples(each, wild, epoch) for each in (store, PlainStore(store, case)))
        for index in range(len(plain)):
            assert found[index].keys() == plain[index].keys()
            for name, value in plain[index].items():
                assert np.array_equal(found[index][name], value), (epoch, index, name)


@pytest.mark.parametrize(("size", "number_bytes"), [(10, 1), (14, 2)])
def test_a_scan_of_more_than_255_lesions_keeps_them_apart(tmp_path, size, number_bytes):
    spots = np.zeros((2 * size, 2 * size, 6), np.uint8)
    spots[::2, ::2, ::3] = 1
    case = write_case(tmp_path, "many", [])
    for path in (case.images["PT"], case.label):
        nib.save(nib.Nifti1Image(spots, np.diag([3.0, 3.0, 3.0, 1.0])), path)
    store = open_store(tmp_path / "s", [prepare_case(tmp_path / "s", case, PREPROCESSING)])
    assert len(store) == 2 * size**2
    assert all(int(store.read(index, Region((0, 0, 0), spots.shape)).target.sum()) == 1 for index in range(len(store)))
    (file,) = store.folder.glob("*.safetensors")
    assert file.stat().st_size - spots.size * (4 + number_bytes) in range(1000)


def test_all_lesions_are_one_target(case, tmp_path):
    store = open_store(tmp_path, [prepare_case(tmp_path, case, PREPROCESSING, targets="all")])
    (entry,) = store.entries
    target = store.read(0, entry.region).target
    assert int(target.sum()) == int((read_image(case.label).array > 0).sum())
    assert entry.id == "a/1"


def test_an_empty_label_gives_no_target(case, tmp_path):
    empty = write_case(tmp_path, "empty", [])
    names = [prepare_case(tmp_path / "store", one, PREPROCESSING) for one in (case, empty)]
    assert len(open_store(tmp_path / "store", names)) == 3
    with pytest.raises(InputError, match="all labels are empty"):
        open_store(tmp_path / "store", names[1:])


def test_other_settings_images_and_formats_have_files_of_their_own(tmp_path, monkeypatch):
    case = write_case(tmp_path, "a", BALLS)
    folder = tmp_path / "store"
    first = prepare_case(folder, case, PREPROCESSING)
    kept = {path: path.read_bytes() for path in folder.iterdir()}
    assert prepare_case(folder, case, Preprocessing(("PT",), 1.5)) == first  # crops of another spacing, the same scan
    names = {
        first,
        prepare_case(folder, case, Preprocessing(("PT",), 3.0, {"PT": (0, 20)})),
        prepare_case(folder, case, PREPROCESSING, connectivity=26),
        prepare_case(folder, case, PREPROCESSING, targets="all"),
    }
    os.utime(case.label, ns=(0, 0))
    names.add(prepare_case(folder, case, PREPROCESSING))
    monkeypatch.setattr(lesion_store, "STORE_FORMAT", lesion_store.STORE_FORMAT + 1)
    names.add(prepare_case(folder, case, PREPROCESSING))
    assert len(names) == 6
    assert {path: path.read_bytes() for path in kept} == kept


def test_a_case_without_label_is_refused(case, tmp_path):
    with pytest.raises(InputError, match="case a: training and scoring need a label"):
        prepare_case(tmp_path, replace(case, label=None), PREPROCESSING)


def test_a_prepared_case_is_not_done_again(case, tmp_path):
    prepare_case(tmp_path, case, PREPROCESSING)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    prepare_case(tmp_path, case, PREPROCESSING)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before


def test_a_crop_needs_no_more_of_the_scan_than_the_touched_region(tmp_path):
    """A crop read from part of the scan equals one read from the whole scan, for every augmentation."""
    shape, spacing = (90, 80, 70), np.array([3.0, 3.0, 4.0])
    whole = torch.from_numpy(np.random.default_rng(0).random((1, *shape), np.float32))
    wild = AugmentationRanges(rotate_deg=45.0, zoom=0.3, jitter_vox=3)
    smaller = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        drawn = draw_augmentation(wild, rng)
        click = rng.integers(0, shape)
        grid = crop_grid(click, spacing, float(rng.choice([1.0, 3.0, 9.0])), 12, zoom=drawn.zoom, flips=drawn.flips)
        grid = grid.shifted(np.array(drawn.jitter_vox), drawn.rotation)
        region = touched_region(grid, shape, drawn.rotation)
        smaller += np.prod(region.shape) < np.prod(shape) / 10
        moved = replace(grid, centre_vox=tuple(np.subtract(grid.centre_vox, region.start)))
        part = read_crop(whole[(slice(None), *region.slices)], moved, drawn.rotation)
        torch.testing.assert_close(part, read_crop(whole, grid, drawn.rotation), atol=1e-4, rtol=0)
    assert smaller > 20


# Samples


@pytest.mark.parametrize("strategy", ["uniform", "deepest", "suvmax", "boundary", "jittered"])
def test_the_click_stays_on_the_target(store, strategy):
    """Under flip, rotation, zoom and jitter, for the lesion of one voxel too."""
    wild = AugmentationRanges(flip=0.5, rotate_deg=40.0, zoom=0.5, jitter_vox=4)
    drawn = replace(SETTINGS, first_click=strategy, ranges=wild, ambiguous=0.5, start_masks=0.5)
    positions = set()
    for epoch in range(8):
        samples = LesionSamples(store, drawn, epoch)
        for index in range(len(samples)):
            sample = samples[index]
            place = sample["coords_vox"].long()
            assert torch.equal(sample["coords_vox"], place.float())
            assert sample["target"][0, place[0], place[1], place[2]]
            assert int(sample["label"]) == 1
            assert sample["image"].isfinite().all()
            positions.add(tuple(place.tolist()))
    assert len(positions) > 10  # jitter is at work


def test_without_augmentation_the_click_is_the_centre(store):
    sample = LesionSamples(store, replace(SETTINGS, ranges=None), 0)[0]
    assert sample["coords_vox"].tolist() == [8, 8, 8]
    assert sample["image"].shape == (1, 16, 16, 16)
    positive = sample["image"]
    assert positive.double().mean().abs() < 0.1  # z-scored; all of this crop lies inside the image


def test_a_sample_depends_on_its_key_alone(store):
    one = LesionSamples(store, SETTINGS, epoch=3)
    there = [one[index] for index in (0, 1, 2)]
    other = LesionSamples(store, SETTINGS, epoch=3)
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    back = {index: other[index] for index in (2, 0, 1)}
    for index, sample in enumerate(there):
        for name in ("image", "target", "coords_vox"):
            assert torch.equal(sample[name], back[index][name])
    for changed in (LesionSamples(store, SETTINGS, 4), LesionSamples(store, replace(SETTINGS, seed=8), 3)):
        assert not torch.equal(changed[0]["image"], there[0]["image"])


def test_a_repeated_lesion_gets_another_draw(store):
    samples = LesionSamples(store, SETTINGS, 0, repeats=3)
    assert len(samples) == 9
    first, again = samples[1], samples[4]
    assert (first["index"], again["index"]) == (1, 4)
    assert not torch.equal(first["image"], again["image"])
    assert torch.equal(first["image"], LesionSamples(store, SETTINGS, 0)[1]["image"])


def test_lesions_are_shown_at_the_spacings_of_prediction():
    assert spacings_shown(extent_mm=10, edge_mm=192) == [1.0, 0.25]  # half of 48 mm is 24
    assert spacings_shown(24, 192) == [1.0, 0.25]
    assert spacings_shown(25, 192) == [1.0, 0.5]
    assert spacings_shown(60, 192) == [1.0]
    assert spacings_shown(140, 192) == [1.0, 2.0]
    assert spacings_shown(300, 192) == [1.0, 2.0, 4.0]


def test_a_small_lesion_is_shown_closer_half_of_the_time(store):
    """The lesion of one voxel: its mask has the size of a voxel of the scan, at 3 mm or at 0.75 mm."""
    plain = replace(SETTINGS, ranges=None)
    single = min(range(3), key=lambda index: store.entries[index].volume_ml)
    sizes = [int(LesionSamples(store, plain, epoch)[single]["target"].sum()) for epoch in range(60)]
    near, far = 4.07 * 4.07 * 5.0 / 0.75**3, 4.07 * 4.07 * 5.0 / 3.0**3
    assert {size > np.sqrt(near * far) for size in sizes} == {True, False}
    assert 15 < sum(size > np.sqrt(near * far) for size in sizes) < 45
    alone = replace(plain, zoom=False)
    assert {int(LesionSamples(store, alone, epoch)[single]["target"].sum()) for epoch in range(20)} == {min(sizes)}


def test_a_sample_may_start_from_a_mask(store):
    none = LesionSamples(store, SETTINGS, 0)[0]["start"]
    assert none.shape == (1, 8, 8, 8)
    assert not none.any()
    always = replace(SETTINGS, start_masks=1.0)
    starts = [LesionSamples(store, always, epoch)[0]["start"] for epoch in range(20)]
    assert all(start.any() for start in starts)
    assert sum(bool((start < 0).all()) for start in starts) in range(1, 12)  # some are empty masks


def test_collate_stacks_and_keeps_indices(store):
    samples = LesionSamples(store, SETTINGS, 0)
    batch: dict[str, Any] = collate([samples[2], samples[0]])
    assert batch["index"] == [2, 0]
    assert batch["image"].shape == (2, 1, 16, 16, 16)
    assert batch["label"].tolist() == [1, 1]


# The embedding cache


def test_repetitions_take_the_views_in_turn(store, tmp_path):
    cache = EmbeddingCache(tmp_path, store, SETTINGS, views=4)
    list(cache.build(CountingEncoder(), batch_size=2))
    plain = [CachedSamples(cache, epoch) for epoch in range(4)]
    for epoch, views in ((0, (0, 1, 2)), (1, (3, 0, 1))):
        repeated = CachedSamples(cache, epoch, repeats=3)
        assert len(repeated) == 9
        for index in range(9):
            expected = plain[views[index // 3]][index % 3]
            assert torch.equal(repeated[index]["embedding"], expected["embedding"])


class CountingEncoder:
    """Means over blocks of 4 voxels; notes how many samples each call held."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        self.calls.append(len(image))
        return torch.nn.functional.avg_pool3d(image, 4)


def test_an_interrupted_cache_is_continued(store, tmp_path):
    cache = EmbeddingCache(tmp_path, store, SETTINGS, views=2)
    encoder = CountingEncoder()
    assert list(cache.build(encoder, batch_size=2)) == [2, 1, 2, 1]
    assert encoder.calls == [2, 2, 2, 2]  # the last batch of a view is filled up
    assert cache.missing() == []
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in tmp_path.iterdir()}
    assert len(before) == 6

    cache.file(1, 1).unlink()
    assert cache.missing() == [(1, 1)]
    again = CountingEncoder()
    assert list(cache.build(again, batch_size=2)) == [1]
    assert again.calls == [2]
    for path, (content, written) in before.items():
        assert path.read_bytes() == content
        assert (path.stat().st_mtime_ns == written) == (path != cache.file(1, 1))


def test_a_write_cut_off_leaves_no_view(store, tmp_path):
    cache = EmbeddingCache(tmp_path, store, SETTINGS, views=1)

    def fail(image: torch.Tensor) -> torch.Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(cache.build(fail, batch_size=1))
    (tmp_path / f".{cache.file(0, 0).name}.123.incomplete").write_bytes(b"half")
    assert len(cache.missing()) == 3


def test_processes_share_the_cache(store, tmp_path):
    cache = EmbeddingCache(tmp_path, store, SETTINGS, views=3)
    shares = [cache.missing(rank, 2) for rank in (0, 1)]
    assert sorted(shares[0] + shares[1]) == cache.missing()
    for rank in (0, 1):
        list(cache.build(CountingEncoder(), 1, rank, 2))
    assert cache.missing() == []


def test_a_cached_sample_is_the_sample(store, tmp_path: Path):
    cache = EmbeddingCache(tmp_path, store, SETTINGS, views=2)
    list(cache.build(CountingEncoder(), batch_size=2))
    for epoch in range(4):
        cached, direct = CachedSamples(cache, epoch), LesionSamples(store, SETTINGS, epoch % 2)
        assert len(cached) == len(direct) == 3
        for index in range(3):
            one: dict[str, Any] = cached[index]
            other = direct[index]
            assert torch.equal(one["target"], other["target"])
            assert torch.equal(one["start"], other["start"])
            assert torch.equal(one["coords_vox"], other["coords_vox"])
            assert one["index"] == index
            assert int(one["label"]) == 1
            torch.testing.assert_close(one["embedding"], CountingEncoder()(other["image"][None])[0])
