"""UNETR with SAM-Med3D's image encoder in place of its own: MONAI's decoder on the encoder's hidden states."""

from __future__ import annotations

import math
from typing import Any

import torch
from monai.networks.blocks import UnetOutBlock, UnetrBasicBlock, UnetrPrUpBlock, UnetrUpBlock
from torch import Tensor, nn

from sammed3d_ft.images.intensity import CLIP_RANGES, z_score
from sammed3d_ft.model.build import build_model
from sammed3d_ft.model.variants import VARIANTS


class UNETRSAMMed3D(nn.Module):
    """Crop (B, C, S, S, S) -> logits (B, 1, S, S, S).

    As in UNETR (Hatamizadeh et al., arXiv 2103.10504), the deepest level is the encoder's output and the finest level
    the input itself. The levels between are hidden states taken after equal shares of the blocks and upsampled by
    transposed convolutions. Patches of 16 voxels give four halvings of the resolution and three hidden states (after
    blocks 3, 6 and 9 of 12); patches of 8 give three halvings and two hidden states.

    The encoder's input is preprocessed as in its training: PET clipped to [0, 50] SUV, each crop z-scored over its
    voxels > 0.

    Args:
        in_channels: 1, or 2 (PET and CT).
        variant: of SAM-Med3D; sets the crop size S.
        feature_size: channels of the finest level; they double with every halving.
    """

    def __init__(self, in_channels: int, variant: str, feature_size: int) -> None:
        super().__init__()
        form = VARIANTS[variant]
        halvings = int(math.log2(form.patch_size))
        self.encoder = build_model(variant, in_channels=in_channels).train().image_encoder
        # Indices (from 0) of the blocks after which the hidden states of levels 1, 2, ... are taken.
        self.taps = tuple(math.ceil(form.depth * level / halvings) - 1 for level in range(1, halvings))
        common = {"spatial_dims": 3, "kernel_size": 3, "norm_name": "instance", "res_block": True}
        self.from_input = UnetrBasicBlock(in_channels=in_channels, out_channels=feature_size, stride=1, **common)
        self.from_hidden = nn.ModuleList(
            UnetrPrUpBlock(
                in_channels=form.embed_dim,
                out_channels=feature_size * 2**level,
                num_layer=halvings - 1 - level,
                stride=1,
                upsample_kernel_size=2,
                conv_block=True,
                **common,
            )
            for level in range(1, halvings)
        )
        widths = [feature_size * 2**level for level in range(halvings)]
        self.up = nn.ModuleList(
            UnetrUpBlock(in_channels=wider, out_channels=width, upsample_kernel_size=2, **common)
            for width, wider in zip(widths, [*widths[1:], form.out_dim], strict=True)
        )
        self.out = UnetOutBlock(spatial_dims=3, in_channels=feature_size, out_channels=1)

    def forward(self, image: Tensor) -> Tensor:
        # Other modalities than PET are already scaled to [0, 1], which the clipping does not change.
        image = torch.stack([z_score(crop) for crop in image.clamp(*CLIP_RANGES["PT"])])
        coarse, hidden = self._encode(image)
        skips = [self.from_input(image), *(block(state) for block, state in zip(self.from_hidden, hidden, strict=True))]
        for block, skip in zip(reversed(self.up), reversed(skips), strict=True):
            coarse = block(coarse, skip)
        return self.out(coarse)

    def _encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The encoder's output and its tapped hidden states, channels first."""
        states: list[Tensor] = []

        def keep(block: nn.Module, arguments: Any, tokens: Tensor) -> None:
            states.append(tokens.permute(0, 4, 1, 2, 3).contiguous())

        hooks = [self.encoder.blocks[tap].register_forward_hook(keep) for tap in self.taps]
        try:
            return self.encoder(image), states
        finally:
            for hook in hooks:
                hook.remove()
