"""The published training step with medim's model, for comparison of speed. Imported by the benchmark scripts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def published_loss(
    model: Any,
    batch: dict[str, Tensor],
    rounds: int,
    criterion: Callable[[Tensor, Tensor], Tensor],
    next_clicks: Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]],
    frozen_encoder: bool,
) -> Tensor:
    """Mean loss over rounds of click, decode and upsample; the encoder runs at every step.

    Args:
        model: medim's SAM-Med3D.
        batch: ``image`` and ``target`` (B, 1, S, S, S), ``coords`` (B, 3) in voxels, ``labels`` (B,).
        rounds: clicks per sample.
        criterion: loss of logits and target.
        next_clicks: returns the next clicks, given the current mask, the target and the round's number.
        frozen_encoder: compute no gradient for the encoder.
    """
    target = batch["target"]
    with torch.set_grad_enabled(not frozen_encoder):
        embedding = model.image_encoder(batch["image"])
    coords, labels = batch["coords"][:, None], batch["labels"][:, None]
    low = embedding.new_zeros(len(coords), 1, 32, 32, 32)
    total = embedding.new_zeros((), dtype=torch.float32)
    for number in range(1, rounds + 1):
        sparse, dense = model.prompt_encoder(points=[coords, labels], boxes=None, masks=low.detach())
        low, _ = model.mask_decoder(
            image_embeddings=embedding,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        logits = F.interpolate(low, size=target.shape[-3:], mode="trilinear", align_corners=False)
        total = total + criterion(logits, target)
        with torch.no_grad():
            new, sign = next_clicks(logits > 0, target, number)
        coords, labels = torch.cat([coords, new[:, None]], 1), torch.cat([labels, sign[:, None]], 1)
    return total / rounds
