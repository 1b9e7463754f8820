"""Automatic segmentation: world positions for every axis order, windows, channels, and reloaded exports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from scipy.spatial.transform import Rotation
from torch import Tensor, nn

from sammed3d_ft.automatic.networks import build_network
from sammed3d_ft.automatic.scan_preparation import ScanPreparation, prepare_scan
from sammed3d_ft.automatic.segmenter import FORMAT, AutomaticSegmenter
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import from_array
from sammed3d_ft.images.images import read_image, write_mask
from sammed3d_ft.model.weights import save_safetensors
from tests.support.storage_orders import ORIENTATIONS, affine_of, stored_as

OBLIQUE = affine_of(Rotation.from_euler("xyz", (4, -7, 11), degrees=True), (4.1, 3.9, 3.27), (-50.0, 20.0, 300.0))
PET = ScanPreparation(("PT",), 2.5)


def lopsided(image: Tensor) -> Tensor:
    """A stand-in network that treats every axis and direction differently."""
    first = image[:, :1] - 5
    return first + 0.5 * first.roll(1, 2) - 0.25 * first.roll(-1, 3) + 0.125 * first.roll(2, 4)


def scan(shape: tuple[int, int, int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 9.5, shape).astype(np.float32)


def test_one_scan_in_any_axis_order_gets_one_mask(tmp_path: Path) -> None:
    """In the world, and written back onto each file's own grid."""
    array = scan((9, 8, 7))
    expected: list[np.ndarray] = []
    for number, (order, signs) in enumerate(ORIENTATIONS):
        stored, affine = stored_as(array, OBLIQUE, order, signs)
        path = tmp_path / f"{number}.nii"
        nib.save(nib.Nifti1Image(stored, affine), path)
        pet = read_image(path)
        logits = AutomaticSegmenter(lopsided, PET, 8).segment({"PT": pet})
        assert logits.dtype == np.float32
        assert logits.shape == pet.array.shape
        expected.append(logits)
        assert np.array_equal(logits, expected[0])
        write_mask(tmp_path / "mask.nii", logits > 0, pet)
        written = nib.load(tmp_path / "mask.nii")
        assert np.array_equal(written.affine, nib.load(path).affine)
        again, _ = stored_as((expected[0] > 0).astype(np.uint8), OBLIQUE, order, signs)
        assert np.array_equal(np.asarray(written.dataobj), again)
    assert 0.1 < (expected[0] > 0).mean() < 0.9


def test_on_a_scan_of_its_spacing_the_logits_are_the_networks_own() -> None:
    pet = from_array(scan((12, 10, 8)), np.diag([2.5, 2.5, 2.5, 1.0]))
    logits = AutomaticSegmenter(lambda image: image - 5, PET, 8).segment({"PT": pet})
    np.testing.assert_allclose(logits, pet.array - 5, atol=1e-5)  # windows that agree average to themselves


@pytest.mark.parametrize("shape", [(16, 16, 16), (12, 16, 9)])
def test_a_window_that_covers_the_scan_is_the_only_one(shape: tuple[int, int, int]) -> None:
    calls: list[Tensor] = []

    def network(image: Tensor) -> Tensor:
        calls.append(image)
        return lopsided(image)

    pet = from_array(scan(shape), np.diag([2.5, 2.5, 2.5, 1.0]))
    logits = AutomaticSegmenter(network, PET, 16).segment({"PT": pet})
    assert [tuple(call.shape) for call in calls] == [(1, 1, 16, 16, 16)]
    before = [(16 - size) // 2 for size in shape]  # as training pads a scan that is smaller than its crops
    box = tuple(slice(at, at + size) for at, size in zip(before, shape, strict=True))
    padded = torch.zeros(1, 1, 16, 16, 16)
    padded[(0, 0, *box)] = torch.from_numpy(pet.array)
    np.testing.assert_allclose(logits, lopsided(padded)[(0, 0, *box)].numpy(), atol=1e-5)


def test_windows_overlap_by_half() -> None:
    starts: list[int] = []

    def network(image: Tensor) -> Tensor:
        starts.extend(int(window[0, 0, 0, 0]) for window in image)
        return image

    array = np.ones((16, 8, 8), np.float32)
    array += np.arange(16, dtype=np.float32)[:, None, None]
    AutomaticSegmenter(network, PET, 8).segment({"PT": from_array(array, np.diag([2.5, 2.5, 2.5, 1.0]))})
    assert sorted(starts) == [1, 5, 9]


def test_the_network_sees_what_it_was_trained_with() -> None:
    """PET and CT in this order, as from `prepare_scan`; a PET-only network does not read the CT."""
    pet, ct = from_array(scan((8, 8, 8)), OBLIQUE), from_array(scan((20, 20, 20), 1) * 100 - 900, OBLIQUE)
    seen: list[Tensor] = []

    def network(image: Tensor) -> Tensor:
        seen.append(image)
        return image[:, :1].clone()  # windows are weighted in place

    for modalities in (("PT", "CT"), ("PT",)):
        preparation = ScanPreparation(modalities, 4.0)
        AutomaticSegmenter(network, preparation, 32).segment({"CT": ct, "PT": pet})
        channels = prepare_scan({"CT": ct, "PT": pet}, preparation).channels
        image = seen.pop()[0].numpy()
        assert len(image) == len(modalities)
        low = [(32 - size) // 2 for size in channels.shape[1:]]
        box = tuple(slice(at, at + size) for at, size in zip(low, channels.shape[1:], strict=True))
        assert np.array_equal(image[(slice(None), *box)], channels)
    with pytest.raises(InputError, match="no CT image, but the model needs PT and CT"):
        AutomaticSegmenter(network, ScanPreparation(("PT", "CT"), 4.0), 32).segment({"PT": pet})


def test_a_network_in_training_is_used_in_evaluation_and_left_in_training() -> None:
    network = nn.Sequential(nn.Conv3d(1, 1, 1), nn.BatchNorm3d(1)).train()
    network[0].requires_grad_(False)
    statistics = network[1].running_mean.clone()
    pet = from_array(scan((8, 8, 8)), OBLIQUE)
    first = AutomaticSegmenter(network, PET, 8).segment({"PT": pet})
    assert network.training
    assert network[1].training
    assert torch.equal(network[1].running_mean, statistics)
    assert np.array_equal(AutomaticSegmenter(network, PET, 8).segment({"PT": pet}), first)


@pytest.fixture
def bf16() -> Iterator[Accelerator]:
    AcceleratorState._reset_state(True)  # accelerate takes one precision per process
    yield Accelerator(mixed_precision="bf16", cpu=True)
    AcceleratorState._reset_state(True)


def test_a_network_that_trains_in_mixed_precision_is_used_in_full(bf16: Accelerator) -> None:
    """Validation during training then scores what the export will produce."""
    torch.manual_seed(0)
    network = nn.Conv3d(1, 1, 3, padding=1)
    pet = from_array(scan((8, 8, 8)), OBLIQUE)
    full = AutomaticSegmenter(network, PET, 8).segment({"PT": pet})
    window = torch.from_numpy(scan((8, 8, 8)))[None, None]
    before = network(window)
    assert not torch.equal(bf16.prepare_model(network)(window), before)
    assert np.array_equal(AutomaticSegmenter(network, PET, 8).segment({"PT": pet}), full)


def exported(path: Path, **changes: str) -> nn.Module:
    torch.manual_seed(0)
    network = build_network("unet", "laptop", 1, 32)
    metadata = {"format": FORMAT, "network": "unet", "size": "laptop", "crop_size": "32", "preparation": PET.to_json()}
    save_safetensors(path, network.state_dict(), metadata | changes)
    return network


def test_an_export_comes_back(tmp_path: Path) -> None:
    network = exported(tmp_path / "model.safetensors", loss="l1dfl")
    pet = from_array(scan((10, 9, 12)), OBLIQUE)
    expected = AutomaticSegmenter(network.eval(), PET, 32).segment({"PT": pet})
    state = torch.random.get_rng_state()
    for path in (tmp_path / "model.safetensors", tmp_path):
        segmenter = AutomaticSegmenter.from_pretrained(path, "cpu")
        assert np.array_equal(segmenter.segment({"PT": pet}), expected)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert segmenter.modalities == ("PT",)
    assert segmenter.metadata["loss"] == "l1dfl"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": "sammed3d_ft export 1"}, "not the export of a baseline"),
        ({"network": "vnet"}, "metadata of a baseline's export are invalid .*vnet"),
        ({"crop_size": "33"}, "metadata of a baseline's export are invalid .*multiple of 16"),
        ({"preparation": "?"}, "metadata of a baseline's export are invalid"),
        ({"size": "paper", "crop_size": "64"}, "the weights do not fit unet of size paper: "),
    ],
)
def test_an_export_that_is_none_is_refused(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    exported(tmp_path / "model.safetensors", **changes)
    with pytest.raises(InputError, match=says):
        AutomaticSegmenter.from_pretrained(tmp_path / "model.safetensors", "cpu")


def test_a_model_for_clicks_and_a_device_that_is_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="mini is not the export of a baseline"):
        AutomaticSegmenter.from_pretrained("mini", "cpu")
    with pytest.raises(InputError, match="device 'abacus' cannot be used"):
        AutomaticSegmenter.from_pretrained("mini", "abacus")
