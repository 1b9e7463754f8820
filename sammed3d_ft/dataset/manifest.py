"""The manifest: images, label, split and patient of each case."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sammed3d_ft.errors import InputError
from sammed3d_ft.files import write_whole

SPLITS = ("train", "val", "test")
MODALITIES = ("PT", "CT")
_FIELDS = {"id", "images", "label", "split", "group"}


@dataclass(frozen=True)
class Case:
    """One scan.

    Attributes:
        id: unique within the manifest; used in the names of output files.
        images: image file by modality: `PT` (SUV), `CT` (HU).
        label: the lesion mask, on the grid of the image; None if there is none.
        split: `train`, `val` or `test`; None for an unused case.
        group: the patient, whose cases must stay in the same split; None if each case is its own patient.
    """

    id: str
    images: dict[str, Path]
    label: Path | None = None
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Manifest:
    """The cases of a manifest file, with absolute paths."""

    cases: tuple[Case, ...]
    path: Path

    def split(self, name: str) -> tuple[Case, ...]:
        """The cases of one split, in file order."""
        return tuple(case for case in self.cases if case.split == name)


def read_manifest(path: str | os.PathLike[str]) -> Manifest:
    """Read a manifest and check its format; `check_manifest` checks the files that it lists.

    Raises:
        InputError: missing file, invalid JSON, or malformed entries, all listed in one message.
    """
    file = Path(path)
    content = read_json(file)
    if not isinstance(content, dict) or not isinstance(content.get("cases"), list):
        raise InputError(
            f"{file}: is not a manifest (expected an object with a list 'cases'); "
            "create one with `sammed3d-ft manifest build`"
        )
    if content.get("version") != 1:
        raise InputError(f"{file}: manifest version {content.get('version')!r} is not supported; expected version 1")
    folder = Path(os.path.realpath(file)).parent
    cases, wrong = [], []
    for number, entry in enumerate(content["cases"]):
        problem = _form_problem(entry)
        if problem:
            wrong.append(f"entry {number}: {problem}")
        else:
            cases.append(_to_case(entry, folder))
    if wrong:
        raise InputError(f"{file}: {listing(wrong, 'wrong entry', 'wrong entries')}")
    return Manifest(tuple(cases), file)


def write_manifest(path: str | os.PathLike[str], cases: Iterable[Case]) -> None:
    """Write a manifest atomically. Paths are stored relative to its folder, so both can be moved together."""
    file = Path(path)
    folder = Path(os.path.realpath(file)).parent
    entries = [
        {
            "id": case.id,
            "images": {modality: _relative(image, folder) for modality, image in case.images.items()},
            "label": None if case.label is None else _relative(case.label, folder),
            "split": case.split,
            "group": case.group,
        }
        for case in cases
    ]
    write_whole(file, json.dumps({"version": 1, "cases": entries}, indent=1) + "\n")


def read_json(path: Path) -> Any:
    """The content of a JSON file; InputError if it is missing or not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: line {error.lineno} is not valid JSON ({error.msg})") from error
    except (OSError, ValueError, RecursionError) as error:  # no text, numbers of too many digits, nested too deeply
        raise InputError(f"{path}: cannot be read as JSON text ({error})") from error


def listing(items: Sequence[str], one: str, many: str, shown: int = 20) -> str:
    """`3 wrong entries: a; b; c` on one line, limited to the first `shown` items."""
    more = f"; and {len(items) - shown} more" if len(items) > shown else ""
    return f"{len(items)} {one if len(items) == 1 else many}: {'; '.join(items[:shown])}{more}"


def _form_problem(entry: Any) -> str | None:
    if not isinstance(entry, dict):
        return f"is {type(entry).__name__}, expected an object"
    name = entry.get("id")
    if not isinstance(name, str) or not name:
        return "has no 'id' (text)"
    if Path(name).name != name or name == ".." or "\\" in name or "\0" in name:
        return f"the ID {name!r} is used in file names and must not contain / or \\"
    unknown = sorted(set(entry) - _FIELDS)
    if unknown:
        return f"case {name} has unknown fields {unknown}; known fields: {sorted(_FIELDS)}"
    images = entry.get("images")
    if not isinstance(images, dict) or not images:
        return f"case {name} has no 'images', an object such as {{'PT': 'pet.nii.gz'}}"
    unknown = sorted(set(images) - set(MODALITIES))
    if unknown:
        return f"case {name} has images of unknown modality {unknown}; known modalities: {list(MODALITIES)}"
    if not all(isinstance(path, str) and path and "\0" not in path for path in images.values()):
        return f"case {name} has an image path that is not text"
    for field in ("label", "split", "group"):
        if entry.get(field) is not None and not (isinstance(entry[field], str) and entry[field].strip("\0")):
            return f"case {name} has {field} {entry[field]!r}, expected text or null"
    return None


def _to_case(entry: dict[str, Any], folder: Path) -> Case:
    images = {modality: _absolute(image, folder) for modality, image in entry["images"].items()}
    label = None if entry.get("label") is None else _absolute(entry["label"], folder)
    return Case(entry["id"], images, label, entry.get("split"), entry.get("group"))


def _absolute(path: str, folder: Path) -> Path:
    return Path(os.path.normpath(folder / path))


def _relative(path: Path, folder: Path) -> str:
    # The parent is resolved, like the manifest's own folder, because `..` after a linked folder leads elsewhere. The
    # file itself is not resolved: it may be a symbolic link, and keeps its name.
    absolute = path.parent.resolve() / path.name
    try:
        return Path(os.path.relpath(absolute, folder)).as_posix()
    except ValueError:  # another drive
        return str(absolute)
