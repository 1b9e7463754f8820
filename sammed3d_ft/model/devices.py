"""Choice of the device that a model runs on."""

from __future__ import annotations

import torch

from sammed3d_ft.errors import InputError


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
