"""Build a model of a given variant, with or without weights."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from sammed3d_ft.errors import InputError
from sammed3d_ft.model.sam_med3d import SAMMed3D
from sammed3d_ft.model.variants import variant_named


def build_model(variant: str, weights: str | Path | None = None, in_channels: int = 1) -> SAMMed3D:
    """Build a SAM-Med3D model in evaluation mode, on the CPU, in float32.

    Args:
        variant: name in `VARIANTS`, for example ``vit_b_ori``.
        weights: checkpoint to load (see `load_weights`); None gives random weights, drawn from torch's global
            generator.
        in_channels: 1, or 2 (PET and CT).

    Raises:
        InputError: unknown variant, or weights that do not fit.
    """
    if in_channels not in (1, 2):
        raise InputError(f"{in_channels} input channels: expected 1 (PT or CT) or 2 (PT and CT)")
    model = SAMMed3D(variant_named(variant), in_channels)
    initialise(model)
    if weights is not None:
        from sammed3d_ft.model.weights import load_weights

        load_weights(model, weights)
    return model.eval()


def initialise(model: nn.Module) -> None:
    """Initialise the vision transformer: truncated normal (SD 0.02) for linear layers and position embeddings.

    Prompt embeddings, convolutions and norms keep torch's default initialisation, as in SAM.
    """
    for name, parameter in model.named_parameters():
        if name.startswith("image_encoder."):
            if name.endswith("pos_embed") or (parameter.ndim == 2 and "rel_pos" not in name):
                nn.init.trunc_normal_(parameter, std=0.02)
            elif parameter.ndim == 1 and name.endswith("bias"):
                nn.init.zeros_(parameter)


def parameter_count(model: nn.Module, trainable: bool = False) -> int:
    """Number of parameters, or of the trainable ones only."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad or not trainable)


def seeded_model(variant: str, seed: int, in_channels: int = 1) -> SAMMed3D:
    """A model with random weights that depend only on the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_model(variant, in_channels=in_channels)


def usable_device(device: str | torch.device | None) -> torch.device:
    """The requested device; None means CUDA if available, otherwise the CPU. InputError if it cannot be used."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(f"device {str(device)!r} cannot be used ({reason}); try cpu, cuda or cuda:1") from error
    return chosen
