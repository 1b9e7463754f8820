"""The training config: YAML plus ``key.path=value`` overrides, checked before anything is loaded."""

from __future__ import annotations

import difflib
import hashlib
import json
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from prompts import CORRECTION_STRATEGIES, FIRST_STRATEGIES
from prompts.errors import InputError
from sammed3d_ft.model.variants import VARIANTS


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RunConfig(_Section):
    """Where a run is kept and how it starts."""

    dir: Path
    seed: int = 0
    resume: Literal["auto", "never"] = "auto"


class DataConfig(_Section):
    """Which cases, modalities and targets."""

    manifest: Path
    modalities: tuple[Literal["PT", "CT"], ...] = ("PT",)
    targets: Literal["each", "all"] = "each"
    connectivity: Literal[6, 18, 26] = 18
    clip: dict[str, tuple[float, float]] = Field(default_factory=dict)
    shapes: int = Field(0, ge=0)  # generic promptable shapes per epoch, beside the lesions: for pre-training
    workers: int | None = Field(None, ge=0)  # None: as many as help


class ModelConfig(_Section):
    """Architecture, base weights (a file, "mini", or "random") and crop spacing; none of them is assumed."""

    variant: str
    weights: str
    spacing_mm: float | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _known(self) -> ModelConfig:
        if self.variant not in VARIANTS:
            raise ValueError(
                f"unknown variant {self.variant!r}: expected one of {', '.join(sorted(VARIANTS))}"
            )
        return self


class ClickConfig(_Section):
    """How clicks are simulated in training."""

    first: str = "uniform"
    next: str = "error_random"
    rounds: int = Field(5, ge=1, le=20)
    accumulate: bool = True

    @model_validator(mode="after")
    def _known(self) -> ClickConfig:
        for name, given, known in (
            ("first", self.first, FIRST_STRATEGIES),
            ("next", self.next, CORRECTION_STRATEGIES),
        ):
            if given not in known:
                raise ValueError(
                    f"clicks.{name}: unknown strategy {given!r}, expected one of {', '.join(known)}"
                )
        return self


class TuneConfig(_Section):
    """Which parameters train."""

    method: Literal["decoder", "lora", "full"] = "decoder"
    lora_rank: int = Field(8, ge=1)
    lora_alpha: float = Field(16.0, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)


class LossConfig(_Section):
    """The mask loss, and the weight of the IoU head's squared error."""

    name: Literal["l1dfl", "dice", "dice_ce", "dice_focal"] = "l1dfl"
    options: dict[str, Any] = Field(default_factory=dict)
    iou_weight: float = Field(1.0, ge=0)


class AugmentConfig(_Section):
    """Ranges of augmentation; see `AugmentationRanges`."""

    flip: float = Field(0.5, ge=0, le=1)
    rotate_deg: float = Field(15.0, ge=0, le=180)
    zoom: float = Field(0.15, ge=0)
    gamma: float = Field(0.25, ge=0)
    noise: float = Field(0.1, ge=0)
    jitter_vox: int = Field(4, ge=0)


class CacheConfig(_Section):
    """The embedding cache, used when the encoder is frozen (method decoder)."""

    views: int = Field(4, ge=1)
    batch_size: int = Field(1, ge=1)
    dir: Path | None = None


class OptimConfig(_Section):
    """AdamW, schedule, batch and precision."""

    epochs: int = Field(50, ge=1)
    batch_size: int = Field(4, ge=1)
    accumulate: int = Field(1, ge=1)
    lr_decoder: float = Field(2e-4, gt=0)
    lr_encoder: float = Field(5e-5, gt=0)
    weight_decay: float = Field(0.01, ge=0)
    warmup_steps: int = Field(50, ge=0)
    clip_norm: float = Field(1.0, gt=0)
    precision: Literal["auto", "no", "bf16"] = "auto"


class ValidateConfig(_Section):
    """Validation on the scans' own grids, by the code of `predict`."""

    every_epochs: int = Field(5, ge=1)
    clicks: tuple[int, ...] = (1, 3, 5, 10)
    test: bool = True

    @model_validator(mode="after")
    def _has_selection(self) -> ValidateConfig:
        if not {1, 5} <= set(self.clicks):
            raise ValueError(
                f"validate.clicks {list(self.clicks)}: must hold 1 and 5, by which the best is chosen"
            )
        if min(self.clicks) < 1:
            raise ValueError(f"validate.clicks {list(self.clicks)}: a lesion gets at least one click")
        return self


class CheckpointConfig(_Section):
    """When checkpoints are written and how many stay."""

    every_steps: int = Field(200, ge=1)
    keep: int = Field(2, ge=1)


class TrackConfig(_Section):
    """Trackers by accelerate's names; metrics.jsonl is always written."""

    trackers: tuple[str, ...] = ("tensorboard",)
    log_every_steps: int = Field(5, ge=1)


class TrainConfig(_Section):
    """One fine-tuning run."""

    run: RunConfig
    data: DataConfig
    model: ModelConfig
    clicks: ClickConfig = ClickConfig()
    tune: TuneConfig = TuneConfig()
    loss: LossConfig = LossConfig()
    augment: AugmentConfig = AugmentConfig()
    cache: CacheConfig = CacheConfig()
    optim: OptimConfig = OptimConfig()
    validate_: ValidateConfig = Field(ValidateConfig(), alias="validate")
    checkpoint: CheckpointConfig = CheckpointConfig()
    track: TrackConfig = TrackConfig()

    @property
    def spacing_mm(self) -> float:
        return self.model.spacing_mm or VARIANTS[self.model.variant].spacing_mm

    def as_plain(self) -> dict[str, Any]:
        """The config as JSON-able values, every default filled in."""
        return self.model_dump(mode="json", by_alias=True)


# What may change between a run and its continuation without making the result another one.
_MAY_CHANGE = ("run.resume", "data.workers", "track.", "checkpoint.", "cache.dir")


def differences(old: dict[str, Any], new: dict[str, Any], prefix: str = "") -> tuple[list[str], list[str]]:
    """``key: old -> new`` of every setting that differs: those that matter to the result, and those that do not."""
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


def digest(*parts: Any) -> str:
    """Short hash of JSON-able values, to name folders by their content."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def load_config(path: Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Reads a YAML config and applies overrides.

    Args:
        path: a file; a bare name such as ``configs/decoder.yaml`` is also looked up among the shipped ones.
        overrides: ``key.path=value``, values as YAML.

    Raises:
        InputError: one line for all that is wrong, with near names for unknown keys.
    """
    file = _find(path)
    try:
        content = yaml.safe_load(file.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{file}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict):
        raise InputError(
            f"{file}: expected sections such as run, data and model, got {type(content).__name__}"
        )
    for override in overrides:
        _apply(content, override)
    try:
        return TrainConfig.model_validate(content)
    except ValidationError as error:
        problems = "; ".join(_problem(item) for item in error.errors())
        raise InputError(f"{file}: {problems}") from None


def _find(path: Path) -> Path:
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
        raise InputError(f"override {override!r}: the value is not readable as YAML; quote it") from None


def _problem(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    if item["type"] == "missing":
        return f"{path} is missing: give it in the file or as {path}=VALUE"
    if item["type"] == "extra_forbidden":
        *parents, last = item["loc"]
        near = difflib.get_close_matches(str(last), _keys(parents), 1)
        hint = f", did you mean {near[0]!r}?" if near else f"; known: {', '.join(_keys(parents))}"
        return f"unknown key {path}{hint}"
    message = item["msg"].removeprefix("Value error, ")
    return (
        f"{path}: {message} (got {item['input']!r})"
        if item["type"] != "value_error"
        else f"{path}: {message}"
    )


def _keys(parents: Sequence[int | str]) -> list[str]:
    section: Any = TrainConfig
    for parent in parents:
        fields = {field.alias or name: field.annotation for name, field in section.model_fields.items()}
        section = fields.get(str(parent))
        if isinstance(section, types.UnionType):
            section = typing.get_args(section)[0]
    return [field.alias or name for name, field in section.model_fields.items()]
