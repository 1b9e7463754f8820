"""Sections that the configs of all trainings share: run, data, loss, optimiser, validation, checkpoints, tracking."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Section(BaseModel):
    """Part of a config: unknown keys are refused, and values are immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def as_plain(self) -> dict[str, Any]:
        """All settings, defaults included, as JSON-serialisable values."""
        return self.model_dump(mode="json", by_alias=True)


class RunConfig(Section):
    """Folder of the run, seed, and resuming."""

    dir: Path
    seed: int = 0
    resume: Literal["auto", "never"] = "auto"
    deterministic: bool = False  # on a GPU: equal results in every run, with slower kernels; a CPU always gives them


class CasesConfig(Section):
    """The cases, and the modalities used as input."""

    manifest: Path
    modalities: tuple[Literal["PT", "CT"], ...] = Field(("PT",), min_length=1)
    connectivity: Literal[6, 18, 26] = 18  # of lesions
    workers: int | None = Field(None, ge=0)  # None: as many as help


class MaskLossConfig(Section):
    """The mask loss."""

    name: Literal["l1dfl", "dice", "dice_ce", "dice_focal"] = "l1dfl"
    options: dict[str, Any] = Field(default_factory=dict)
    warm_start: float = Field(0.0, ge=0, lt=1)  # initial fraction of the steps with Dice-CE instead

    @model_validator(mode="after")
    def _consistent(self) -> MaskLossConfig:
        if self.warm_start and self.name == "dice_ce":
            raise ValueError(
                f"loss.warm_start {self.warm_start:g} starts with Dice-CE, and loss.name is dice_ce throughout: "
                f"set loss.warm_start=0"
            )
        return self


class StepsConfig(Section):
    """AdamW, schedule, batch and precision; learning rates are added by each kind of training."""

    epochs: int = Field(50, ge=1)
    batch_size: int = Field(4, ge=1)
    accumulate: int = Field(1, ge=1)
    weight_decay: float = Field(0.01, ge=0)
    warmup: float = Field(0.1, ge=0, lt=1)  # fraction of all steps
    clip_norm: float | None = Field(1.0, gt=0)  # None: no clipping
    precision: Literal["auto", "no", "bf16"] = "auto"

    @property
    def learning_rate_keys(self) -> list[str]:
        """The keys of the learning rates, as used in overrides."""
        return [f"optim.{name}" for name in type(self).model_fields if name.startswith("lr")]

    @property
    def smaller_batch(self) -> list[str]:
        """Settings that save memory without changing the step."""
        if self.batch_size == 1:
            return []
        return [f"optim.batch_size={self.batch_size // 2} optim.accumulate={self.accumulate * 2} (the same step)"]

    @property
    def lower_precision(self) -> list[str]:
        """Settings that save memory by lower precision."""
        return ["optim.precision=bf16"] if self.precision == "no" else []


class ScoringConfig(Section):
    """Validation on the scans' own grids, with the code used for new scans."""

    every_epochs: int = Field(5, ge=1)
    test: bool = True


class CheckpointConfig(Section):
    """Interval and number of checkpoints."""

    every_steps: int = Field(200, ge=1)
    keep: int = Field(2, ge=1)


class TrackConfig(Section):
    """Trackers, by accelerate's names; metrics.jsonl is always written."""

    trackers: tuple[str, ...] = ("tensorboard",)
    log_every_steps: int = Field(5, ge=1)
