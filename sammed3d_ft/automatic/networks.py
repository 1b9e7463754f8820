"""The baseline networks: MONAI's U-Net family in the paper's sizes, and in sizes for a laptop.

All output one logit per voxel. The paper's networks output two (background and lesion) followed by a softmax. The
lesion probability is then the sigmoid of their difference, so one logit is equivalent, and our losses on one logit
equal those on two (tests/losses shows this for L1DFL).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from sammed3d_ft.errors import InputError
from sammed3d_ft.model.variants import VARIANTS

if TYPE_CHECKING:
    from torch import nn

SIZES = ("paper", "laptop")


@dataclass(frozen=True)
class _Form:
    """A network in one size.

    Attributes:
        arguments: of its builder.
        multiple: the crop size must be a multiple of this.
        smallest: minimum crop size, so that batch norm sees more than one voxel even in a batch of one.
        only: the only crop size possible, or None.
    """

    arguments: dict[str, Any]
    multiple: int
    smallest: int
    only: int | None = None


def _u_shaped(channels: tuple[int, ...], **more: Any) -> _Form:
    levels = len(channels) - 1
    return _Form({"channels": channels, "strides": (2,) * levels, **more}, 2**levels, 2 * 2**levels)


def _on_sam_med3d(variant: str, feature_size: int) -> _Form:
    size = VARIANTS[variant].image_size
    return _Form({"variant": variant, "feature_size": feature_size}, size, size, only=size)


# The paper's settings: arXiv 2502.02756 and its authors' code. UNETR's position embedding is the "conv" one.
_FORMS: dict[tuple[str, str], _Form] = {
    ("unet", "paper"): _u_shaped((16, 32, 64, 128, 256, 512), num_res_units=2, norm="BATCH"),
    ("unet", "laptop"): _u_shaped((8, 16, 32, 64, 128), num_res_units=2, norm="BATCH"),
    ("attention_unet", "paper"): _u_shaped((16, 32, 64, 128, 256, 512)),
    ("attention_unet", "laptop"): _u_shaped((8, 16, 32, 64, 128)),
    ("segresnet", "paper"): _Form({"init_filters": 16, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1)}, 8, 16),
    ("segresnet", "laptop"): _Form({"init_filters": 8, "blocks_down": (1, 2, 2, 4), "blocks_up": (1, 1, 1)}, 8, 16),
    ("unetr", "paper"): _Form({"feature_size": 8, "hidden_size": 192, "mlp_dim": 768, "num_heads": 3}, 16, 32),
    ("unetr", "laptop"): _Form({"feature_size": 4, "hidden_size": 96, "mlp_dim": 384, "num_heads": 3}, 16, 32),
    ("unetr_sammed3d", "paper"): _on_sam_med3d("vit_b_ori", feature_size=16),
    ("unetr_sammed3d", "laptop"): _on_sam_med3d("mini", feature_size=8),
}
NETWORKS = tuple(dict.fromkeys(name for name, _ in _FORMS))


def crop_problem(name: str, size: str, crop_size: int) -> str | None:
    """Why a network cannot take crops of this many voxels per axis, in one phrase; None if it can."""
    form = _FORMS[name, size]
    if form.only is not None and crop_size != form.only:
        return f"the encoder of {name} in size {size} needs crops of {form.only} voxels"
    if crop_size % form.multiple or crop_size < form.smallest:
        return f"{name} in size {size} needs a multiple of {form.multiple}, at least {form.smallest}"
    return None


def encoder_variant(name: str, size: str) -> str | None:
    """The SAM-Med3D variant whose encoder a network uses; None for other networks."""
    variant: str | None = _FORMS[name, size].arguments.get("variant")
    return variant


def build_network(name: str, size: str, in_channels: int, crop_size: int) -> nn.Module:
    """Build a network with random weights, drawn from torch's global generator.

    Args:
        name: one of `NETWORKS`.
        size: "paper" or "laptop".
        in_channels: 1, or 2 (PET and CT).
        crop_size: voxels per axis of its input; UNETR's position embedding depends on it.

    Returns:
        Module (B, in_channels, S, S, S) -> logits (B, 1, S, S, S). Parameters unused by its forward are frozen.

    Raises:
        InputError: an unknown name or size, or a crop size that the network cannot take.
    """
    if (name, size) not in _FORMS:
        raise InputError(
            f"unknown network {name!r} of size {size!r}: expected one of {', '.join(NETWORKS)} and {' or '.join(SIZES)}"
        )
    problem = crop_problem(name, size, crop_size)
    if problem is not None:
        raise InputError(f"crops of {crop_size} voxels: {problem}")
    return _BUILDERS[name](in_channels, crop_size, **_FORMS[name, size].arguments)


def _convolutional(name: str, in_channels: int, crop_size: int, **arguments: Any) -> nn.Module:
    from monai.networks import nets

    network: nn.Module = getattr(nets, name)(spatial_dims=3, in_channels=in_channels, out_channels=1, **arguments)
    return network


def _unetr(in_channels: int, crop_size: int, **arguments: Any) -> nn.Module:
    from monai.networks.nets import UNETR

    network = UNETR(in_channels=in_channels, out_channels=1, img_size=crop_size, proj_type="conv", **arguments)
    for parameter_name, parameter in network.named_parameters():
        if "cross_attn" in parameter_name:  # unused here: without a gradient it would stall distributed training
            parameter.requires_grad_(False)
    return network


def _unetr_sammed3d(in_channels: int, crop_size: int, **arguments: Any) -> nn.Module:
    from sammed3d_ft.automatic.unetr_sammed3d import UNETRSAMMed3D

    return UNETRSAMMed3D(in_channels=in_channels, **arguments)


_BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "unet": partial(_convolutional, "UNet"),
    "attention_unet": partial(_convolutional, "AttentionUnet"),
    "segresnet": partial(_convolutional, "SegResNet"),
    "unetr": _unetr,
    "unetr_sammed3d": _unetr_sammed3d,
}
