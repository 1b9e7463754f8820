"""Package versions, for the record of a result."""

from __future__ import annotations

import platform
from importlib.metadata import version

from sammed3d_ft import __version__


def package_versions(*packages: str) -> dict[str, str]:
    """Versions of this software, Python, and the given packages."""
    ours = {"sammed3d-ft": __version__, "python": platform.python_version()}
    return ours | {package: version(package) for package in packages}
