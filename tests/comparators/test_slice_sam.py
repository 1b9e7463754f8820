"""2D SAM slice by slice: propagation with a stand-in; Meta's network against its own predictor."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from sammed3d_ft.comparators import slice_sam
from sammed3d_ft.comparators.slice_sam import MetaSAM, SliceSAM
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import from_array


class Component2D:
    """Stands in for SAM: the bright component under the first foreground point, cut off at background points."""

    def __init__(self) -> None:
        self.embedded: list[np.ndarray] = []
        self.asked: list[tuple[list[tuple[float, float]], list[int]]] = []

    def embed(self, image: np.ndarray) -> np.ndarray:
        assert image.dtype == np.uint8
        assert image.shape[2] == 3
        self.embedded.append(image)
        return image[:, :, 0]

    def best_mask(self, embedding: Any, points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
        self.asked.append(([tuple(point) for point in points.tolist()], labels.tolist()))
        components, _ = ndimage.label(embedding > 127)
        mask = np.zeros(embedding.shape, bool)
        for (column, row), label in zip(points.astype(int).tolist(), labels.tolist(), strict=True):
            if label == 1 and components[row, column]:
                mask |= components == components[row, column]
        for (column, _), label in zip(points.astype(int).tolist(), labels.tolist(), strict=True):
            if label == 0:
                mask[:, column:] = False
        return mask, 0.8


def model_of(array: np.ndarray) -> tuple[SliceSAM, Component2D]:
    stand_in = Component2D()
    model = SliceSAM(stand_in)
    model.set_image({"PT": from_array(array.astype(np.float32), np.diag([4.0, 4.0, 3.0, 1.0]))})
    return model, stand_in


def test_a_lesion_is_followed_through_its_slices_and_no_further() -> None:
    array = np.zeros((12, 10, 9))
    array[3:7, 2:6, 2:6] = 20  # the lesion: slices 2 to 5
    array[4:6, 3:5, 6] = 20  # a quarter of it: no longer the lesion
    array[3:7, 2:6, 7] = 20
    array[9:11, 7:9, :] = 20  # something else, in every slice
    model, stand_in = model_of(array)
    found = model.add_click((4, 3, 4))
    wanted = np.zeros(array.shape, bool)
    wanted[3:7, 2:6, 2:6] = True
    assert np.array_equal(found.mask, wanted)
    assert found.predicted_iou == pytest.approx(0.8)
    # The first slice is clicked where it was clicked, as (column, row) = (y, x); the next ones at the deepest point.
    assert stand_in.asked[0] == ([(3.0, 4.0)], [1])
    assert all(points == [(4.0, 5.0)] or points == [(3.0, 4.0)] for points, _ in stand_in.asked)
    assert len(stand_in.embedded) == 6  # slices 1 to 6
    assert stand_in.embedded[0].max() == 255
    again = model.add_click((5, 4, 7))  # a click beyond: another start, embeddings kept
    assert np.array_equal(again.mask, wanted | (np.arange(9) == 7) & wanted[:, :, 3:4])
    assert len(stand_in.embedded) == 8


def test_background_clicks_count_in_their_slice() -> None:
    array = np.zeros((12, 10, 5))
    array[3:7, 2:9, 1:4] = 20
    model, stand_in = model_of(array)
    model.add_click((4, 3, 2))
    found = model.add_click((4, 6, 2), 0)
    wanted = array > 0
    wanted[:, 6:, 2] = False
    assert np.array_equal(found.mask, wanted)  # its neighbours are clicked inside the remaining mask
    assert ([(3.0, 4.0), (6.0, 4.0)], [1, 0]) in stand_in.asked


def test_an_empty_slice_ends_it() -> None:
    model, _ = model_of(np.zeros((6, 6, 6)))
    found = model.add_click((3, 3, 3))
    assert not found.mask.any()
    assert found.predicted_iou == 0
    with pytest.raises(InputError, match="outside"):
        model.add_click((6, 3, 3))
    with pytest.raises(InputError, match="first click is background"):
        model.add_click((3, 3, 3), 0, lesion=2)


class Pooled(nn.Module):
    """In place of SAM's image encoder, which takes a minute on a processor core."""

    img_size = 1024

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return nn.functional.avg_pool2d(image, 16).repeat(1, 86, 1, 1)[:, :256]


@pytest.fixture
def without_torchvision() -> Iterator[None]:
    """Meta's predictor needs two functions of torchvision, which may be missing; Pillow has equivalents."""
    names = ("segment_anything", "torchvision")
    kept = {name: sys.modules.pop(name) for name in [*sys.modules] if name.split(".")[0] in names}
    image = importlib.import_module("PIL.Image")
    for name in ("", ".transforms", ".transforms.functional", ".ops", ".ops.boxes"):
        sys.modules[f"torchvision{name}"] = ModuleType(f"torchvision{name}")
    vars(sys.modules["torchvision.transforms.functional"]).update(
        to_pil_image=image.fromarray,
        resize=lambda picture, size: picture.resize(size[::-1], image.Resampling.BILINEAR),
    )
    vars(sys.modules["torchvision.ops.boxes"]).update(batched_nms=None, box_area=None)
    yield
    for name in [name for name in sys.modules if name.split(".")[0] in names]:
        del sys.modules[name]
    sys.modules.update(kept)


@pytest.mark.usefixtures("without_torchvision")
def test_masks_are_those_of_metas_predictor() -> None:
    sam = MetaSAM("random")
    sam._model.image_encoder = Pooled()
    predictor = importlib.import_module("segment_anything.predictor").SamPredictor(sam._model)

    picture = np.random.default_rng(0).integers(0, 256, (40, 50, 1), dtype=np.uint8).repeat(3, axis=2)
    embedding = sam.embed(picture)
    predictor.set_image(picture)
    assert predictor.input_size == embedding[1] == (819, 1024)
    for points, labels in (([[20, 10]], [1]), ([[20, 10], [30, 30], [44, 2]], [1, 0, 1])):
        masks, ratings, _ = predictor.predict(
            np.array(points, float), np.array(labels), multimask_output=len(points) == 1
        )
        mask, rating = sam.best_mask(embedding, np.array(points, np.float32), np.array(labels))
        assert rating == pytest.approx(ratings.max(), abs=1e-4)
        assert 0 < mask.mean() < 1
        assert (mask != masks[ratings.argmax()]).mean() < 0.01  # the resize differs by rounding


def test_weights_are_read_safely_and_wrongs_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def small() -> nn.Module:
        return nn.Linear(2, 2)

    monkeypatch.setattr(slice_sam, "_vit_b", small)
    good = small()
    torch.save(good.state_dict(), tmp_path / "good.pth")
    loaded = MetaSAM(tmp_path / "good.pth", "cpu")
    assert torch.equal(loaded._model.weight, good.weight)
    torch.save(nn.Linear(3, 2).state_dict(), tmp_path / "other.pth")
    torch.save(small(), tmp_path / "code.pth")  # a pickled module: reading it would run code
    (tmp_path / "cut.pth").write_bytes((tmp_path / "good.pth").read_bytes()[:200])
    for name, said in (
        ("nowhere.pth", "no SAM weights at"),
        ("other.pth", "not Meta's SAM ViT-B"),
        ("code.pth", "not readable as weights"),
        ("cut.pth", "not readable as weights"),
    ):
        with pytest.raises(InputError, match=said) as error:
            MetaSAM(tmp_path / name, "cpu")
        assert "sam_vit_b_01ec64.pth" in str(error.value)
