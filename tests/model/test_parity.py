"""Parity with the reference implementation (medim) on equal random weights, and of its parts."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sammed3d_ft.model.attention import RelativeAttention, _in_two
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.mask_decoder import MaskDecoder
from sammed3d_ft.model.sam_med3d import SAMMed3D
from sammed3d_ft.model.upsampling import upsample
from sammed3d_ft.model.variants import VARIANTS

PUBLISHED = Path(__file__).with_name("sam_med3d_vit_b_ori_state_dict.json")
VARIANT = VARIANTS["vit_b_ori"]


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def is_constant(tensor: Tensor) -> bool:
    return bool(tensor.min() == tensor.max())


def randomise(model: nn.Module) -> None:
    """Gives every tensor that starts at zero or one (tables, biases, norms, positions) random values."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if is_constant(parameter):
                # Small beside ones (norm weights), large enough beside zeros to matter.
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.2)


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    assert ours.shape == theirs.shape
    assert ours.dtype == theirs.dtype
    ours, theirs = ours.detach(), theirs.detach()
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.fixture(scope="module")
def pair() -> tuple[SAMMed3D, Any]:
    """Ours and medim's, float32, equal weights."""
    from medim.models.sam_med3d import build_sam3D_vit_b_ori

    ours = seeded_model("vit_b_ori", seed=0)
    randomise(ours)
    theirs = build_sam3D_vit_b_ori().eval()
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return ours.requires_grad_(False), theirs.requires_grad_(False)


def test_names_and_shapes_are_the_published(pair: tuple[SAMMed3D, Any]) -> None:
    found = {name: list(tensor.shape) for name, tensor in pair[0].state_dict().items()}
    assert found == json.loads(PUBLISHED.read_text())
    assert len(found) == 324


def test_nothing_was_left_at_zero(pair: tuple[SAMMed3D, Any]) -> None:
    constant = [name for name, tensor in pair[0].named_parameters() if is_constant(tensor)]
    assert not constant


@pytest.mark.slow
def test_image_encoder_in_float32(pair: tuple[SAMMed3D, Any]) -> None:
    images = normal(2, 1, 128, 128, 128)
    ours = pair[0].image_encoder(images)
    assert relative_error(ours, pair[1].image_encoder(images)) < 1e-5
    alone = pair[0].image_encoder(images[1:])
    assert relative_error(alone, ours[1:]) < 1e-5


@pytest.mark.slow
def test_image_encoder_in_float64(pair: tuple[SAMMed3D, Any]) -> None:
    image = normal(1, 1, 128, 128, 128, seed=1, dtype=torch.float64)
    ours, theirs = pair[0].image_encoder.double(), pair[1].image_encoder.double()
    try:
        assert relative_error(ours(image), theirs(image)) < 1e-10
    finally:
        ours.float()
        theirs.float()


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("with_mask", [True, False])
def test_prompt_encoder(pair: tuple[SAMMed3D, Any], batch: int, with_mask: bool) -> None:
    generator = torch.Generator().manual_seed(batch)
    coords_vox = torch.rand(batch, 3, 3, generator=generator) * 127
    labels = torch.tensor([[1, 0, -1], [0, -1, 1]])[:batch]
    masks = normal(batch, 1, 32, 32, 32, seed=3) * 10 if with_mask else None
    ours = pair[0].prompt_encoder(points=(coords_vox, labels), boxes=None, masks=masks)
    theirs = pair[1].prompt_encoder(points=(coords_vox, labels), boxes=None, masks=masks)
    assert relative_error(ours[0], theirs[0]) < 1e-5
    assert relative_error(ours[1], theirs[1]) < 1e-5


def test_dense_positions(pair: tuple[SAMMed3D, Any]) -> None:
    ours = pair[0].prompt_encoder.get_dense_pe()
    assert relative_error(ours, pair[1].prompt_encoder.get_dense_pe()) < 1e-5
    # Cell (1, 2, 3) spans voxels 16..31, 32..47, 48..63; its encoding is that of a point with x and y swapped.
    at_point = pair[0].prompt_encoder.pe_layer(torch.tensor([2.5, 1.5, 3.5]) / 8)
    assert torch.allclose(ours[0, :, 1, 2, 3], at_point, atol=1e-5)


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_mask_decoder(
    pair: tuple[SAMMed3D, Any], batch: int, multimask: bool, dtype: torch.dtype, tolerance: float
) -> None:
    inputs = {
        "image_embeddings": normal(batch, 384, 8, 8, 8, seed=4, dtype=dtype),
        "image_pe": normal(1, 384, 8, 8, 8, seed=5, dtype=dtype),
        "sparse_prompt_embeddings": normal(batch, 3, 384, seed=6, dtype=dtype),
        "dense_prompt_embeddings": normal(batch, 384, 8, 8, 8, seed=8, dtype=dtype),
    }
    ours, theirs = pair[0].mask_decoder.to(dtype), pair[1].mask_decoder.to(dtype)
    try:
        got = ours(**inputs, multimask_output=multimask)
        expected = theirs(**inputs, multimask_output=multimask)
    finally:
        ours.float()
        theirs.float()
    assert got[0].shape == (batch, 3 if multimask else 1, 32, 32, 32)
    assert relative_error(got[0], expected[0]) < tolerance
    assert relative_error(got[1], expected[1]) < tolerance


def test_several_prompts_on_one_image() -> None:
    model = seeded_model("mini", seed=0)
    embedding = normal(1, 192, 8, 8, 8)
    coords_vox, labels = torch.rand(3, 2, 3) * 63, torch.ones(3, 2, dtype=torch.long)
    with torch.no_grad():
        together = model.decode(embedding, coords_vox, labels)[0]
        apart = [model.decode(embedding, coords_vox[i : i + 1], labels[i : i + 1])[0] for i in range(3)]
    assert relative_error(together, torch.cat(apart)) < 1e-5


def plain_upscale(decoder: MaskDecoder, tokens: Tensor, hyper: Tensor, grid: tuple[int, ...]) -> Tensor:
    """`_upscale` as it is written down: the modules of `output_upscaling`, then one dot product per voxel."""
    volume = decoder.output_upscaling(tokens.transpose(1, 2).unflatten(2, grid))
    return torch.einsum("bmc,bcxyz->bmxyz", hyper, volume)


def test_upscale_equals_the_plain_modules() -> None:
    decoder = MaskDecoder(dim=48, depth=2, num_heads=8, mlp_dim=64, iou_hidden_dim=16, num_masks=4).double()
    randomise(decoder)
    grid = (2, 3, 4)
    tokens = normal(2, 24, 48, dtype=torch.float64).requires_grad_()
    hyper = normal(2, 3, 6, seed=1, dtype=torch.float64).requires_grad_()
    ours, plain = decoder._upscale(tokens, hyper, grid), plain_upscale(decoder, tokens, hyper, grid)
    assert ours.shape == (2, 3, 8, 12, 16)
    assert relative_error(ours, plain) < 1e-12
    inputs = (tokens, hyper, *decoder.output_upscaling.parameters())
    weights = normal(*ours.shape, seed=2, dtype=torch.float64)
    for mine, theirs in zip(
        torch.autograd.grad((ours * weights).sum(), inputs),
        torch.autograd.grad((plain * weights).sum(), inputs),
        strict=True,
    ):
        assert relative_error(mine, theirs) < 1e-10


@pytest.mark.parametrize(("source", "target"), [(32, 128), (5, 20), (4, 7), (6, 6), (8, 3)])
def test_upsample_equals_interpolate(source: int, target: int) -> None:
    volume = normal(2, 1, source, source, source, dtype=torch.float64).requires_grad_()
    ours = upsample(volume, target)
    plain = F.interpolate(volume, (target,) * 3, mode="trilinear", align_corners=False)
    assert relative_error(ours, plain) < 1e-12
    weights = normal(*ours.shape, seed=1, dtype=torch.float64)
    (mine,) = torch.autograd.grad((ours * weights).sum(), volume)
    (theirs,) = torch.autograd.grad((plain * weights).sum(), volume)
    assert relative_error(mine, theirs) < 1e-12


def test_upsample_computes_in_float32_at_least() -> None:
    volume = normal(1, 1, 4, 4, 4, dtype=torch.bfloat16)
    assert torch.equal(upsample(volume, 8), upsample(volume.float(), 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(upsample(volume.float(), 8), upsample(volume, 8))


def published_attention(attention: RelativeAttention, tokens: Tensor) -> Tensor:
    """The published attention by its definition: padded, and the bias of every query and key. For tiny grids."""
    g, s, heads = attention.grid, attention.span, attention.num_heads
    batch = tokens.shape[0]
    padded = F.pad(tokens, (0, 0, 0, s - g, 0, s - g, 0, s - g))
    q, k, v = attention.qkv(padded).reshape(batch, s, s, s, 3, heads, -1).permute(4, 0, 5, 1, 2, 3, 6)
    table_d, table_h, table_w = (attention.get_parameter(f"rel_pos_{axis}") for axis in "dhw")
    scores = attention.scale * torch.einsum("bndhwc,bnijkc->bndhwijk", q, k)
    for d, h, w, kd, kh, kw in itertools.product(range(s), repeat=6):
        # a(d,h,w; kw) + b(d,h,w:=kd; kw) + c(d,h,w:=kh; kw), each from the query at that position
        scores[:, :, d, h, w, kd, kh, kw] += (
            q[:, :, d, h, w] @ table_d[d - kw + s - 1]
            + q[:, :, d, h, kd] @ table_h[h - kw + s - 1]
            + q[:, :, d, h, kh] @ table_w[kh - kw + s - 1]
        )
    weights = scores.flatten(5).softmax(-1).unflatten(-1, (s, s, s))
    attended = torch.einsum("bndhwijk,bnijkc->bdhwnc", weights, v).flatten(4)
    return attention.proj(attended)[:, :g, :g, :g]


@pytest.mark.parametrize("window", [None, 4])
def test_attention_equals_its_definition(window: int | None) -> None:
    attention = RelativeAttention(12, 2, grid=3, window=window).double()
    randomise(attention)
    tokens = normal(2, 3, 3, 3, 12, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(attention(tokens), published_attention(attention, tokens)) < 1e-12


def test_padding_in_two_16_bit_logits_is_exact() -> None:
    logit = torch.tensor([-7.7, -1e-3, 0.0, 1e-3, 1.0, 7.719, 9.03], dtype=torch.float64)[:, None]
    logit.requires_grad_()
    two = _in_two(logit.float(), torch.bfloat16)
    assert two.dtype == torch.bfloat16
    rounded = (logit.bfloat16().double() - logit).abs().amax()
    total = two.double().logsumexp(-1, keepdim=True)
    assert (total - logit).abs().amax() < 2e-3 < rounded
    total.sum().backward()
    torch.testing.assert_close(logit.grad, torch.ones_like(logit), atol=4e-3, rtol=0)


@pytest.mark.parametrize("window", [3, 4])
def test_several_windows_are_refused(window: int) -> None:
    with pytest.raises(ValueError, match=f"window of {window} tokens: expected more than the grid's 4"):
        RelativeAttention(8, 2, grid=4, window=window)


def run_python(code: str) -> str:
    """Output of a fresh interpreter in which torchvision cannot be imported."""
    code = "import sys; sys.modules['torchvision'] = None\n" + code
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_segment_anything_parts_need_no_torchvision() -> None:
    code = "from sammed3d_ft.model.segment_anything_parts import MLP, MLPBlock, TwoWayTransformer as T\n"
    assert run_python(code + "print(T.__name__)") == "TwoWayTransformer"


def test_a_later_import_of_segment_anything_runs_the_real_package() -> None:
    code = (
        "import types\n"
        "from sammed3d_ft.model.segment_anything_parts import TwoWayTransformer\n"
        "assert not [name for name in sys.modules if name.startswith('segment_anything')]\n"
        # A stand-in, for the real package's predictor needs torchvision's transforms.
        "for name in ('torchvision', 'torchvision.transforms', 'torchvision.transforms.functional', "
        "'torchvision.ops', 'torchvision.ops.boxes'):\n"
        "    sys.modules[name] = module = types.ModuleType(name)\n"
        "    module.resize = module.to_pil_image = module.batched_nms = module.box_area = None\n"
        "import segment_anything\n"
        "assert callable(segment_anything.build_sam_vit_b), vars(segment_anything)\n"
        "assert segment_anything.modeling.TwoWayTransformer.__name__ == TwoWayTransformer.__name__\n"
        "print('real')"
    )
    assert run_python(code) == "real"
