"""The table of variants and the models built from it."""

from __future__ import annotations

import pytest
import torch

from sammed3d_ft.errors import InputError
from sammed3d_ft.model.build import build_model, parameter_count, seeded_model
from sammed3d_ft.model.sam_med3d import SAMMed3D
from sammed3d_ft.model.variants import VARIANTS, variant_named


def test_published_variant_has_the_published_size() -> None:
    with torch.device("meta"):
        model = SAMMed3D(VARIANTS["vit_b_ori"])
    parts = {name: round(parameter_count(part) / 1e6, 1) for name, part in model.named_children()}
    assert parts == {"image_encoder": 92.9, "prompt_encoder": 0.0, "mask_decoder": 7.6}
    assert round(parameter_count(model) / 1e6, 1) == 100.5


@pytest.mark.parametrize("variant", VARIANTS.values(), ids=VARIANTS)
def test_variants_are_consistent(variant) -> None:
    assert variant.image_size % variant.patch_size == 0
    assert variant.grid == 8
    assert variant.logits_size == 32
    assert variant.window > variant.grid
    assert variant.embed_dim % variant.num_heads == 0
    # Both see the same body region, so that clicks and crops mean the same to both.
    assert variant.image_size * variant.spacing_mm == 192
    assert VARIANTS[variant.name] is variant


@pytest.mark.parametrize("in_channels", [1, 2])
def test_mini_runs_from_image_to_logits(in_channels: int) -> None:
    model = seeded_model("mini", seed=0, in_channels=in_channels)
    assert not model.training
    with torch.no_grad():
        embedding = model.image_encoder(torch.zeros(2, in_channels, 64, 64, 64))
        low, iou = model.decode(embedding, torch.full((2, 1, 3), 32.0), torch.ones(2, 1, dtype=torch.long))
    assert embedding.shape == (2, 192, 8, 8, 8)
    assert low.shape == (2, 1, 32, 32, 32)
    assert iou.shape == (2, 1)


def test_seeded_model_depends_on_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = seeded_model("mini", seed=3).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = seeded_model("mini", seed=3).state_dict(), seeded_model("mini", seed=4).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    name = "image_encoder.blocks.0.attn.qkv.weight"
    assert not torch.equal(first[name], other[name])


@pytest.mark.parametrize("shape", [(1, 2, 64, 64, 64), (1, 1, 64, 64, 32), (1, 1, 128, 128, 128)])
def test_wrong_crop_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected \(batch, 1, 64, 64, 64\)"):
        seeded_model("mini", seed=0).image_encoder(torch.zeros(shape))


def test_wrong_names_and_channels_are_refused() -> None:
    with pytest.raises(InputError, match="unknown model variant 'vit_l': expected one of mini, vit_b_ori"):
        variant_named("vit_l")
    with pytest.raises(InputError, match="3 input channels: expected 1 "):
        build_model("mini", in_channels=3)
    with pytest.raises(ValueError, match="boxes|box"):
        seeded_model("mini", seed=0).prompt_encoder(points=None, boxes=torch.zeros(1, 6))
