"""One evaluated case with what it was made of, and its small file, by which an evaluation goes on where it stopped."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import TypeAdapter, ValidationError

from prompts.whole_files import write_whole
from sammed3d_ft.evaluation.pairing import CasePaths
from sammed3d_ft.evaluation.results import CaseResult

EVALUATION_FORMAT = 1
"""Count it up when a case's numbers change, or the fields of `CaseResult`: kept results of an older format are then
evaluated again. Wording and new columns that are computed from the same fields do not count."""

EVALUATION_PACKAGES = ("numpy", "scipy", "connected-components-3d", "nibabel")
"""What the numbers depend on."""

_RESULT = TypeAdapter(CaseResult)


@dataclass(frozen=True)
class CaseEvaluation:
    """One case of a cohort: its result, or what was wrong with its files."""

    paths: CasePaths
    result: CaseResult | None
    error: str | None
    sha256: dict[str, str]
    """Of the files that were read, by ``truth``, ``prediction``, ``pet``, ``probability``."""
    compat: dict[str, float] = field(default_factory=dict)
    """Columns of other people's rules, where asked for."""
    drawn: bool = False
    """Whether its figure was drawn with it."""


def file_name(case: str, suffix: str) -> str:
    """``<id><suffix>``, with what a file name cannot hold as %-codes."""
    return f"{quote(case, safe=' +,;=@()[]')}{suffix}"


def made_of(sha256: dict[str, str], settings: dict[str, Any]) -> dict[str, Any]:
    """Everything that a result depends on: hashes of the files, the settings, and the format number."""
    return {"sha256": sha256, "settings": settings, "format": EVALUATION_FORMAT}


def keep(folder: Path, case: CaseEvaluation, of: dict[str, Any]) -> None:
    """Write a finished case to its file, whole or not at all. A case that failed is not kept: it is tried again.

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
    """The case as it was kept; None if it was not, or was made of something else."""
    try:
        content = json.loads((folder / file_name(paths.id, ".json")).read_text(encoding="utf-8"))
        if content["case"] != paths.id or content["made_of"] != of:
            return None
        result = _RESULT.validate_python(content["result"])
        compat = {str(name): float(value) for name, value in content["compat"].items()}
        drawn = bool(content["drawn"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return None  # none, or not one of ours: it is made anew
    return CaseEvaluation(paths, result, None, of["sha256"], compat, drawn)


def _plain(value: Any) -> Any:
    """What JSON can hold: keys as text, NaN and infinity as text, which floats are read from again."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
