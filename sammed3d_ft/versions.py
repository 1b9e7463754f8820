"""Provenance of results: package versions, and a digest of the code that shows whether a result is up to date."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path

from sammed3d_ft import __version__


def package_versions(*packages: str) -> dict[str, str]:
    """Versions of this software, Python, and the given packages."""
    ours = {"sammed3d-ft": __version__, "python": platform.python_version()}
    return ours | {package: version(package) for package in packages}


def code_digest(sources: Iterable[Path], packages: Sequence[str]) -> str:
    """SHA-256 over source files (in any order) and the versions of the packages they use."""
    digest = hashlib.sha256()
    for file in sorted(sources, key=lambda path: (path.parent.name, path.name)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    for package in packages:
        digest.update(f"{package}={version(package)}\0".encode())
    return digest.hexdigest()
