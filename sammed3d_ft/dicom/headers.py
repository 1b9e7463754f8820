"""Reads attributes of DICOM headers, private ones included, as text and numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from pydicom.dataset import Dataset

from sammed3d_ft.errors import InputError


def text_of(header: Dataset, keyword: str) -> str:
    """An attribute as text; "" if it is missing or empty."""
    value = header.get(keyword)
    return "" if value is None else str(value).strip()


def number_of(header: Dataset, keyword: str) -> float | None:
    """An attribute as a finite number, else None."""
    try:
        value = float(text_of(header, keyword))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def private_text(header: Dataset, group: int, creator: str, element: int) -> str:
    """A private element as text; "" if it is missing or empty."""
    try:
        value = header.private_block(group, creator)[element].value
    except KeyError:
        return ""
    if isinstance(value, bytes):  # the VR is unknown if the file was rewritten by software that does not know it
        value = value.decode("ascii", "replace")
    return "" if value is None else str(value).strip(" \0")


def tracer_of(header: Dataset) -> Dataset:
    """The radiopharmaceutical; empty if there is none."""
    return (header.get("RadiopharmaceuticalInformationSequence") or [Dataset()])[0]


def same_in_all(headers: Sequence[Dataset], read: Callable[[Dataset], Any], name: str, where: str) -> Any:
    """The value that ``read`` returns for every header.

    Raises:
        InputError: the value differs between slices.
    """
    values = {read(header) for header in headers}
    if len(values) > 1:
        raise InputError(f"{where}: slices differ in {name} ({', '.join(sorted(str(value) for value in values)[:3])})")
    return values.pop()
