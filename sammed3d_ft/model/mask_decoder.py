"""SAM-Med3D's mask decoder: image embedding and prompts -> low-resolution logits and predicted IoU."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sammed3d_ft.model.layers import ChannelNorm, token_embedding
from sammed3d_ft.model.segment_anything_parts import MLP, TwoWayTransformer


class MaskDecoder(nn.Module):
    """Two-way transformer over prompt tokens and image embedding, followed by upscaling by four.

    Args:
        dim: channels D of image embedding and prompts.
        depth, num_heads, mlp_dim: size of the two-way transformer.
        iou_hidden_dim: hidden width of the head that predicts each mask's IoU.
        num_masks: number of mask tokens; mask 0 is the single-mask output, the others the multi-mask output.
    """

    def __init__(
        self, *, dim: int, depth: int, num_heads: int, mlp_dim: int, iou_hidden_dim: int, num_masks: int
    ) -> None:
        super().__init__()
        self.transformer = TwoWayTransformer(depth=depth, embedding_dim=dim, num_heads=num_heads, mlp_dim=mlp_dim)
        self.iou_token = token_embedding(1, dim)
        self.mask_tokens = token_embedding(num_masks, dim)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose3d(dim, dim // 4, kernel_size=2, stride=2),
            ChannelNorm(dim // 4),
            nn.GELU(),
            nn.ConvTranspose3d(dim // 4, dim // 8, kernel_size=2, stride=2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(MLP(dim, dim, dim // 8, 3) for _ in range(num_masks))
        self.iou_prediction_head = MLP(dim, iou_hidden_dim, num_masks, 3)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Predict logits and IoU.

        Args:
            image_embeddings: (B, D, g, g, g), or (1, D, g, g, g) for B prompts on one image.
            image_pe: (1, D, g, g, g), from `PromptEncoder.get_dense_pe`.
            sparse_prompt_embeddings: (B, N, D).
            dense_prompt_embeddings: (B, D, g, g, g).
            multimask_output: return masks 1 to 3 instead of mask 0.

        Returns:
            logits (B, M, 4g, 4g, 4g) and predicted IoU (B, M), M = 1 or 3.
        """
        chosen = range(1, self.mask_tokens.num_embeddings) if multimask_output else range(1)
        batch = sparse_prompt_embeddings.shape[0]
        output_tokens = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([output_tokens.expand(batch, -1, -1), sparse_prompt_embeddings], dim=1)
        image = image_embeddings + dense_prompt_embeddings
        grid = image.shape[2:]
        # segment-anything's transformer expects (B, C, H, W) and flattens H and W, so merge the last two axes.
        hidden, image_tokens = self.transformer(
            image.flatten(3), image_pe.expand(batch, -1, -1, -1, -1).flatten(3), tokens
        )
        hyper = torch.stack([self.output_hypernetworks_mlps[index](hidden[:, 1 + index]) for index in chosen], dim=1)
        iou = self.iou_prediction_head(hidden[:, 0])[:, chosen.start : chosen.stop]
        return self._upscale(image_tokens, hyper, tuple(grid)), iou

    def _upscale(self, tokens: Tensor, hyper: Tensor, grid: tuple[int, ...]) -> Tensor:
        """(B, g^3, D) tokens and (B, M, D/8) weights -> (B, M, 4g, 4g, 4g) logits.

        A transposed convolution with kernel 2 and stride 2 is a linear map from each voxel to its 2 x 2 x 2
        children. Everything is therefore computed with channels last, and only the final M logits are
        transposed. Tested against the plain `output_upscaling`.
        """
        layers = list(self.output_upscaling)
        first, norm, second = layers[0], layers[1], layers[3]
        assert isinstance(first, nn.ConvTranspose3d)
        assert isinstance(norm, ChannelNorm)
        assert isinstance(second, nn.ConvTranspose3d)
        voxels = _children(tokens, first)  # (B, g^3, 8, D/4)
        voxels = F.gelu(F.layer_norm(voxels, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        voxels = F.gelu(_children(voxels, second))  # (B, g^3, 8, 8, D/8)
        batch, masks = hyper.shape[:2]
        logits = hyper @ voxels.flatten(1, 3).transpose(1, 2)  # (B, M, g^3 * 64)
        x, y, z = grid
        # axes: batch, mask, cell (x y z), first halving (i j k), second halving (p q r)
        logits = logits.reshape(batch, masks, x, y, z, 2, 2, 2, 2, 2, 2)
        return logits.permute(0, 1, 2, 5, 8, 3, 6, 9, 4, 7, 10).reshape(batch, masks, 4 * x, 4 * y, 4 * z)


def _children(voxels: Tensor, convolution: nn.ConvTranspose3d) -> Tensor:
    """Kernel-2, stride-2 transposed convolution, channels last: (..., C) -> (..., 8 children, C')."""
    weight = convolution.weight  # (C, C', 2, 2, 2)
    flat = weight.permute(2, 3, 4, 1, 0).reshape(-1, weight.shape[0])  # (8 * C', C)
    children = F.linear(voxels, flat).unflatten(-1, (8, weight.shape[1]))
    return children + convolution.bias
