"""Reads attributes of DICOM headers, private ones included, as text and numbers."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from pydicom.dataset import Dataset

from sammed3d_ft.errors import InputError


@contextlib.contextmanager
def reading(where: object) -> Iterator[None]:
    """Convert what pydicom raises for a damaged file to InputError.

    pydicom decodes elements on first access and answers malformed ones with almost any exception; an absent or
    wrong element further down shows as AttributeError, IndexError or TypeError.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pydicom")  # of malformed values, which become errors if used
            yield
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"{where}: not enough memory to read it; is the file damaged?") from error
    except Exception as error:
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{where}: cannot be read as DICOM ({first_line:.160}); export it again") from error


def text_of(header: Dataset, keyword: str) -> str:
    """An attribute as text in one line; "" if it is missing or empty."""
    value = header.get(keyword)
    return "" if value is None else " ".join(str(value).split())


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
