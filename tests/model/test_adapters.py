"""Tuning methods: trainable parameters, LoRA against its base, merging, saving and loading of adapters."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sammed3d_ft.errors import InputError
from sammed3d_ft.model import adapters
from sammed3d_ft.model.adapters import (
    TuningReport,
    configure_tuning,
    load_adapter,
    load_trainable_state,
    merged_state,
    save_adapter,
    trainable_state,
)
from sammed3d_ft.model.build import build_model, seeded_model
from sammed3d_ft.model.sam_med3d import SAMMed3D
from sammed3d_ft.model.weights import save_safetensors
from sammed3d_ft.provenance import state_hash

# Mask heads 1 to 3, (2 (D^2 + D) + D * D/8 + D/8) each, and the "no mask" embedding, D; D = 192.
FROZEN_MINI = 3 * (2 * (192**2 + 192) + 192 * 24 + 24) + 192
# Rank 8 on 6 blocks: A (8, 192) and B (576, 8) of qkv, A (8, 192) and B (192, 8) of proj.
LORA_MINI = 6 * 8 * ((192 + 576) + (192 + 192))


def image(channels: int = 1, seed: int = 0) -> Tensor:
    return torch.randn(1, channels, 64, 64, 64, generator=torch.Generator().manual_seed(seed))


def output_of(model: SAMMed3D, crop: Tensor) -> Tensor:
    with torch.no_grad():
        click = torch.full((1, 1, 3), 32.0), torch.ones(1, 1, dtype=torch.long)
        return model.decode(model.image_encoder(crop), *click)[0]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def one_step(model: SAMMed3D, crop: Tensor, learning_rate: float = 1e-2) -> None:
    """One AdamW step of the interactive loop on a box."""
    target = torch.zeros(1, 1, 64, 64, 64, dtype=torch.bool)
    target[..., 20:40, 20:40, 20:40] = True
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    click = torch.full((1, 3), 30.0), torch.ones(1, dtype=torch.long)
    again: Callable[..., tuple[Tensor, Tensor]] = lambda *_: (torch.full((1, 3), 5.0), torch.zeros(1).long())  # noqa: E731
    loss = model(
        target,
        click,
        again,
        lambda logits, truth: F.binary_cross_entropy_with_logits(logits, truth.float()),
        rounds=(1, 2),
        image=crop,
    ).loss
    loss.backward()
    without = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without, "DDP waits for parameters without gradient"
    optimizer.step()
    optimizer.zero_grad()


def tuned(method: str, in_channels: int = 1, **options: Any) -> tuple[SAMMed3D, TuningReport]:
    model = seeded_model("mini", seed=1, in_channels=in_channels)
    torch.manual_seed(0)
    return model, configure_tuning(model, method, **options)


@pytest.fixture(scope="module")
def stepped(tmp_path_factory: pytest.TempPathFactory) -> tuple[SAMMed3D, TuningReport, Path]:
    """A LoRA-tuned model after two steps (the first moves only B), and its base checkpoint."""
    base = tmp_path_factory.mktemp("base") / "base.safetensors"
    save_safetensors(base, seeded_model("mini", seed=1).state_dict(), {})
    model, report = tuned("lora")
    for seed in (0, 1):
        one_step(model, image(seed=seed))
    return model, report, base


def hash_of_base() -> str:
    return state_hash(seeded_model("mini", seed=1).state_dict())


def test_lora_adapts_24_modules_of_the_published_variant() -> None:
    importlib.import_module("peft")  # torch 2.6 cannot import what peft needs while the default device is meta
    with torch.device("meta"):
        model = build_model("vit_b_ori")
        report = configure_tuning(model, "lora", lora_rank=4)
    expected = [f"image_encoder.blocks.{i}.attn.{name}" for i in range(12) for name in ("qkv", "proj")]
    assert sorted(report.adapted) == sorted(expected)
    assert len(report.adapted) == 24
    lora = 12 * 4 * ((768 + 3 * 768) + (768 + 768))
    assert report.parts["image_encoder"][0] == lora
    frozen_heads = 3 * (2 * (384**2 + 384) + 384 * 48 + 48)
    trainable, total = report.parts["mask_decoder"]
    assert total - trainable == frozen_heads


@pytest.mark.parametrize("method", ["decoder", "lora", "full"])
def test_trainable_counts(method: str) -> None:
    model, report = tuned(method)
    plain = seeded_model("mini", seed=1)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in plain.named_children()}
    encoder = {"decoder": 0, "lora": LORA_MINI, "full": sizes["image_encoder"]}[method]
    rest = sizes["prompt_encoder"] + sizes["mask_decoder"] - FROZEN_MINI
    assert report.trainable == encoder + rest
    assert report.total == sum(sizes.values()) + (LORA_MINI if method == "lora" else 0)
    assert report.parts["image_encoder"][0] == encoder
    assert report.trainable == sum(counts[0] for counts in report.parts.values())
    assert len(report.adapted) == (12 if method == "lora" else 0)
    assert f"{report.trainable:,} of {report.total:,}" in report.lines()[0]
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert "prompt_encoder.no_mask_embed.weight" in frozen
    assert all(f"mask_decoder.output_hypernetworks_mlps.{i}.layers.0.weight" in frozen for i in (1, 2, 3))
    assert "mask_decoder.output_hypernetworks_mlps.0.layers.0.weight" not in frozen
    assert "mask_decoder.iou_prediction_head.layers.0.weight" not in frozen


@pytest.mark.parametrize("method", ["decoder", "lora", "full"])
def test_a_step_moves_what_trains_and_nothing_else(method: str) -> None:
    model, _ = tuned(method)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    one_step(model, image())
    still = {name for name, p in model.named_parameters() if torch.equal(p, before[name])}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen <= still
    # LoRA's A has no gradient while B is zero; biases of keys cancel in a softmax, up to rounding.
    stuck = {n for n in still - frozen if ".lora_A." not in n and not n.endswith("k_proj.bias")}
    assert not stuck


def test_lora_equals_its_base_at_the_start() -> None:
    plain = output_of(seeded_model("mini", seed=1), image())
    model, _ = tuned("lora")
    assert torch.equal(output_of(model, image()), plain)


def test_merged_equals_unmerged(stepped: tuple[SAMMed3D, TuningReport, Path]) -> None:
    model, _, _ = stepped
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    unmerged = output_of(model, image())
    merged = merged_state(model)
    fresh = seeded_model("mini", seed=2)
    assert list(merged) == list(fresh.state_dict())
    fresh.load_state_dict(merged, strict=True)
    assert relative_error(output_of(fresh, image()), unmerged) < 5e-6
    # Merging does not change the model in training.
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    # The adapters have an effect: with the base's attention the output differs.
    base = seeded_model("mini", seed=1).state_dict()
    fresh.load_state_dict(merged | {name: base[name] for name in base if name.endswith(".attn.qkv.weight")})
    assert relative_error(output_of(fresh, image()), unmerged) > 1e-3


def test_merged_state_of_a_model_without_adapters() -> None:
    model, _ = tuned("decoder")
    expected = model.state_dict()
    merged = merged_state(model)
    assert list(merged) == list(expected)
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_adapter_saved_and_loaded_gives_equal_output(
    stepped: tuple[SAMMed3D, TuningReport, Path], tmp_path: Path
) -> None:
    model, report, base = stepped
    folder = tmp_path / "runs" / "adapter"
    save_adapter(report, model, folder, {"base_hash": hash_of_base(), "modality": "PT"})
    assert sorted(p.name for p in folder.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
        "decoder.safetensors",
    ]
    assert [p.name for p in folder.parent.iterdir()] == ["adapter"]
    loaded, metadata = load_adapter(folder, base)
    assert metadata == {
        "base_hash": hash_of_base(),
        "modality": "PT",
        "variant": "mini",
        "in_channels": "1",
        "method": "lora",
    }
    assert list(loaded.state_dict()) == list(seeded_model("mini", seed=1).state_dict())
    assert not loaded.training
    assert relative_error(output_of(loaded, image()), output_of(model, image())) < 5e-6


def test_adapter_replaces_an_earlier_one_and_nothing_else(
    stepped: tuple[SAMMed3D, TuningReport, Path], tmp_path: Path
) -> None:
    model, report, _ = stepped
    metadata = {"base_hash": hash_of_base()}
    save_adapter(report, model, tmp_path / "a", metadata)
    first = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    save_adapter(report, model, tmp_path / "a", metadata)
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == first
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="exists and is not an adapter"):
        save_adapter(report, model, tmp_path / "notes", metadata)
    assert (tmp_path / "notes" / "thesis.tex").read_text() == "years of work"
    with pytest.raises(ValueError, match="base_hash"):
        save_adapter(report, model, tmp_path / "b", {})
    with pytest.raises(ValueError, match="no adapter"):
        save_adapter(tuned("decoder")[1], model, tmp_path / "b", metadata)


def test_peft_itself_reads_the_adapter(
    stepped: tuple[SAMMed3D, TuningReport, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import PeftModel

    model, report, _ = stepped
    save_adapter(report, model, tmp_path / "a", {"base_hash": hash_of_base()})
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["peft_type"] == "LORA"
    assert config["base_model_name_or_path"] is None
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    base = seeded_model("mini", seed=1)
    merged = PeftModel.from_pretrained(base, str(tmp_path / "a")).merge_and_unload()
    with torch.no_grad():
        ours, theirs = model.image_encoder(image()), merged.image_encoder(image())
    assert relative_error(theirs, ours) < 5e-6


def test_adapter_asks_for_its_base(stepped: tuple[SAMMed3D, TuningReport, Path], tmp_path: Path) -> None:
    model, report, base = stepped
    save_adapter(report, model, tmp_path / "a", {"base_hash": hash_of_base()})
    with pytest.raises(InputError, match=f"without its base model: provide .*{hash_of_base()}"):
        load_adapter(tmp_path / "a", None)
    other = tmp_path / "other.safetensors"
    save_safetensors(other, seeded_model("mini", seed=2).state_dict(), {})
    with pytest.raises(InputError, match=f"trained on another base: provide .*{hash_of_base()}"):
        load_adapter(tmp_path / "a", other)
    with pytest.raises(InputError, match="not an adapter of this toolkit: adapter_config.json is missing"):
        load_adapter(tmp_path, base)


def test_damaged_adapters_give_one_line(stepped: tuple[SAMMed3D, TuningReport, Path], tmp_path: Path) -> None:
    model, report, base = stepped

    def saved(name: str) -> Path:
        save_adapter(report, model, tmp_path / name, {"base_hash": hash_of_base()})
        return tmp_path / name

    def refused(folder: Path, match: str) -> None:
        with pytest.raises(InputError, match=match):
            load_adapter(folder, base)

    folder = saved("without")
    (folder / "decoder.safetensors").unlink()
    refused(folder, "decoder.safetensors is missing")

    folder = saved("cut")
    lora = folder / "adapter_model.safetensors"
    lora.write_bytes(lora.read_bytes()[:-100])
    refused(folder, "truncated")

    folder = saved("garbled")
    (folder / "adapter_config.json").write_text("{")
    refused(folder, "not a LoRA configuration")

    folder = saved("rank")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**config, "r": 4}))
    refused(folder, "24 with another shape")

    folder = saved("decoder")
    save_safetensors(
        folder / "decoder.safetensors",
        {"mask_decoder.iou_token.weight": torch.zeros(1, 192)},
        {"base_hash": hash_of_base(), "variant": "mini", "in_channels": "1"},
    )
    refused(folder, "missing, such as prompt_encoder")


@pytest.mark.parametrize("method", ["decoder", "lora", "full"])
def test_trainable_state_goes_back(method: str) -> None:
    model, report = tuned(method)
    one_step(model, image())
    state = {name: tensor.clone() for name, tensor in trainable_state(model).items()}
    assert sum(tensor.numel() for tensor in state.values()) == report.trainable
    resumed, _ = tuned(method)
    assert not torch.equal(output_of(resumed, image()), output_of(model, image()))
    held = dict(resumed.named_parameters())
    load_trainable_state(resumed, state)
    assert torch.equal(output_of(resumed, image()), output_of(model, image()))
    # In place, so that an existing optimiser keeps its parameters.
    assert all(parameter is held[name] for name, parameter in resumed.named_parameters())
    first = next(iter(state))
    with pytest.raises(InputError, match=f"1 missing, such as {first}"):
        load_trainable_state(resumed, {name: state[name] for name in state if name != first})
    with pytest.raises(InputError, match="1 unexpected, such as stranger"):
        load_trainable_state(resumed, {**state, "stranger": torch.zeros(1)})


def test_wrong_choices_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="unknown tuning method 'lorra': expected one of decoder, lora, full"):
        tuned("lorra")
    with pytest.raises(InputError, match="decoder does not support 2 input channels.*use full or lora"):
        tuned("decoder", in_channels=2)
    with pytest.raises(InputError, match="LoRA rank 0"):
        tuned("lora", lora_rank=0)
    with pytest.raises(InputError, match=r"LoRA dropout 1\.0"):
        tuned("lora", lora_dropout=1.0)
    model, _ = tuned("lora")
    with pytest.raises(InputError, match="already has LoRA adapters"):
        configure_tuning(model, "full")
    monkeypatch.setattr(adapters, "LORA_TARGETS", r"encoder\.nothing")
    with pytest.raises(InputError, match="found no module to adapt"):
        tuned("lora")


@pytest.mark.parametrize("method", ["lora", "full"])
def test_second_channel_starts_silent_and_learns(method: str, tmp_path: Path) -> None:
    one_channel = seeded_model("mini", seed=1)
    base = tmp_path / "base.safetensors"
    save_safetensors(base, one_channel.state_dict(), {})
    model = build_model("mini", base, in_channels=2)
    report = configure_tuning(model, method)
    pet, ct = image(seed=0), image(seed=1)
    both = torch.cat([pet, ct], dim=1)
    plain = output_of(one_channel, pet)
    assert relative_error(output_of(model, both), plain) < 1e-6
    assert torch.equal(output_of(model, both), output_of(model, torch.cat([pet, 2 * ct], dim=1)))

    trained = next(n for n in trainable_state(model) if "patch_embed.proj" in n and n.endswith("weight"))
    assert not trainable_state(model)[trained][:, 1].any()
    one_step(model, both)
    assert trainable_state(model)[trained][:, 1].any()
    after = output_of(model, both)
    assert relative_error(output_of(model, torch.cat([pet, 2 * ct], dim=1)), after) > 1e-3

    if method == "lora":  # the patch embedding is part of the adapter
        hash_of_one_channel = state_hash(one_channel.state_dict())
        save_adapter(report, model, tmp_path / "a", {"base_hash": hash_of_one_channel})
        loaded, metadata = load_adapter(tmp_path / "a", base)
        assert metadata["in_channels"] == "2"
        assert relative_error(output_of(loaded, both), after) < 5e-6


def test_import_is_light() -> None:
    code = "import sys, sammed3d_ft.model.adapters; sys.exit('peft' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
