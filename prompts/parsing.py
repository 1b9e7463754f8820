"""Shared by all click-file readers: parse points and their fields, with one-line errors."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from prompts.errors import InputError

_NEGATIVE_NAME = re.compile(r"background|negative|(?<![a-z])(?:bg|neg)(?![a-z])", re.IGNORECASE)


class Point(NamedTuple):
    """A click in the frame of its file (voxels, or mm in RAS or LPS)."""

    position: tuple[float, float, float]
    label: int
    lesion: int | str | None


def label_of_name(name: str) -> int:
    """0 if the name contains `background` or `negative`, or `bg` or `neg` as a separate word; otherwise 1."""
    return 0 if _NEGATIVE_NAME.search(name) else 1


def points_of(path: Path, content: dict[str, Any], key: str) -> Iterator[tuple[int, Any]]:
    """The entries of a list in a JSON file, numbered from 1; nothing if the key is absent."""
    entries = content.get(key, [])
    if not isinstance(entries, list):
        raise InputError(f"{path}: {key!r} holds a {type(entries).__name__}; it must be a list of points")
    return iter(enumerate(entries, start=1))


def mapping(path: Path, number: int | str, entry: Any) -> dict[str, Any]:
    """Check that a point's entry is a JSON object, and return it."""
    if not isinstance(entry, dict):
        raise InputError(f"{path}: point {number} is {entry!r:.60}; it must be an object with a position")
    return entry


def parse_position(path: Path, number: int | str, value: Any) -> tuple[float, float, float]:
    """Check that a position is a list of three finite numbers, and return it as floats."""
    if not isinstance(value, list) or len(value) != 3 or not all(map(_is_finite_number, value)):
        raise InputError(f"{path}: point {number} is at {value!r:.60}; a position must be three finite numbers")
    return float(value[0]), float(value[1]), float(value[2])


def _is_finite_number(value: Any) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # a whole number too large for float64
        return False


def parse_label(path: Path, number: int | str, value: Any) -> int:
    """Check that a label is 1 or 0, and return it."""
    if isinstance(value, bool) or value not in (0, 1):
        raise InputError(f"{path}: point {number} has label {value!r:.60}; it must be 1 (foreground) or 0 (background)")
    return int(value)


def parse_lesion(path: Path, number: int | str, value: Any) -> int | str | None:
    """Check that a lesion ID is a whole number, text or None, and return it."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, int | str)):
        raise InputError(f"{path}: point {number} has lesion {value!r:.60}; it must be a whole number or text")
    return value
