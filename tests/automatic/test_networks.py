"""The networks: the paper's sizes against MONAI, trainable parameters, and SAM-Med3D's encoder in UNETR."""

from __future__ import annotations

import pytest
import torch
from monai.networks.nets import UNETR, AttentionUnet, SegResNet, UNet
from torch import nn

from sammed3d_ft.automatic.networks import NETWORKS, build_network, crop_problem
from sammed3d_ft.automatic.unetr_sammed3d import UNETRSAMMed3D
from sammed3d_ft.errors import InputError

CHANNELS = (16, 32, 64, 128, 256, 512)


def of_monai(name: str, in_channels: int) -> nn.Module:
    """Built as the paper's authors do (end of the study's settings), but with one output channel."""
    if name == "unet":
        return UNet(3, in_channels, 1, CHANNELS, (2, 2, 2, 2, 2), num_res_units=2, norm="batch")
    if name == "attention_unet":
        return AttentionUnet(3, in_channels, 1, CHANNELS, (2, 2, 2, 2, 2))
    if name == "segresnet":
        return SegResNet(3, 16, in_channels, 1, blocks_down=(1, 2, 2, 4), blocks_up=(1, 1, 1))
    return UNETR(
        in_channels, 1, (128, 128, 128), feature_size=8, hidden_size=192, mlp_dim=768, num_heads=3, proj_type="conv"
    )


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Recorded of MONAI 1.6.1 with two input channels.
    [("unet", 19_288_452), ("attention_unet", 23_674_797), ("segresnet", 4_701_329), ("unetr", None)],
)
def test_a_paper_network_is_monais(name: str, parameters: int | None) -> None:
    ours, monais = build_network(name, "paper", 2, 128), of_monai(name, 2)
    shapes = {key: tensor.shape for key, tensor in ours.state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in monais.state_dict().items()}
    if parameters is not None:
        assert sum(p.numel() for p in ours.parameters()) == parameters
    if name != "unetr":  # which only takes crops of 128 voxels
        monais.load_state_dict(ours.state_dict())
        image = torch.rand(1, 2, 32, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.inference_mode():
            assert torch.equal(ours.eval()(image), monais.eval()(image))


@pytest.mark.parametrize("name", NETWORKS)
def test_every_parameter_that_trains_gets_a_gradient(name: str) -> None:
    """Unused parameters would make several processes wait for each other."""
    network = build_network(name, "laptop", 2, 64)
    logits = network(torch.rand(1, 2, 64, 64, 64))
    assert logits.shape == (1, 1, 64, 64, 64)
    logits.square().mean().backward()
    assert [key for key, p in network.named_parameters() if p.requires_grad and p.grad is None] == []


def test_the_encoders_hidden_states_are_those_after_equal_shares_of_its_blocks() -> None:
    network = build_network("unetr_sammed3d", "laptop", 1, 64).eval()
    assert isinstance(network, UNETRSAMMed3D)
    image = torch.rand(1, 1, 64, 64, 64)
    with torch.inference_mode():
        output, states = network._encode(image)
        tokens = network.encoder.patch_embed(image) + network.encoder.pos_embed
        after = [tokens := block(tokens) for block in network.encoder.blocks]
        assert torch.equal(output, network.encoder(image))
    assert len(after) == 6
    assert [state.shape for state in states] == [(1, 192, 8, 8, 8)] * 2
    for state, number in zip(states, (2, 4), strict=True):  # of 6 blocks, two before each of three levels
        assert torch.equal(state, after[number - 1].permute(0, 4, 1, 2, 3))


def test_the_published_encoder_is_tapped_as_in_unetr() -> None:
    network = build_network("unetr_sammed3d", "paper", 2, 128)
    assert isinstance(network, UNETRSAMMed3D)
    assert network.taps == (2, 5, 8)  # after blocks 3, 6 and 9 of 12
    assert network.encoder.in_channels == 2
    network = network.to("meta")  # shapes without values
    with torch.device("meta"):  # the decoder alone: four halvings lead from 8 tokens to 128 voxels
        coarse = torch.zeros(1, 384, 8, 8, 8)
        for block, width in zip(reversed(network.up), (128, 64, 32, 16), strict=True):
            size = 2 * coarse.shape[-1]
            coarse = block(coarse, torch.zeros(1, width, size, size, size))
        assert network.out(coarse).shape == (1, 1, 128, 128, 128)
        assert network.from_hidden[0](torch.zeros(1, 768, 8, 8, 8)).shape == (1, 32, 64, 64, 64)


def test_the_encoder_sees_z_scores_of_clipped_suv() -> None:
    """The output does not depend on the unit of uptake, unless it is clipped; values above SUV 50 are equivalent."""
    network = build_network("unetr_sammed3d", "laptop", 1, 64).eval()
    image = torch.rand(1, 1, 64, 64, 64) * 10
    hot = image.clone()
    hot[0, 0, 30:34, 30:34, 30:34] = 60
    with torch.inference_mode():
        torch.testing.assert_close(network(image), network(3 * image), rtol=1e-3, atol=1e-4)
        hotter = torch.where(hot == 60, 90.0, hot)
        assert torch.equal(network(hot), network(hotter))


@pytest.mark.parametrize(
    ("name", "size", "crop_size", "says"),
    [
        ("unet", "paper", 120, "multiple of 32, at least 64"),
        ("unet", "paper", 32, "multiple of 32, at least 64"),
        ("segresnet", "paper", 100, "multiple of 8, at least 16"),
        ("unetr", "laptop", 72, "multiple of 16, at least 32"),
        ("unetr_sammed3d", "paper", 64, "needs crops of 128 voxels"),
        ("unetr_sammed3d", "laptop", 128, "needs crops of 64 voxels"),
    ],
)
def test_a_crop_that_a_network_cannot_take_is_refused(name: str, size: str, crop_size: int, says: str) -> None:
    assert says in (crop_problem(name, size, crop_size) or "")
    with pytest.raises(InputError, match=says):
        build_network(name, size, 1, crop_size)


def test_an_unknown_network_is_refused() -> None:
    with pytest.raises(InputError, match="unknown network 'vnet' of size 'paper': expected one of unet, attention"):
        build_network("vnet", "paper", 1, 64)
