"""The configuration of a benchmark: its YAML, read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Discriminator, Field, Tag, ValidationError, model_validator

from sammed3d_ft.comparators.threshold import FractionOfMaximum, SuvAtLeast
from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation import metrics
from sammed3d_ft.training.config import Section
from sammed3d_ft.training.config_file import find_config

ONE_PROCESS = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]

_TMTV_ERROR = metrics.Metric(
    "tmtv_error_ml",
    "absolute difference between predicted and ground-truth total volume",
    "an empty mask has volume 0",
    label="TMTV error (ml)",
    read=lambda case: abs(case.pred.volume_ml - case.truth.volume_ml),
)
METRICS = {**metrics.METRICS, _TMTV_ERROR.name: _TMTV_ERROR}
"""By column name: those of an evaluation, and one more."""

DEFAULT_METRICS = ["dice", "f1_iou0.1", "lesion_dice", "nsd_2mm", "hd95_mm", "fpv_ml", "fnv_ml", _TMTV_ERROR.name]
AUTOPET_METRICS = ["dice", "fpv_ml", "fnv_ml"]


class TrainedRow(Section):
    """A model trained on each fold: a training config with overrides."""

    config: Path
    overrides: list[str] = Field(default_factory=list, alias="set")
    seeds: list[int] | None = Field(None, min_length=1)
    """Seeds of this method only, for expensive trainings."""


class CheckpointRow(Section):
    """A prompted model used without further training."""

    checkpoint: str
    spacing_mm: float | None = Field(None, gt=0)
    """Spacing of the crop, instead of the checkpoint's own."""
    accumulate_clicks: bool | None = None
    """Give the decoder all clicks so far (True) or only the newest (False), instead of the checkpoint's own mode."""


class RuleConfig(Section):
    """A threshold: exactly one of the two."""

    fraction_of_max: float | None = None
    suv_at_least: float | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> RuleConfig:
        if (self.fraction_of_max is None) == (self.suv_at_least is None):
            raise ValueError("give either fraction_of_max or suv_at_least")
        self.build()
        return self

    def build(self) -> FractionOfMaximum | SuvAtLeast:
        if self.suv_at_least is not None:
            return SuvAtLeast(self.suv_at_least)
        assert self.fraction_of_max is not None
        return FractionOfMaximum(self.fraction_of_max)


class RuleRow(Section):
    """A threshold rule, seeded by the same clicks as the prompted models, or applied to the whole image."""

    rule: RuleConfig
    clicks: Literal["seeded", "none"] = "seeded"

    @model_validator(mode="after")
    def _has_a_maximum(self) -> RuleRow:
        if self.clicks == "none" and self.rule.fraction_of_max is not None:
            raise ValueError(
                "fraction_of_max without clicks would refer to the whole image's maximum, which lies in the bladder or "
                "brain: use clicks: seeded, or suv_at_least"
            )
        return self


class CascadeParts(Section):
    detector: str
    prompted: str
    min_volume_ml: float = Field(0, ge=0)
    """Smaller detections are not clicked, because a briefly trained network leaves hundreds of specks."""


class CascadeRow(Section):
    """A prompted model clicked at the deepest point of every component that another method has found."""

    cascade: CascadeParts
    seeds: list[int] | None = Field(None, min_length=1)


class SliceSamRow(Section):
    """Meta's 2D SAM (ViT-B), slice by slice: its weights file, or ``random``."""

    slice_sam: str


class MasksRow(Section):
    """Existing masks: a folder of ``<case>.nii.gz`` (or another readable format), or of subfolders ``<k>_clicks`` and
    ``automatic`` with such files."""

    masks: Path


_KINDS = ("config", "checkpoint", "rule", "cascade", "slice_sam", "masks")


def _kind(row: Any) -> str | None:
    names = row.keys() if isinstance(row, dict) else type(row).model_fields if isinstance(row, Section) else ()
    given = [kind for kind in _KINDS if kind in names]
    return given[0] if len(given) == 1 else None


Row = Annotated[
    Annotated[TrainedRow, Tag("config")]
    | Annotated[CheckpointRow, Tag("checkpoint")]
    | Annotated[RuleRow, Tag("rule")]
    | Annotated[CascadeRow, Tag("cascade")]
    | Annotated[SliceSamRow, Tag("slice_sam")]
    | Annotated[MasksRow, Tag("masks")],
    Discriminator(
        _kind,
        custom_error_type="row_kind",
        custom_error_message=f"give exactly one of {', '.join(_KINDS[:-1])} or {_KINDS[-1]}",
    ),
]


class BenchmarkConfig(Section):
    """What is compared, on which folds, with which seeds."""

    out: Path
    manifest: Path
    folds: Literal["split"] | int | Path
    """A JSON file of folds (lists of test cases, or nnU-Net's splits_final.json), the number of folds to draw by
    patient, or ``split``: the manifest's own train, val and test as one fold."""
    folds_key: str | None = None
    seeds: list[int] = Field(default_factory=lambda: [0], min_length=1)
    protocol: Literal["clicks", "autopet4"] = "clicks"
    clicks: list[int] = Field(default_factory=lambda: [1, 3, 5, 10], min_length=1)
    """Per lesion; protocol `autopet4` uses its own numbers."""
    metrics: list[str] | None = Field(None, min_length=1)
    """Columns of the tables; figures show the first. None selects the protocol's defaults."""
    reference: str
    rows: dict[str, Row]
    launch: list[str] = Field(default_factory=lambda: list(ONE_PROCESS))
    """Arguments of ``accelerate launch``."""
    workers: int = Field(1, ge=1)
    """Processes that make and score masks; trainings run one after the other."""

    @model_validator(mode="after")
    def _fits(self) -> BenchmarkConfig:
        for seeds in (self.seeds, *(getattr(row, "seeds", None) or () for row in self.rows.values())):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"seeds {list(seeds)}: a duplicate seed would count its runs twice")
        if self.reference not in self.rows:
            raise ValueError(f"reference {self.reference!r} is not in rows: choose one of {', '.join(self.rows)}")
        if min(self.clicks) < 1:
            raise ValueError(f"clicks {self.clicks}: a lesion needs at least one click")
        unknown = [name for name in self.metrics or () if name not in METRICS]
        if unknown:
            raise ValueError(f"metrics: unknown {', '.join(unknown)}; known: {', '.join(METRICS)}")
        bad = [name for name in self.rows if not name or name.startswith(".") or set(name) & set('/\\:*?"<>|')]
        if bad:
            raise ValueError(f"method {bad[0]!r}: its name is used for a folder; use letters, digits, - and _")
        for name, row in self.rows.items():
            if isinstance(row, CascadeRow):
                self._check_cascade(name, row.cascade)
        return self

    def _check_cascade(self, name: str, parts: CascadeParts) -> None:
        for part, wanted in ((parts.detector, "detector"), (parts.prompted, "prompted")):
            if part not in self.rows:
                raise ValueError(f"method {name}: its {wanted} {part!r} is not in rows")
            if isinstance(self.rows[part], CascadeRow):
                raise ValueError(f"method {name}: its {wanted} {part!r} is itself a cascade")

    @property
    def shown_metrics(self) -> list[str]:
        """The metrics of the tables, the headline metric first."""
        return self.metrics or (DEFAULT_METRICS if self.protocol == "clicks" else AUTOPET_METRICS)

    @property
    def click_counts(self) -> list[int]:
        """The numbers of clicks (protocol `autopet4`: click pairs) at which prompted methods make masks."""
        return sorted(set(self.clicks)) if self.protocol == "clicks" else list(range(11))

    def seeds_of(self, name: str) -> tuple[int, ...]:
        """The seeds of a method; methods without randomness have a single one, 0."""
        row = self.rows[name]
        if isinstance(row, TrainedRow):
            return tuple(row.seeds or self.seeds)
        if isinstance(row, CascadeRow):
            parts = [part for part in (row.cascade.detector, row.cascade.prompted) if self.is_trained(part)]
            known = [set(self.seeds_of(part)) for part in parts]
            common = sorted(set.intersection(*known)) if known else [0]
            chosen = row.seeds or common
            if not chosen or not set(chosen) <= set(common):
                raise InputError(f"method {name}: seeds {chosen} must be among those of its parts, {common}")
            return tuple(chosen)
        return (0,)

    def is_trained(self, name: str) -> bool:
        """Whether the benchmark trains this method, so that it has seeds."""
        return isinstance(self.rows[name], TrainedRow)


def load_benchmark(path: Path) -> BenchmarkConfig:
    """Read a benchmark's YAML, from a path or from the shipped configs; `InputError` in one line if it is invalid."""
    path = find_config(path)
    try:
        return BenchmarkConfig.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    except ValidationError as error:
        problems = (f"{_place(item['loc'])}: {item['msg']}" for item in error.errors())
        raise InputError(f"{path}: {'; '.join(problems)}") from None


def _place(loc: tuple[int | str, ...]) -> str:
    """``rows.NAME.key`` as in the file, without the tag that pydantic inserts."""
    if len(loc) > 3 and loc[0] == "rows" and loc[2] in _KINDS:
        loc = (*loc[:2], *loc[3:])
    return ".".join(map(str, loc)) or "config"
