"""SAM-Med3D's image encoder: a 3D vision transformer, crop (B, C, S, S, S) -> embedding (B, D, g, g, g)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sammed3d_ft.model.attention import RelativeAttention
from sammed3d_ft.model.layers import ChannelNorm
from sammed3d_ft.model.segment_anything_parts import MLPBlock


class PatchEmbedding(nn.Module):
    """Embed non-overlapping patches as tokens: (B, C, S, S, S) -> (B, g, g, g, E)."""

    def __init__(self, in_channels: int, embed_dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_channels, embed_dim, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        return self.proj(image).permute(0, 2, 3, 4, 1)


class Block(nn.Module):
    """Pre-norm transformer block on (B, g, g, g, E)."""

    def __init__(self, dim: int, num_heads: int, grid: int, window: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = RelativeAttention(dim, num_heads, grid=grid, window=window)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLPBlock(dim, 4 * dim, nn.GELU)

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.attn(self.norm1(tokens))
        return tokens + self.mlp(self.norm2(tokens))


class ImageEncoder(nn.Module):
    """The published encoder (ViT-B with windowed and global blocks) in an exact form without padding.

    Args:
        image_size: voxels per axis of the crop.
        patch_size: voxels per axis of a patch; must divide ``image_size``.
        in_channels: 1 (PET or CT), or 2 (PET and CT).
        embed_dim, depth, num_heads: transformer size.
        global_blocks: indices of the blocks that attend to the whole grid; the others use windows.
        window: tokens per axis of a window; the grid is zero-padded up to it.
        out_dim: channels of the embedding.
    """

    def __init__(
        self,
        *,
        image_size: int,
        patch_size: int,
        in_channels: int,
        embed_dim: int,
        depth: int,
        num_heads: int,
        global_blocks: tuple[int, ...],
        window: int,
        out_dim: int,
    ) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"the crop size of {image_size} voxels is not divisible by the patch size {patch_size}")
        grid = image_size // patch_size
        self.img_size = image_size
        self.patch_embed = PatchEmbedding(in_channels, embed_dim, patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, grid, embed_dim))
        self.blocks = nn.ModuleList(
            Block(embed_dim, num_heads, grid, None if index in global_blocks else window) for index in range(depth)
        )
        self.neck = nn.Sequential(
            nn.Conv3d(embed_dim, out_dim, kernel_size=1, bias=False),
            ChannelNorm(out_dim),
            nn.Conv3d(out_dim, out_dim, kernel_size=3, padding=1, bias=False),
            ChannelNorm(out_dim),
        )

    @property
    def in_channels(self) -> int:
        return self.patch_embed.proj.in_channels

    def forward(self, image: Tensor) -> Tensor:
        """Embed a batch of crops.

        Args:
            image: (B, C, S, S, S) float, axes x, y, z of the RAS+ crop, z-scored.

        Returns:
            (B, out_dim, g, g, g) with g = S / patch size.
        """
        expected = (self.in_channels, self.img_size, self.img_size, self.img_size)
        if tuple(image.shape[1:]) != expected:
            raise ValueError(f"image of shape {tuple(image.shape)}: expected (batch, {', '.join(map(str, expected))})")
        tokens = self.patch_embed(image) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens)
        # The 1x1 convolution is a linear map of the tokens; applied before the axes are permuted, it moves less memory.
        pointwise, *rest = self.neck
        embedding = F.linear(tokens, pointwise.weight.flatten(1)).permute(0, 4, 1, 2, 3)  # type: ignore[operator]
        for layer in rest:
            embedding = layer(embedding)
        return embedding
