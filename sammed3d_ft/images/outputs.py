"""Checks of the output paths of one scan, and the path of its record."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sammed3d_ft.errors import InputError
from sammed3d_ft.images.images import WRITTEN_SUFFIXES, image_stem


def check_image_names(*images: Path | None) -> None:
    """Raise InputError for a file name without a supported image format; None is skipped."""
    for path in images:
        if path is not None and not path.name.lower().endswith(WRITTEN_SUFFIXES):
            raise InputError(f"{path}: images are written as {', '.join(WRITTEN_SUFFIXES)}")


def check_places(outputs: Sequence[Path], inputs: Sequence[Path]) -> None:
    """Create the output folders, and raise InputError for outputs that cannot or must not be written.

    Called before anything is computed.
    """
    seen = {path.resolve(): "an input" for path in inputs}
    for path in outputs:
        if path.is_dir():
            raise InputError(f"{path} is a folder; name the file to write")
        place = path.resolve()
        if place in seen:
            raise InputError(f"{path} would overwrite {seen[place]}; name another file")
        seen[place] = "another output"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{path.parent}: cannot be created ({error.strerror})") from error


def record_beside(mask: Path, kind: str) -> Path:
    """``<mask>.<kind>.json`` in the mask's folder."""
    return mask.with_name(f"{image_stem(mask) or mask.name}.{kind}.json")
