"""Training crops: shares, uniform positions, keys, content of a crop, and rotation against scipy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy.ndimage import affine_transform
from scipy.stats import chisquare

from prompts import uniforms
from sammed3d_ft.automatic.scan_crops import CropSettings, ScanCrops, draw_crop
from sammed3d_ft.automatic.scan_preparation import ScanPreparation
from sammed3d_ft.automatic.scan_store import ScanStore, prepare_scan_of
from sammed3d_ft.dataset.manifest import read_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.crops import Region
from sammed3d_ft.training.batches import collate
from tests.support.tiny_cases import write_cohort

SETTINGS = CropSettings(
    size=8,
    positive=4,
    negative=1,
    per_case=1,
    affine_probability=0.0,
    translate_vox=2.0,
    rotate_z_deg=12.0,
    scale=0.1,
    seed=3,
)


def store_of(folder: Path, *scans: tuple[np.ndarray, np.ndarray]) -> ScanStore:
    files = []
    for number, (channels, target) in enumerate(scans):
        files.append(folder / f"{number}.safetensors")
        tensors = {
            "channels": torch.from_numpy(channels.astype(np.float32)),
            "target": torch.from_numpy(target.astype(np.uint8)),
            "lesion_voxels": torch.from_numpy(np.flatnonzero(target)),
        }
        save_file(tensors, files[-1])
    return ScanStore(files)


def scan(shape: tuple[int, int, int] = (14, 12, 16), channels: int = 2) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = np.zeros(shape, bool)
    target[2:4, 5:8, 9:11] = True
    return rng.uniform(1, 9, (channels, *shape)), target


def test_four_crops_in_five_are_drawn_about_lesion_voxels_each_alike() -> None:
    """Every fifth crop is centred on a background voxel, all equally likely and never in a lesion."""
    target = np.zeros((3, 4, 5), bool)
    target.flat[[0, 7, 8, 30, 59]] = True  # the first and last voxel among them
    places = np.flatnonzero(target)
    drawn = [draw_crop((3, 4, 5), places, SETTINGS, uniforms((0, number), 10)) for number in range(12000)]
    positive = sum(crop.positive for crop in drawn)
    assert abs(positive / 12000 - 0.8) < 4 * np.sqrt(0.8 * 0.2 / 12000)
    assert all(target[crop.voxel] == crop.positive for crop in drawn)
    counts = np.zeros(target.shape, int)
    for crop in drawn:
        counts[crop.voxel] += 1
    assert chisquare(counts[target]).pvalue > 1e-3
    assert chisquare(counts[~target]).pvalue > 1e-3


@pytest.mark.parametrize(("positive", "negative", "expected"), [(1, 0, True), (0, 1, False)])
def test_a_share_of_nothing_is_never_drawn(positive: float, negative: float, expected: bool) -> None:
    settings = replace(SETTINGS, positive=positive, negative=negative)
    crops = [draw_crop((3, 4, 5), np.array([7, 8]), settings, uniforms((0, number), 10)) for number in range(200)]
    assert {crop.positive for crop in crops} == {expected}


def test_scans_of_one_kind_of_voxel_give_that_kind() -> None:
    none, all_of_them = np.array([], np.int64), np.arange(60)
    for number in range(50):
        draws = uniforms((0, number), 10)
        assert not draw_crop((3, 4, 5), none, SETTINGS, draws).positive
        assert draw_crop((3, 4, 5), all_of_them, SETTINGS, draws).positive


def test_a_crop_depends_on_its_key_alone(tmp_path: Path) -> None:
    store = store_of(tmp_path, scan(), scan())
    settings = replace(SETTINGS, per_case=3, affine_probability=0.5)
    samples = ScanCrops(store, settings, epoch=4)
    assert len(samples) == 6
    there = [samples[index] for index in range(6)]
    back = [ScanCrops(store, settings, epoch=4)[index] for index in reversed(range(6))][::-1]
    for one, two in zip(there, back, strict=True):
        assert torch.equal(one["image"], two["image"])
        assert torch.equal(one["target"], two["target"])
    others = [ScanCrops(store, settings, epoch=5)[0], ScanCrops(store, replace(settings, seed=4), epoch=4)[0]]
    for other in [*others, there[1], there[3]]:  # another epoch, seed, crop of the case, case
        assert not torch.equal(there[0]["image"], other["image"])
    batch = collate(there)  # type: ignore[arg-type]
    assert batch["index"] == list(range(6))
    assert batch["image"].shape == (6, 2, 8, 8, 8)  # type: ignore[attr-defined]
    assert batch["target"].dtype == torch.bool  # type: ignore[attr-defined]


def test_a_crop_holds_the_scans_own_voxels_and_the_one_it_was_drawn_about(tmp_path: Path) -> None:
    channels, target = scan()
    store = store_of(tmp_path, (channels, target))
    for epoch in range(20):
        sample = ScanCrops(store, SETTINGS, epoch)[0]
        crop = draw_crop((14, 12, 16), np.flatnonzero(target), SETTINGS, uniforms((3, epoch, 0, "crop"), 10))
        box = tuple(slice(at, at + 8) for at in crop.start)
        assert all(at <= voxel < at + 8 for at, voxel in zip(crop.start, crop.voxel, strict=True))
        assert np.array_equal(sample["image"].numpy(), channels[(slice(None), *box)].astype(np.float32))
        assert np.array_equal(sample["target"][0].numpy(), target[box])


def test_a_scan_smaller_than_the_crop_lies_in_its_middle_among_zeros(tmp_path: Path) -> None:
    channels, target = scan((5, 12, 8), channels=1)
    sample = ScanCrops(store_of(tmp_path, (channels, target | True)), SETTINGS, 0)[0]
    x, y, z = (np.flatnonzero(sample["target"][0].numpy().any(axis=o)) for o in ((1, 2), (0, 2), (0, 1)))
    assert (x[0], x[-1]) == (1, 5)  # three voxels of padding: one before, two behind
    assert (len(y), len(z)) == (8, 8)
    assert torch.equal(sample["image"][0] > 0, sample["target"][0])


@pytest.mark.parametrize("epoch", range(6))
def test_shift_turn_and_scaling_are_scipys(epoch: int, tmp_path: Path) -> None:
    channels, target = scan((20, 18, 22))
    settings = replace(SETTINGS, affine_probability=1.0, rotate_z_deg=40.0)
    sample = ScanCrops(store_of(tmp_path, (channels, target)), settings, epoch)[0]
    draws = uniforms((3, epoch, 0, "crop"), 10)
    start = np.array(draw_crop((20, 18, 22), np.flatnonzero(target), settings, draws).start)
    shift, scale, turn = 4 * draws[3:6] - 2, 1 + 0.1 * (2 * draws[6:9] - 1), np.deg2rad(40) * (2 * draws[9] - 1)
    rotation = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    linear = np.diag(1 / scale) @ rotation  # crop voxel about the crop's centre -> scan voxel about it
    offset = start + 4 + shift - linear @ np.full(3, 4.0)
    options = {"output_shape": (8, 8, 8), "order": 1, "mode": "grid-constant"}
    for channel, ours in zip(channels, sample["image"].numpy(), strict=True):
        np.testing.assert_allclose(ours, affine_transform(channel, linear, offset, **options), atol=1e-4)
    covered = affine_transform(target.astype(float), linear, offset, **options)
    clear = np.abs(covered - 0.5) > 1e-4
    assert np.array_equal(sample["target"][0].numpy()[clear], covered[clear] > 0.5)


def test_no_range_is_no_change(tmp_path: Path) -> None:
    store = store_of(tmp_path, scan((20, 18, 22)))
    still = replace(SETTINGS, affine_probability=1.0, translate_vox=0.0, rotate_z_deg=0.0, scale=0.0)
    for epoch in range(5):
        plain, turned = ScanCrops(store, SETTINGS, epoch)[0], ScanCrops(store, still, epoch)[0]
        torch.testing.assert_close(turned["image"], plain["image"], atol=1e-4, rtol=1e-5)
        assert torch.equal(turned["target"], plain["target"])


def test_a_store_is_written_once_and_says_when_it_is_damaged(tmp_path: Path) -> None:
    case = read_manifest(write_cohort(tmp_path / "cohort", train=1)).split("train")[0]
    file = tmp_path / "store" / "scan.safetensors"
    preparation = ScanPreparation(("PT",), 6.0)
    prepare_scan_of(case, preparation, file)
    written = file.stat().st_mtime_ns
    prepare_scan_of(case, preparation, file)
    assert file.stat().st_mtime_ns == written
    store = ScanStore([file])
    assert store.shape(0) == (24, 24, 24)
    whole = store.read(0, Region((0, 0, 0), (24, 24, 24)))
    assert np.array_equal(np.flatnonzero(whole.target.numpy()), store.lesion_voxels(0))
    part = store.read(0, Region((3, 4, 5), (9, 20, 7)))
    assert torch.equal(part.channels, whole.channels[:, 3:9, 4:20, 5:7])
    file.write_bytes(b"damaged")
    with pytest.raises(InputError, match="damaged cache file"):
        store.read(0, Region((0, 0, 0), (1, 1, 1)))
    with pytest.raises(InputError, match="training and scoring need a label"):
        prepare_scan_of(replace(case, label=None), preparation, tmp_path / "other.safetensors")
