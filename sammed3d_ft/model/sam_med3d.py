"""SAM-Med3D: image encoder, prompt encoder, mask decoder, and the interactive training loop."""

from __future__ import annotations

from collections.abc import Callable, Collection
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sammed3d_ft.model.image_encoder import ImageEncoder
from sammed3d_ft.model.mask_decoder import MaskDecoder
from sammed3d_ft.model.prompt_encoder import PromptEncoder
from sammed3d_ft.model.upsampling import upsample
from sammed3d_ft.model.variants import Variant

# (prediction, target, round) -> coordinates (B, 3) in crop voxels and labels (B,), -1 for no click.
# Prediction and target are bool (B, 1, S, S, S); rounds count from 1 (round 0 has the first click).
ClickSource = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


class LoopOutput(NamedTuple):
    """Output of the interactive loop; per-round tensors are ordered by round, for the R rounds with gradient."""

    loss: Tensor  # scalar: mean over rounds with gradient of mask loss + iou_weight * IoU loss
    mask_losses: Tensor  # (R,), detached
    iou_losses: Tensor  # (R,), detached
    dice: Tensor  # (R, B), Dice of the thresholded crop, detached
    max_probability: Tensor  # (R,), highest foreground probability of any voxel, detached
    logits: Tensor  # (B, 1, L, L, L) low-resolution logits of the last round, detached


class SAMMed3D(nn.Module):
    """The promptable model. Its state dict uses the published tensor names.

    Args:
        variant: the architecture, see `VARIANTS`.
        in_channels: 1 (PET or CT), or 2 (PET and CT).
    """

    def __init__(self, variant: Variant, in_channels: int = 1) -> None:
        super().__init__()
        self.variant = variant
        self.image_encoder = ImageEncoder(
            image_size=variant.image_size,
            patch_size=variant.patch_size,
            in_channels=in_channels,
            embed_dim=variant.embed_dim,
            depth=variant.depth,
            num_heads=variant.num_heads,
            global_blocks=variant.global_blocks,
            window=variant.window,
            out_dim=variant.out_dim,
        )
        self.prompt_encoder = PromptEncoder(
            embed_dim=variant.out_dim,
            image_size=variant.image_size,
            grid=variant.grid,
            mask_in_channels=variant.mask_in_channels,
        )
        self.mask_decoder = MaskDecoder(
            dim=variant.out_dim,
            depth=variant.decoder_depth,
            num_heads=variant.decoder_heads,
            mlp_dim=variant.decoder_mlp_dim,
            iou_hidden_dim=variant.iou_hidden_dim,
            num_masks=variant.num_masks,
        )

    @property
    def image_size(self) -> int:
        """Voxels per axis of the crop."""
        return self.variant.image_size

    @property
    def in_channels(self) -> int:
        return self.image_encoder.in_channels

    @property
    def device(self) -> torch.device:
        return self.prompt_encoder.no_mask_embed.weight.device

    def decode(
        self, embedding: Tensor, coords_vox: Tensor, labels: Tensor, previous: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the prompt encoder and the mask decoder once.

        Args:
            embedding: (B, D, g, g, g) from ``image_encoder``.
            coords_vox: (B, N, 3) clicks in crop voxels, axes x, y, z.
            labels: (B, N): 1 foreground, 0 background, -1 no click.
            previous: (B, 1, L, L, L) logits of the previous round; None in the first round, which uses zeros as in
                the published training.

        Returns:
            logits (B, 1, L, L, L) with L = 4g, and predicted IoU (B, 1).
        """
        if previous is None:
            size = self.variant.logits_size
            previous = embedding.new_zeros(coords_vox.shape[0], 1, size, size, size)
        sparse, dense = self.prompt_encoder(points=(coords_vox, labels), boxes=None, masks=previous)
        return self.mask_decoder(
            image_embeddings=embedding,
            image_pe=self.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )

    def forward(
        self,
        target: Tensor,
        first_click: tuple[Tensor, Tensor],
        next_click: ClickSource,
        criterion: Callable[[Tensor, Tensor], Tensor],
        *,
        rounds: Collection[int],
        image: Tensor | None = None,
        embedding: Tensor | None = None,
        start: Tensor | None = None,
        iou_weight: float = 1.0,
        accumulate: bool = True,
    ) -> LoopOutput:
        """The interactive loop for a batch: decode, compare with the target, click again.

        The loop is in ``forward`` so that DistributedDataParallel's hooks apply. The previous logits are fed back
        without gradient; the IoU head is trained on the measured IoU.

        Args:
            target: (B, 1, S, S, S) bool.
            first_click: coordinates (B, 3) in crop voxels and labels (B,).
            next_click: called after every round except the last.
            criterion: loss of logits (B, 1, S, S, S) and target.
            rounds: the rounds with loss and gradient, counted from 1; round 1 must be included. The other rounds up
                to the last of these run without gradient, at a third of the cost. The number of rounds must be the
                same on every process.
            image: (B, C, S, S, S); pass either this or `embedding`.
            embedding: (B, D, g, g, g), the cached output of a frozen encoder.
            start: (B, 1, L, L, L) logits used as previous logits in the first round; None means zeros.
            iou_weight: weight of the squared error of the predicted IoU.
            accumulate: use all clicks so far (as in SAM); False uses only the newest, as in the published SAM-Med3D
                training.

        Raises:
            ValueError: both or neither of image and embedding, or round 1 not among the rounds with gradient.
        """
        if (image is None) == (embedding is None):
            raise ValueError("pass either image or embedding")
        # Autocast caches low-precision copies of the weights. If the first round ran without gradient, the cached
        # copies would have none, and the weights would not be trained in later rounds.
        if 1 not in rounds:
            raise ValueError(f"rounds {sorted(rounds)}: round 1 must be among the rounds with gradient")
        if embedding is None:
            embedding = self.image_encoder(image)
        coords_vox, labels = first_click[0].unsqueeze(1), first_click[1].unsqueeze(1)
        previous, last = start, max(rounds)
        total = torch.zeros((), device=target.device)
        mask_losses, iou_losses, dice, highest = [], [], [], []
        for number in range(1, last + 1):
            learns = number in rounds
            with nullcontext() if learns else torch.no_grad():
                low, predicted_iou = self.decode(embedding, coords_vox, labels, previous)
                logits = upsample(low, self.image_size)
            prediction = logits > 0
            if learns:
                measured_iou, measured_dice = _overlap(prediction, target)
                mask_loss = criterion(logits, target)
                iou_loss = F.mse_loss(predicted_iou[:, 0].float(), measured_iou)
                total = total + mask_loss + iou_weight * iou_loss
                mask_losses.append(mask_loss.detach())
                iou_losses.append(iou_loss.detach())
                dice.append(measured_dice)
                highest.append(logits.detach().amax().float().sigmoid())
            previous = low.detach()
            if number < last:
                with torch.no_grad():
                    new_coords, new_labels = next_click(prediction, target, number)
                new_coords, new_labels = new_coords.unsqueeze(1), new_labels.unsqueeze(1)
                if accumulate:
                    new_coords = torch.cat([coords_vox, new_coords], dim=1)
                    new_labels = torch.cat([labels, new_labels], dim=1)
                coords_vox, labels = new_coords, new_labels
        assert previous is not None
        return LoopOutput(
            total / len(rounds),
            torch.stack(mask_losses),
            torch.stack(iou_losses),
            torch.stack(dice),
            torch.stack(highest),
            previous,
        )


def _overlap(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and Dice per sample, each (B,); 1 if both masks are empty."""
    prediction, target = prediction.flatten(1), target.flatten(1)
    both = (prediction & target).sum(1, dtype=torch.float32)
    size = prediction.sum(1, dtype=torch.float32) + target.sum(1, dtype=torch.float32)
    empty = size == 0
    return (
        torch.where(empty, 1.0, both / (size - both).clamp(min=1)),
        torch.where(empty, 1.0, 2 * both / size.clamp(min=1)),
    )
