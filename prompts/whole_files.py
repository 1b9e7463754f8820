"""Files that are there whole or not at all, whatever kills the process that writes them."""

from __future__ import annotations

import csv
import io
import math
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from prompts.errors import InputError

INCOMPLETE = ".incomplete"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; once the block ends, that file is on the disk and takes `path`'s name.

    Until then a reader sees the old file, or none. A block that fails leaves nothing behind; a process that is
    killed leaves a hidden file that ends in ``.incomplete``.

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
    """Writes a text (UTF-8, its line ends as they are) or bytes by `whole_file`."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes a table by `whole_file`: the keys of a row are among the columns; an empty cell for none, None and NaN."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*columns], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if value is None or value != value else value for name, value in row.items()})
    write_whole(path, text.getvalue())


def without_nan(value: Any) -> Any:
    """The value with None for what is not finite, which JSON does not know; dictionaries are gone through."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
