"""The config of an automatic training: the U-Net family on crops of whole scans, without clicks."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from sammed3d_ft.automatic.networks import NETWORKS, crop_problem
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


class NetworkConfig(Section):
    """Name and size of the network; for unetr_sammed3d, the encoder's weights (a file, "mini", or "random")."""

    name: str
    size: Literal["paper", "laptop"] = "paper"
    weights: str | None = None

    @model_validator(mode="after")
    def _known(self) -> NetworkConfig:
        if self.name not in NETWORKS:
            raise ValueError(f"unknown network {self.name!r}: expected one of {', '.join(NETWORKS)}")
        if self.name == "unetr_sammed3d" and self.weights is None:
            raise ValueError(
                "network.weights is missing: unetr_sammed3d needs a checkpoint for its encoder, "
                "mini (with size laptop) or random"
            )
        if self.name != "unetr_sammed3d" and self.weights is not None:
            raise ValueError(f"network.weights {self.weights!r}: {self.name} starts from random weights; leave it out")
        return self


class CropsConfig(Section):
    """Training crops of scans resampled to one isotropic spacing; the defaults are the paper's."""

    size: int = Field(128, ge=16)  # voxels per axis
    spacing_mm: float = Field(2.0, gt=0)
    positive: float = Field(4.0, ge=0)  # crops about a lesion voxel ...
    negative: float = Field(1.0, ge=0)  # ... to crops about a background voxel
    per_case: int = Field(1, ge=1)  # in an epoch
    affine_probability: float = Field(0.5, ge=0, le=1)
    translate_vox: float = Field(10.0, ge=0)
    rotate_z_deg: float = Field(12.0, ge=0, le=180)
    scale: float = Field(0.1, ge=0, lt=1)

    @model_validator(mode="after")
    def _some(self) -> CropsConfig:
        if self.positive + self.negative == 0:
            raise ValueError("crops.positive and crops.negative are both 0: no crop could be drawn")
        return self


class ScanCacheConfig(Section):
    """Folder of the prepared scans: one that runs can share, or None for the run's own."""

    dir: Path | None = None


class AutomaticStepsConfig(StepsConfig):
    """AdamW and its schedule as in the paper; the number of epochs is not published."""

    epochs: int = Field(300, ge=1)
    weight_decay: float = Field(1e-5, ge=0)
    warmup: float = Field(0.0, ge=0, lt=1)
    clip_norm: float | None = Field(None, gt=0)
    lr: float = Field(2e-4, gt=0)
    lr_encoder: float | None = Field(None, gt=0)  # of unetr_sammed3d's encoder; None: as the rest


class AutomaticScoringConfig(ScoringConfig):
    """Validation by sliding window, on the scans' own grids."""

    every_epochs: int = Field(2, ge=1)


class AutomaticConfig(Section):
    """The config of one training of the U-Net family."""

    run: RunConfig
    data: CasesConfig
    network: NetworkConfig
    crops: CropsConfig = CropsConfig()
    cache: ScanCacheConfig = ScanCacheConfig()
    loss: MaskLossConfig = MaskLossConfig()
    optim: AutomaticStepsConfig = AutomaticStepsConfig()
    validate_: AutomaticScoringConfig = Field(AutomaticScoringConfig(), alias="validate")
    checkpoint: CheckpointConfig = CheckpointConfig()
    track: TrackConfig = TrackConfig()

    @model_validator(mode="after")
    def _fits(self) -> AutomaticConfig:
        problem = crop_problem(self.network.name, self.network.size, self.crops.size)
        if problem is not None:
            raise ValueError(f"crops.size {self.crops.size}: {problem}")
        if self.optim.lr_encoder is not None and self.network.name != "unetr_sammed3d":
            raise ValueError(
                f"optim.lr_encoder {self.optim.lr_encoder:g}: only unetr_sammed3d has a separate learning rate for its "
                f"encoder, not {self.network.name}; omit it"
            )
        return self

    @property
    def memory_savers(self) -> list[str]:
        """Settings that save memory, those with the smallest side effects first."""
        return [
            *self.optim.smaller_batch,
            *self.optim.lower_precision,
            f"a smaller crops.size (now {self.crops.size})",
        ]
