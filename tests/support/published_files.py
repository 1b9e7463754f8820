"""Checkpoint files in the layout of the published training code."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def published_layout(state: Mapping[str, Tensor], prefix: str = "module.", **changes: Any) -> dict[str, Any]:
    """What the published training code pickles, numpy numbers and argparse namespace included."""
    return {
        "epoch": 7,
        "model_state_dict": {f"{prefix}{name}": tensor for name, tensor in state.items()},
        "optimizer_state_dict": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 8e-4}]},
        "lr_scheduler_state_dict": {"last_epoch": 7, "base_lrs": [8e-4]},
        "losses": [np.float64(0.5), 0.25],
        "dices": [np.float32(0.5)],
        "best_loss": np.float64(0.25),
        "best_dice": 0.7,
        "args": argparse.Namespace(task_name="sam", lr=8e-4, gpu_ids=[0, 1], resume=False),
        "used_datas": ["ct_WORD", "pet_x"],
        **changes,
    }
