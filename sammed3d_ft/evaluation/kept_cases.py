"""An evaluated case, and the JSON file that stores it so that an interrupted evaluation can resume."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import TypeAdapter

from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.pairing import CasePaths
from sammed3d_ft.evaluation.results import CaseResult
from sammed3d_ft.files import write_whole

EVALUATION_FORMAT = 1
"""Increment when a metric's value or a field of `CaseResult` changes: stored results of an older format are then
evaluated again. Not for wording or for new columns computed from the same fields."""

EVALUATION_PACKAGES = ("numpy", "scipy", "connected-components-3d", "nibabel")
"""Packages whose versions the metrics depend on."""

_RESULT = TypeAdapter(CaseResult)


@dataclass(frozen=True)
class CaseEvaluation:
    """One case of a cohort: its result, or the error in its files."""

    paths: CasePaths
    result: CaseResult | None
    error: str | None
    sha256: dict[str, str]
    """Hashes of the files read, keyed by ``truth``, ``prediction``, ``pet``, ``probability``."""
    compat: dict[str, float] = field(default_factory=dict)
    """Columns of published scoring rules, if requested."""
    drawn: bool = False
    """Whether its figure was drawn from this result."""


def file_name(case: str, suffix: str) -> str:
    """``<id><suffix>``; characters not allowed in a file name are percent-encoded."""
    return f"{quote(case, safe=' +,;=@()[]')}{suffix}"


def made_of(sha256: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything a result depends on: file hashes, settings, and the format number."""
    return {"sha256": sha256, "settings": settings, "format": EVALUATION_FORMAT}


def keep(folder: Path, case: CaseEvaluation, of: dict[str, Any]) -> None:
    """Write a finished case to its file atomically. A failed case is not stored, so that it is retried.

    Raises:
        InputError: the file cannot be written.
    """
    if case.result is not None:
        content = {
            "case": case.paths.id,
            "made_of": of,
            "result": _plain(dataclasses.asdict(case.result)),
            "compat": _plain(case.compat),
            "drawn": case.drawn,
        }
        write_whole(folder / file_name(case.paths.id, ".json"), json.dumps(content, allow_nan=False) + "\n")


def kept(folder: Path, paths: CasePaths, of: dict[str, Any]) -> CaseEvaluation | None:
    """The stored case; None if there is none, or if its files, settings or format have changed."""
    try:
        content = json.loads((folder / file_name(paths.id, ".json")).read_text(encoding="utf-8"))
        if content["case"] != paths.id or content["made_of"] != of:
            return None
        result = _RESULT.validate_python(content["result"])
        compat = {str(name): float(value) for name, value in content["compat"].items()}
        return CaseEvaluation(paths, result, None, of["sha256"], compat, bool(content["drawn"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None  # missing or unreadable: evaluate again


def stored_result(folder: Path, case: str) -> CaseResult:
    """The result that `keep` stored for a case.

    Raises:
        InputError: there is none, or another version has written it.
    """
    file = folder / file_name(case, ".json")
    try:
        return _RESULT.validate_python(json.loads(file.read_text(encoding="utf-8"))["result"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(f"{file}: not a readable result ({problem}); delete {folder.parent} to score again") from None


def _plain(value: Any) -> Any:
    """Convert to JSON types: keys to strings; NaN and infinity to strings, which are read back as floats."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
