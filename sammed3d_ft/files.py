"""Atomic file writes: an interrupted process never leaves a partial file under the final name."""

from __future__ import annotations

import csv
import io
import math
import os
import secrets
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sammed3d_ft.errors import InputError

INCOMPLETE = ".incomplete"

MOST_COMPRESSED = 1032
"""No deflated file unpacks to more than this many times its size."""
_SPARE_BYTES = 1 << 26


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; when the block ends, sync that file to disk and rename it to `path`.

    Until then readers see the old file, or none. If the block fails, the temporary file is deleted; a killed
    process leaves a hidden file ending in ``.incomplete``.

    Raises:
        InputError: the file cannot be written (disk full, no permission, ...).
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{INCOMPLETE}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def write_whole(path: Path, content: str | bytes) -> None:
    """Write text (UTF-8, line endings unchanged) or bytes atomically."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def unpack_gzip(content: bytes, described: int, where: str) -> bytes:
    """Unpack a gzip file to its end, where the checksum is, without using more memory than its header justifies.

    Args:
        content: the file, of one or several members.
        described: number of bytes that the unpacked file should have; 64 MiB more are accepted.
        where: name of the file, for messages.

    Raises:
        InputError: the file unpacks to more.
        EOFError, zlib.error: it is truncated or damaged.
    """
    parts: list[bytes] = []
    left = described + _SPARE_BYTES
    while content:
        stream = zlib.decompressobj(31)
        parts.append(stream.decompress(content, left + 1))
        left -= len(parts[-1])
        if left < 0:
            raise InputError(f"{where}: unpacks to far more than the {described} bytes that its header describes")
        if not stream.eof:
            raise EOFError
        content = stream.unused_data.lstrip(b"\0")  # zeros may follow as padding
    return parts[0] if len(parts) == 1 else b"".join(parts)


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table atomically. Row keys must be columns; missing values, None and NaN become empty cells."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if value is None or value != value else value for name, value in row.items()})
    write_whole(path, text.getvalue())


def without_nan(value: Any) -> Any:
    """Replace NaN and infinity, which JSON lacks, by None, also inside nested dictionaries."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
