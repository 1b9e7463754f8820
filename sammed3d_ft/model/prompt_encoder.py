"""SAM-Med3D's prompt encoder: clicks and previous mask logits -> sparse and dense prompt embeddings."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sammed3d_ft.model.layers import ChannelNorm, token_embedding


class FourierPositions(nn.Module):
    """Random Fourier features of positions in [0, 1]^3: cat(sin, cos, sin) of 2 pi (2 x - 1) G."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(3, features))

    def forward(self, positions: Tensor) -> Tensor:
        """(..., 3) in [0, 1] -> (..., 3 * features)."""
        phases = 2 * math.pi * ((2 * positions - 1) @ self.positional_encoding_gaussian_matrix)
        sine = phases.sin()
        return torch.cat([sine, phases.cos(), sine], dim=-1)


class PromptEncoder(nn.Module):
    """Embeds clicks (sparse) and low-resolution mask logits (dense).

    Args:
        embed_dim: channels D of the embeddings; a multiple of 3.
        image_size: voxels per axis of the crop.
        grid: tokens per axis of the image embedding.
        mask_in_channels: hidden channels of the mask convolutions.
    """

    def __init__(self, *, embed_dim: int, image_size: int, grid: int, mask_in_channels: int) -> None:
        super().__init__()
        if embed_dim % 3:
            raise ValueError(f"{embed_dim} channels: expected a multiple of 3")
        self.embed_dim = embed_dim
        self.image_size = image_size
        self.grid = grid
        self.pe_layer = FourierPositions(embed_dim // 3)
        self.point_embeddings = nn.ModuleList(token_embedding(1, embed_dim) for _ in range(2))
        self.not_a_point_embed = token_embedding(1, embed_dim)
        self.mask_downscaling = nn.Sequential(
            nn.Conv3d(1, mask_in_channels // 4, kernel_size=2, stride=2),
            ChannelNorm(mask_in_channels // 4),
            nn.GELU(),
            nn.Conv3d(mask_in_channels // 4, mask_in_channels, kernel_size=2, stride=2),
            ChannelNorm(mask_in_channels),
            nn.GELU(),
            nn.Conv3d(mask_in_channels, embed_dim, kernel_size=1),
        )
        self.no_mask_embed = token_embedding(1, embed_dim)

    def get_dense_pe(self) -> Tensor:
        """Positional encoding of the embedding grid, (1, D, g, g, g).

        Axes 0 and 1 are swapped relative to the encoding of clicks: cell (i, j, k) gets the encoding of a click
        at (j, i, k). The published weights were trained this way.
        """
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        centres = (torch.arange(self.grid, device=matrix.device, dtype=matrix.dtype) + 0.5) / self.grid
        i, j, k = torch.meshgrid(centres, centres, centres, indexing="ij")
        return self.pe_layer(torch.stack([j, i, k], dim=-1)).permute(3, 0, 1, 2).unsqueeze(0)

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: None = None, masks: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embed a batch of prompts.

        Args:
            points: coordinates (B, N, 3) in crop voxels, axes x, y, z, and labels (B, N): 1 foreground,
                0 background, -1 no click. One "no click" point is appended, as in the published model.
            boxes: must be None: the published box embeddings were never trained.
            masks: (B, 1, 4g, 4g, 4g) previous logits, or None for the learned "no mask" embedding.

        Returns:
            sparse (B, N + 1, D), or (B, 0, D) without points, and dense (B, D, g, g, g).
        """
        if boxes is not None:
            raise ValueError("box prompts are not supported: SAM-Med3D's box embeddings were never trained; use clicks")
        weight = self.no_mask_embed.weight
        if points is not None:
            batch = points[0].shape[0]
            sparse = self._embed_points(*points)
        else:
            batch = 1 if masks is None else masks.shape[0]
            sparse = weight.new_zeros(batch, 0, self.embed_dim)
        if masks is not None:
            return sparse, self.mask_downscaling(masks)
        return sparse, weight.reshape(1, -1, 1, 1, 1).expand(batch, -1, self.grid, self.grid, self.grid)

    def _embed_points(self, coords_vox: Tensor, labels: Tensor) -> Tensor:
        coords_vox = torch.cat([coords_vox, coords_vox.new_zeros(coords_vox.shape[0], 1, 3)], dim=1)
        labels = torch.cat([labels, labels.new_full((labels.shape[0], 1), -1)], dim=1).unsqueeze(-1)
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        # +0.5 gives the voxel centre. Positions keep the buffer's precision under autocast.
        encoded = self.pe_layer((coords_vox.to(matrix.dtype) + 0.5) / self.image_size)
        background, foreground = (embedding.get_parameter("weight") for embedding in self.point_embeddings)
        encoded = encoded + torch.where(labels == 1, foreground, background)
        return torch.where(labels == -1, self.not_a_point_embed.weight, encoded)
