"""Config files: read YAML, apply ``key.path=value`` overrides, and validate the settings."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from sammed3d_ft.errors import InputError

_Model = TypeVar("_Model", bound=BaseModel)


def read_content(file: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Read a config's sections and apply overrides, without validation.

    Raises:
        InputError: invalid YAML, no sections, or a malformed override.
    """
    content = read_yaml(file) or {}
    if not isinstance(content, dict):
        raise InputError(f"{file}: expected sections such as run, data and model, got {type(content).__name__}")
    for override in overrides:
        _apply(content, override)
    return content


def read_yaml(file: Path) -> Any:
    """The content of a YAML file; InputError in one line if it cannot be read."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: no text, or an impossible date
        raise InputError(f"{file}: invalid YAML: {' '.join(str(error).split())}") from None
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror or error})") from None


def checked(model: type[_Model], content: dict[str, Any], file: Path) -> _Model:
    """Validate the content as a config; InputError lists all problems in one line, with suggestions for names."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_problem(item, model) for item in error.errors())
        raise InputError(f"{file}: {problems}") from None


def find_config(path: Path) -> Path:
    """Find a config by path, in the current folder or among the shipped ones; InputError if there is none."""
    if path.is_file():
        return path
    package = Path(__file__).resolve().parents[1]
    for folder in (package, package.parent):
        if not path.is_absolute() and (folder / path).is_file():
            return folder / path
    raise InputError(f"no config {path}: expected a YAML file, such as configs/decoder.yaml")


def _apply(content: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise InputError(f"override {override!r}: expected key.path=value, such as optim.epochs=20")
    *parents, last = key.split(".")
    section = content
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise InputError(f"override {override!r}: {parent} is a value, not a section")
    try:
        section[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise InputError(f"override {override!r}: the value is not valid YAML; quote it") from None


def _problem(item: Any, model: type[BaseModel]) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":
        return f"{path} is missing: set it in the file or with {path}=VALUE"
    if item["type"] == "extra_forbidden":
        *parents, last = item["loc"]
        near = difflib.get_close_matches(str(last), _keys(model, parents), 1)
        hint = f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(_keys(model, parents))}"
        return f"unknown key {path}{hint}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{path}: {message}" if path else message
    return f"{path}: {message} (got {item['input']!r})"


def _keys(model: type[BaseModel], parents: Sequence[int | str]) -> list[str]:
    section: Any = model
    for parent in parents:
        fields = {field.alias or name: field.annotation for name, field in section.model_fields.items()}
        section = fields.get(str(parent))
        if isinstance(section, types.UnionType):
            section = typing.get_args(section)[0]
    return [field.alias or name for name, field in section.model_fields.items()]


# Settings that may differ when a run is resumed, because they do not affect the result beyond the last digits.
_MAY_CHANGE = ("run.resume", "run.deterministic", "data.workers", "track.", "checkpoint.", "cache.dir")


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[list[str], list[str]]:
    """``key: old -> new`` of every changed setting: those that affect the result, and those that do not."""
    matter: list[str] = []
    harmless: list[str] = []
    for key in sorted({*old, *new}):
        path = f"{prefix}{key}"
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            for lines, more in zip((matter, harmless), differences(before, after, f"{path}."), strict=True):
                lines += more
        elif before != after:
            (harmless if path.startswith(_MAY_CHANGE) else matter).append(f"{path}: {before} -> {after}")
    return matter, harmless
