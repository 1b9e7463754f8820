"""Provenance of results: hashes of files and weights, the identity of a case, and versions.

Runs, exports, caches and benchmark folders store these values. Changing one of these definitions invalidates them.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sammed3d_ft import __version__
from sammed3d_ft.dataset.manifest import Case

if TYPE_CHECKING:
    from torch import Tensor

MASK_PACKAGES = ("torch", "numpy", "scipy", "nibabel", "SimpleITK")
"""Packages on whose versions a mask and its table depend."""

_VOXELS_OF_MHD = re.compile(rb"^ElementDataFile\s*=\s*(.+)$", re.MULTILINE)


def package_versions(*packages: str) -> dict[str, str]:
    """Versions of this software, Python, and the given packages."""
    ours = {"sammed3d-ft": __version__, "python": platform.python_version()}
    return ours | {package: version(package) for package in packages}


def file_hash(path: str | Path) -> str:
    """SHA-256 of a file of any type, hexadecimal; for a ``.mhd`` it includes the file with the voxels."""
    path = Path(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    if path.suffix.lower() == ".mhd" and (voxels := _VOXELS_OF_MHD.search(path.read_bytes())):
        digest.update((path.parent / voxels[1].decode().strip()).read_bytes())
    return digest.hexdigest()


def file_hashes(files: Mapping[str, Path]) -> dict[str, dict[str, str]]:
    """Path and SHA-256 of files, by kind."""
    return {name: {"path": str(path), "sha256": file_hash(path)} for name, path in files.items()}


def state_hash(state: Mapping[str, Tensor]) -> str:
    """Hash of weights, independent of the file format: SHA-256 over sorted names, types, shapes and bytes."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def digest(*parts: Any) -> str:
    """Short hash of JSON-able values, to name folders by their content."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def case_files(case: Case) -> tuple[str, list[list[Any]]]:
    """Identify a case by its files' paths, sizes and modification times, without reading them; for cache keys."""
    paths = [path for path in (*case.images.values(), case.label) if path]
    return case.id, [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def case_content(case: Case) -> dict[str, Any]:
    """Identify a case by the sizes of its images and the hash of its label, wherever the files are."""
    label = case.label
    return {
        "images": {name: path.stat().st_size for name, path in case.images.items()},
        "label": None if label is None else _hash_of(label, label.stat().st_size, label.stat().st_mtime_ns),
    }


@lru_cache(maxsize=100_000)
def _hash_of(path: Path, size: int, modified_ns: int) -> str:
    return file_hash(path)
