"""The oldest supported versions are stated once in effect."""

from __future__ import annotations

import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_oldest_versions_are_the_lower_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = [*project["dependencies"], *project["optional-dependencies"]["view"]]
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [bound.replace(">=", "==") for bound in bounds]
