"""The device a model runs on: as asked, if it is there, or the best there is."""

from __future__ import annotations

import torch

from prompts.errors import InputError


def usable_device(device: str | torch.device | None) -> torch.device:
    """That device, or (None) a CUDA device if there is one, else the CPU; `InputError` when it cannot be used."""
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0][:160]
        raise InputError(f"device {str(device)!r} cannot be used ({reason}); try cpu, cuda or cuda:1") from error
    return chosen
