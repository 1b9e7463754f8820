"""The interactive loop in `SAMMed3D.forward`: clicks, fed-back logits, targets of the IoU head, gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.sam_med3d import SAMMed3D
from sammed3d_ft.model.upsampling import upsample

FIRST = (torch.tensor([[30.0, 31.0, 32.0], [10.0, 11.0, 12.0]]), torch.tensor([1, 1]))


def criterion(logits: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype))


def target_of(batch: int = 2) -> Tensor:
    target = torch.zeros(batch, 1, 64, 64, 64, dtype=torch.bool)
    target[0, :, 26:36, 26:36, 26:36] = True
    if batch > 1:
        target[1, :, 5:15, 8:15, 10:15] = True
    return target


class Clicker:
    """Returns a known click per round and records its arguments."""

    def __init__(self) -> None:
        self.asked: list[tuple[Tensor, Tensor, int]] = []

    def __call__(self, prediction: Tensor, target: Tensor, number: int) -> tuple[Tensor, Tensor]:
        self.asked.append((prediction, target, number))
        return torch.full((2, 3), float(number)), torch.tensor([0, -1])


class Spy:
    """Wraps `decode` and records its arguments and results."""

    def __init__(self, model: SAMMed3D, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Tensor, Tensor, Tensor | None]] = []
        self.results: list[tuple[Tensor, Tensor]] = []
        decode = model.decode

        def spied(
            embedding: Tensor, coords_vox: Tensor, labels: Tensor, previous: Tensor | None = None
        ) -> tuple[Tensor, Tensor]:
            self.calls.append((coords_vox, labels, previous))
            self.results.append(decode(embedding, coords_vox, labels, previous))
            return self.results[-1]

        monkeypatch.setattr(model, "decode", spied)


@pytest.fixture(scope="module")
def shared_model() -> SAMMed3D:
    return seeded_model("mini", seed=1)


@pytest.fixture
def model(shared_model: SAMMed3D) -> SAMMed3D:
    return copy.deepcopy(shared_model)


@pytest.fixture(scope="module")
def embedding(shared_model: SAMMed3D) -> Tensor:
    with torch.no_grad():
        return shared_model.image_encoder(image())


def image() -> Tensor:
    return torch.randn(2, 1, 64, 64, 64, generator=torch.Generator().manual_seed(0))


def loop(model: SAMMed3D, clicker: Any = None, **options: Any) -> Any:
    return model(target_of(), FIRST, clicker or Clicker(), criterion, **{"rounds": (1, 2, 3), **options})


def test_clicks_accumulate(model: SAMMed3D, embedding: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(model, monkeypatch)
    loop(model, embedding=embedding)
    assert [coords.shape for coords, _, _ in spy.calls] == [(2, 1, 3), (2, 2, 3), (2, 3, 3)]
    coords_vox, labels, _ = spy.calls[-1]
    assert torch.equal(coords_vox[:, 0], FIRST[0])
    assert coords_vox[0, 1:].tolist() == [[1.0] * 3, [2.0] * 3]
    assert labels.tolist() == [[1, 0, 0], [1, -1, -1]]


def test_only_the_newest_click(model: SAMMed3D, embedding: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(model, monkeypatch)
    loop(model, embedding=embedding, accumulate=False)
    assert [coords[0].tolist() for coords, _, _ in spy.calls] == [
        [[30.0, 31.0, 32.0]],
        [[1.0] * 3],
        [[2.0] * 3],
    ]


def test_previous_logits_are_fed_back_without_gradient(
    model: SAMMed3D, embedding: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(model, monkeypatch)
    output = loop(model, embedding=embedding)
    assert spy.calls[0][2] is None
    for number in (1, 2):
        previous = spy.calls[number][2]
        assert previous is not None
        assert torch.equal(previous, spy.results[number - 1][0])
        assert not previous.requires_grad
    assert torch.equal(output.logits, spy.results[-1][0])
    assert not output.logits.requires_grad


def test_first_round_is_fed_zeros(model: SAMMed3D, embedding: Tensor) -> None:
    clicks = FIRST[0].unsqueeze(1), FIRST[1].unsqueeze(1)
    with torch.no_grad():
        without = model.decode(embedding, *clicks)[0]
        zeros = model.decode(embedding, *clicks, torch.zeros(2, 1, 32, 32, 32))[0]
        ones = model.decode(embedding, *clicks, torch.ones(2, 1, 32, 32, 32))[0]
    assert torch.equal(without, zeros)
    assert not torch.equal(without, ones)


def test_clicks_are_asked_between_rounds(model: SAMMed3D, embedding: Tensor) -> None:
    clicker = Clicker()
    output = loop(model, clicker, embedding=embedding)
    assert [number for _, _, number in clicker.asked] == [1, 2]
    prediction, target, _ = clicker.asked[0]
    assert prediction.dtype == torch.bool
    assert prediction.shape == target.shape == (2, 1, 64, 64, 64)
    assert output.mask_losses.shape == output.iou_losses.shape == (3,)
    assert output.dice.shape == (3, 2)
    clicker = Clicker()
    assert loop(model, clicker, embedding=embedding, rounds=(1,)).dice.shape == (1, 2)
    assert not clicker.asked


def test_rounds_without_gradient_are_passed_through(
    model: SAMMed3D, embedding: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clicks and logits of all rounds are those of the whole loop; the loss is that of the rounds asked for."""
    whole_clicker, clicker = Clicker(), Clicker()
    whole = loop(model, whole_clicker, embedding=embedding, rounds=(1, 2, 3, 4))
    spy = Spy(model, monkeypatch)
    part = loop(model, clicker, embedding=embedding, rounds=(1, 4))
    assert [number for _, _, number in clicker.asked] == [1, 2, 3]
    for one, other in zip(clicker.asked, whole_clicker.asked, strict=True):
        assert torch.equal(one[0], other[0])
    assert [low.requires_grad for low, _ in spy.results] == [True, False, False, True]
    assert torch.equal(part.logits, whole.logits)
    for name in ("mask_losses", "iou_losses", "dice"):
        assert torch.equal(getattr(part, name), getattr(whole, name)[[0, 3]])
    expected = (part.mask_losses + part.iou_losses).mean()
    assert float(part.loss.detach()) == pytest.approx(float(expected), rel=1e-6)
    assert loop(model, embedding=embedding, rounds=(1, 2)).dice.shape == (2, 2)  # none after the last


def test_the_first_round_must_learn(model: SAMMed3D, embedding: Tensor) -> None:
    with pytest.raises(ValueError, match=r"rounds \[2, 3\]: round 1"):
        loop(model, embedding=embedding, rounds=(2, 3))


def test_weights_learn_under_autocast_beside_rounds_without_gradient(model: SAMMed3D, embedding: Tensor) -> None:
    """Autocast caches weight copies; copies made in a round without gradient must not be used."""
    with torch.autocast("cpu", torch.bfloat16):
        output = loop(model, embedding=embedding, rounds=(1, 3), iou_weight=0.0)
    output.loss.backward()
    grad = model.mask_decoder.transformer.layers[0].mlp.lin1.weight.grad
    with_all = copy.deepcopy(model)
    with_all.zero_grad(set_to_none=True)
    loop(with_all, embedding=embedding, rounds=(1, 3), iou_weight=0.0).loss.backward()
    full = with_all.mask_decoder.transformer.layers[0].mlp.lin1.weight.grad
    assert grad is not None
    assert full is not None
    assert float((grad * full).sum() / grad.norm() / full.norm()) > 0.9  # bfloat16 changes little more than the length


def test_a_start_mask_is_what_the_first_round_is_given(
    model: SAMMed3D, embedding: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(model, monkeypatch)
    start = torch.full((2, 1, 32, 32, 32), -3.0)
    loop(model, embedding=embedding, start=start)
    assert spy.calls[0][2] is start
    assert torch.equal(spy.calls[1][2], spy.results[0][0].detach())  # type: ignore[arg-type]


def test_losses_and_measures_by_hand(model: SAMMed3D, embedding: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    spy = Spy(model, monkeypatch)
    output = loop(model, embedding=embedding, rounds=(1, 2), iou_weight=0.5)
    target = target_of()
    expected = 0.0
    for number, (low, predicted_iou) in enumerate(spy.results):
        logits = upsample(low, 64)
        prediction = logits > 0
        both = [int((prediction[i] & target[i]).sum()) for i in range(2)]
        either = [int((prediction[i] | target[i]).sum()) for i in range(2)]
        sizes = [int(prediction[i].sum()) + int(target[i].sum()) for i in range(2)]
        iou_loss = sum((float(predicted_iou[i, 0].detach()) - both[i] / either[i]) ** 2 for i in range(2)) / 2
        assert float(output.iou_losses[number]) == pytest.approx(iou_loss, rel=1e-5)
        assert output.dice[number].tolist() == pytest.approx([2 * both[i] / sizes[i] for i in range(2)])
        assert float(output.mask_losses[number]) == pytest.approx(float(criterion(logits, target).detach()))
        assert float(output.max_probability[number]) == pytest.approx(float(logits.detach().sigmoid().max()))
        expected += (float(criterion(logits, target).detach()) + 0.5 * iou_loss) / 2
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-5)


def test_empty_target_and_empty_prediction_agree(
    model: SAMMed3D, embedding: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: Any) -> tuple[Tensor, Tensor]:
        return torch.full((2, 1, 32, 32, 32), -5.0), torch.tensor([[1.0], [0.25]])

    monkeypatch.setattr(model, "decode", nothing)
    target = torch.zeros(2, 1, 64, 64, 64, dtype=torch.bool)
    output = model(target, FIRST, Clicker(), criterion, rounds=(1,), embedding=embedding)
    assert output.dice.tolist() == [[1.0, 1.0]]
    assert float(output.iou_losses[0]) == pytest.approx(0.75**2 / 2)  # targets are IoU 1


def test_image_equals_its_embedding(model: SAMMed3D, embedding: Tensor) -> None:
    with torch.no_grad():
        from_image, from_embedding = loop(model, image=image()), loop(model, embedding=embedding)
    assert torch.equal(from_image.loss, from_embedding.loss)
    assert torch.equal(from_image.logits, from_embedding.logits)
    with pytest.raises(ValueError, match="either image or embedding"):
        loop(model)
    with pytest.raises(ValueError, match="either image or embedding"):
        loop(model, image=image(), embedding=embedding)


def test_gradients_reach_all_but_the_unused_heads(model: SAMMed3D) -> None:
    loop(model, image=image(), rounds=(1, 2)).loss.backward()

    def moved(prefix: str) -> bool:
        parameters = model.get_submodule(prefix).parameters()
        return any(p.grad is not None and bool(p.grad.any()) for p in parameters)

    for prefix in (
        "image_encoder.patch_embed",
        "image_encoder.blocks.0.attn.qkv",
        "image_encoder.neck",
        "prompt_encoder.mask_downscaling",
        "prompt_encoder.point_embeddings.1",
        "mask_decoder.transformer",
        "mask_decoder.output_hypernetworks_mlps.0",
        "mask_decoder.iou_prediction_head",
    ):
        assert moved(prefix), prefix
    for number in (1, 2, 3):
        assert not moved(f"mask_decoder.output_hypernetworks_mlps.{number}")
    assert not moved("prompt_encoder.no_mask_embed")
