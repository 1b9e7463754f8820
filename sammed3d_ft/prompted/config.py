"""The config of a prompted training: SAM-Med3D fine-tuned on lesions with simulated clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from prompts.corrections import CORRECTION_STRATEGIES
from prompts.first_clicks import FIRST_STRATEGIES
from sammed3d_ft.model.variants import VARIANTS
from sammed3d_ft.training.config import (
    CasesConfig,
    CheckpointConfig,
    MaskLossConfig,
    RunConfig,
    ScoringConfig,
    Section,
    StepsConfig,
    TrackConfig,
)


class DataConfig(CasesConfig):
    """Cases, modalities and targets."""

    targets: Literal["each", "all"] = "each"
    clip: dict[str, tuple[float, float] | Literal["none"]] = Field(default_factory=dict)
    repeats: int = Field(1, ge=1)  # samples per lesion and epoch, each drawn separately
    shapes: int = Field(0, ge=0)  # generic shapes per epoch in addition to the lesions, for pre-training


class ModelConfig(Section):
    """Architecture, base weights (a file, a name such as "mini", or "random") and crop spacing.

    Variant and weights have no default.
    """

    variant: str
    weights: str
    spacing_mm: float | None = Field(None, gt=0)
    zoom: bool = (
        True  # auto-zoom: finer crops for small lesions, coarser ones for large lesions, in training and validation
    )

    @model_validator(mode="after")
    def _known(self) -> ModelConfig:
        if self.variant not in VARIANTS:
            raise ValueError(f"unknown variant {self.variant!r}: expected one of {', '.join(sorted(VARIANTS))}")
        return self


class ClickConfig(Section):
    """Simulation of clicks and initial masks in training."""

    first: str = "uniform"
    next: str = "error_mixed"
    rounds: int = Field(8, ge=1, le=20)
    gradient_rounds: int | None = Field(2, ge=1)  # rounds with loss and gradient: the first and random later ones
    accumulate: bool = True
    start_masks: float = Field(0.2, ge=0, le=1)  # fraction of samples that start from a mask: correct, wrong or empty
    ambiguous: float = Field(0.0, ge=0, le=1)  # fraction of samples whose target has another outline than the lesion

    @model_validator(mode="after")
    def _known(self) -> ClickConfig:
        for name, given, known in (
            ("first", self.first, FIRST_STRATEGIES),
            ("next", self.next, CORRECTION_STRATEGIES),
        ):
            if given not in known:
                raise ValueError(f"clicks.{name}: unknown strategy {given!r}, expected one of {', '.join(known)}")
        return self


class TuneConfig(Section):
    """Which parameters are trained."""

    method: Literal["decoder", "lora", "full"] = "decoder"
    lora_rank: int = Field(8, ge=1)
    lora_alpha: float = Field(16.0, gt=0)
    lora_dropout: float = Field(0.0, ge=0, lt=1)


class LossConfig(MaskLossConfig):
    """The mask loss, and the weight of the IoU head's squared error."""

    iou_weight: float = Field(1.0, ge=0)


class AugmentConfig(Section):
    """Ranges of augmentation; see `AugmentationRanges`."""

    flip: float = Field(0.5, ge=0, le=1)
    rotate_deg: float = Field(15.0, ge=0, le=180)
    zoom: float = Field(0.15, ge=0)
    gamma: float = Field(0.25, ge=0)
    noise: float = Field(0.1, ge=0)
    jitter_vox: int = Field(4, ge=0)


class CacheConfig(Section):
    """The embedding cache, used when the encoder is frozen (method decoder)."""

    views: int = Field(4, ge=1)
    batch_size: int = Field(1, ge=1)
    dir: Path | None = None


class OptimConfig(StepsConfig):
    """AdamW and its schedule, with a learning rate for the image encoder and one for the rest."""

    lr_decoder: float = Field(2e-4, gt=0)
    lr_encoder: float = Field(5e-5, gt=0)


SELECTED_BY = (1, 5)
"""Numbers of clicks by whose Dice the best model is selected."""


class ValidateConfig(ScoringConfig):
    """Validation with a simulated user on the scans' own grids, with the code of `predict`."""

    clicks: tuple[int, ...] = (1, 3, 5, 10)  # during training up to 5, by which the best is chosen; at its end all

    @model_validator(mode="after")
    def _has_selection(self) -> ValidateConfig:
        if not set(SELECTED_BY) <= set(self.clicks):
            raise ValueError(f"validate.clicks {list(self.clicks)}: must include 1 and 5, which select the best model")
        if min(self.clicks) < 1:
            raise ValueError(f"validate.clicks {list(self.clicks)}: a lesion gets at least one click")
        return self


class PromptedConfig(Section):
    """The config of one fine-tuning of SAM-Med3D."""

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
    def memory_savers(self) -> list[str]:
        """Settings that save memory, those with the smallest side effects first."""
        ways = self.optim.smaller_batch
        rounds = min(self.clicks.rounds, self.clicks.gradient_rounds or self.clicks.rounds)  # others keep nothing
        if rounds > 1:
            ways.append(f"clicks.gradient_rounds={rounds - 1} (now {rounds})")
        ways += self.optim.lower_precision
        if self.tune.method != "decoder" and len(self.data.modalities) == 1:
            ways.append("tune.method=decoder (the encoder is then frozen and its output cached)")
        return ways
