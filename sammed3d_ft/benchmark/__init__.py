"""Benchmark: methods x folds x seeds in one table, each run separate and resumable.

Every method makes masks of every test case, and one evaluator scores them all. Every patient is tested once per seed,
by a model never trained on that patient: fold k is the test set, fold k + 1 is for validation, and the others for
training. Values are averaged over seeds for each patient before anything is compared.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sammed3d_ft.benchmark.config import BenchmarkConfig, load_benchmark
    from sammed3d_ft.benchmark.runner import run

_PUBLIC = {"BenchmarkConfig": "config", "load_benchmark": "config", "run": "runner"}

__all__ = ["BenchmarkConfig", "load_benchmark", "run"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_PUBLIC[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
