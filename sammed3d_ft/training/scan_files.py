"""What the stores of prompted and automatic training share: a box of a scan, and errors in reading cached files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from sammed3d_ft.errors import InputError


@dataclass(frozen=True)
class ScanPart:
    """A box of a scan."""

    channels: Tensor  # (C, x, y, z) float32
    target: Tensor  # (x, y, z) bool


@contextmanager
def readable(path: Path) -> Iterator[Path]:
    """Convert errors in reading a cached file to an InputError that says what to do."""
    try:
        yield path
    except (OSError, ValueError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        if isinstance(error, FileNotFoundError):
            raise InputError(
                f"{path} is missing: with several machines, the run folder or cache.dir must be on a shared file system"
            ) from error
        raise InputError(
            f"{path}: damaged cache file ({reason}): remove it, or the folder, and run the same command again"
        ) from error
