"""A unit of work: one method on one fold with one seed, from model (if any) to scored masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sammed3d_ft.automatic.config import AutomaticConfig
from sammed3d_ft.benchmark.config import BenchmarkConfig, CascadeRow, CheckpointRow, MasksRow, RuleRow, TrainedRow
from sammed3d_ft.benchmark.masks import AUTOMATIC, level_name, make_masks, masks_for
from sammed3d_ft.benchmark.scoring import errors_of, is_scored, score_masks
from sammed3d_ft.benchmark.segmenters import OpenTrained, Source, source_cascade, source_masks, source_untrained
from sammed3d_ft.benchmark.trainings import run_folder
from sammed3d_ft.dataset.manifest import read_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation import kept_cases
from sammed3d_ft.files import write_whole
from sammed3d_ft.prompted.config import PromptedConfig
from sammed3d_ft.provenance import digest
from sammed3d_ft.recipes.train import load_config
from sammed3d_ft.training.run_lock import RunHeldError, locked_run

_CURRENT = "current.json"


@dataclass(frozen=True)
class Failure:
    """A run without a result, or with failed cases."""

    run: str
    reason: str
    held: bool = False
    """Whether it was left to another process that is working on it."""


@dataclass(frozen=True)
class Unit:
    """One method on the test cases of one fold with one seed."""

    row: str
    fold: str
    seed: int
    manifest: Path
    """The fold's manifest."""

    def __str__(self) -> str:
        return f"{self.row}, fold {self.fold}, seed {self.seed}"


def units_of(config: BenchmarkConfig, name: str, folds: dict[str, Path]) -> list[Unit]:
    """All units of a method."""
    return [Unit(name, fold, seed, folds[fold]) for seed in config.seeds_of(name) for fold in folds]


def is_prompted(config: BenchmarkConfig, name: str) -> bool:
    """Whether a method receives clicks from the simulated user; not for `MasksRow`, where folder names determine it."""
    row = config.rows[name]
    if isinstance(row, TrainedRow):
        return isinstance(_training_config(row), PromptedConfig)
    if isinstance(row, RuleRow):
        return row.clicks == "seeded"
    return not isinstance(row, CascadeRow | MasksRow)


def accumulates(config: BenchmarkConfig, name: str) -> bool | None:
    """Whether a method's decoder is given all clicks so far (True) or only the newest (False).

    None for methods that have no such choice: automatic ones, rules, cascades (one click per lesion), existing masks.
    """
    row = config.rows[name]
    if isinstance(row, CheckpointRow):
        return source_untrained(row).accumulate
    loaded = _training_config(row) if isinstance(row, TrainedRow) else None
    return loaded.clicks.accumulate if isinstance(loaded, PromptedConfig) else None


def _training_config(row: TrainedRow) -> PromptedConfig | AutomaticConfig:
    # The benchmark sets run folder and manifest, so the method's config need not name them.
    return load_config(row.config, [*row.overrides, "run.dir=run", "data.manifest=manifest.json"])


def levels_of(config: BenchmarkConfig, name: str) -> list[int | None]:
    """Click counts for which a method's masks exist; None means automatic."""
    row = config.rows[name]
    if not isinstance(row, MasksRow):
        return [*config.click_counts] if is_prompted(config, name) else [None]
    levels: list[int | None] = [k for k in config.click_counts if (row.masks / level_name(k)).is_dir()]
    if (row.masks / AUTOMATIC).is_dir() or not levels:
        levels.append(None)
    return levels


def masks_folder(config: BenchmarkConfig, unit: Unit, level: int | None) -> Path:
    """The folder of a unit's masks."""
    row = config.rows[unit.row]
    if not isinstance(row, MasksRow):
        return _current(config, unit, "masks") / level_name(level)
    if level is None and not (row.masks / AUTOMATIC).is_dir():
        return row.masks
    return row.masks / level_name(level)


def scores_folder(config: BenchmarkConfig, unit: Unit, level: int | None) -> Path:
    """The folder of a unit's scores."""
    return _current(config, unit, "evaluation") / level_name(level)


def _current(config: BenchmarkConfig, unit: Unit, what: str) -> Path:
    """The folder of masks or scores that the last call used; before the first call, one that does not exist."""
    folder = run_folder(config, unit.row, unit.fold, unit.seed)
    record = folder / _CURRENT
    return folder / what / (json.loads(record.read_text(encoding="utf-8"))[what] if record.is_file() else "none")


def check_row(config: BenchmarkConfig, name: str) -> None:
    """Check a method that is not trained, before hours are spent on another.

    Raises:
        InputError: unusable weights, a missing folder, or cascade parts of the wrong kind.
    """
    row = config.rows[name]
    if isinstance(row, MasksRow):
        if not row.masks.is_dir():
            raise InputError(f"method {name}: no folder of masks {row.masks}")
        wanted = {level_name(k) for k in config.click_counts}
        given = {path.name for path in row.masks.glob("*_clicks") if path.is_dir()}
        # The area under a curve needs all steps; otherwise, some numbers of clicks may be missing, but not all.
        if given and (not given & wanted or (config.protocol == "autopet4" and wanted - given)):
            raise InputError(
                f"method {name}: {row.masks} has {', '.join(sorted(given))}, expected {', '.join(sorted(wanted))}"
            )
    elif isinstance(row, CascadeRow):
        config.seeds_of(name)
        parts = row.cascade
        if None not in levels_of(config, parts.detector):
            raise InputError(f"method {name}: its detector {parts.detector!r} takes clicks; choose an automatic method")
        if not is_prompted(config, parts.prompted):
            raise InputError(f"method {name}: its prompted part {parts.prompted!r} takes no clicks; choose another")
    elif not isinstance(row, TrainedRow):
        try:
            source_untrained(row)
        except InputError as error:
            raise InputError(f"method {name}: {error}") from error


def run_unit(config: BenchmarkConfig, lesions: tuple[str, int], open_trained: OpenTrained, unit: Unit) -> list[Failure]:
    """Make and score a unit's missing masks.

    A unit that another process is working on is skipped, so that several calls can share the work of a benchmark.

    Args:
        lesions: what is clicked (``each`` lesion, or ``all`` together), and the connectivity of lesions.
        open_trained: see `source_trained`.
    """
    folder = run_folder(config, unit.row, unit.fold, unit.seed)
    try:
        with locked_run(folder):
            return _run(config, unit, folder, lesions, open_trained)
    except InputError as error:
        return [failure_of(unit, error)]


def failure_of(unit: Unit, error: InputError) -> Failure:
    """The failure to report for a unit that ended with an error."""
    return Failure(str(unit), str(error), isinstance(error, RunHeldError))


def _run(
    config: BenchmarkConfig, unit: Unit, folder: Path, lesions: tuple[str, int], open_trained: OpenTrained
) -> list[Failure]:
    cases = read_manifest(unit.manifest).split("test")
    levels = levels_of(config, unit.row)
    source = _source(config, unit, [case.id for case in cases], lesions[1], open_trained)
    masks = masks_for(config, source, cases, folder / "masks", lesions)
    chosen = {"masks": masks.name, "evaluation": digest(kept_cases.EVALUATION_FORMAT, lesions[1], masks.name)}
    write_whole(folder / _CURRENT, json.dumps(chosen))
    broken = frozenset(case for level in levels for case in errors_of(scores_folder(config, unit, level)))
    reasons = make_masks(config, source, cases, masks, lesions, broken)
    wrong: dict[str, str] = {}
    for level in levels:
        at = masks_folder(config, unit, level)
        wrong |= score_masks(at, cases, scores_folder(config, unit, level), lesions[1], reasons)
    return [Failure(str(unit), _as_text(wrong))] if wrong else []


def _source(
    config: BenchmarkConfig, unit: Unit, cases: Sequence[str], connectivity: int, open_trained: OpenTrained
) -> Source:
    row = config.rows[unit.row]
    if isinstance(row, TrainedRow):
        folder = run_folder(config, unit.row, unit.fold, unit.seed)
        return open_trained(folder, is_prompted(config, unit.row))
    if isinstance(row, CascadeRow):
        detector, prompted = (
            replace(unit, row=part, seed=_seed_of(config, part, unit.seed))
            for part in (row.cascade.detector, row.cascade.prompted)
        )
        found = masks_folder(config, detector, None)
        model = _source(config, prompted, cases, connectivity, open_trained)
        return source_cascade(found, cases, model, connectivity, row.cascade.min_volume_ml)
    if isinstance(row, MasksRow):
        return source_masks({level_name(k): masks_folder(config, unit, k) for k in levels_of(config, unit.row)}, cases)
    return source_untrained(row)


def _seed_of(config: BenchmarkConfig, part: str, seed: int) -> int:
    """The seed of a cascade's part; a part that is not trained has a single seed."""
    return seed if config.is_trained(part) else config.seeds_of(part)[0]


def is_ready(config: BenchmarkConfig, unit: Unit) -> bool:
    """Whether all models that a unit needs are trained and, for a cascade, the detector's masks are scored."""
    row = config.rows[unit.row]
    parts: Sequence[str] = [unit.row]
    if isinstance(row, CascadeRow):
        parts = (row.cascade.detector, row.cascade.prompted)
        detector = replace(unit, row=parts[0], seed=_seed_of(config, parts[0], unit.seed))
        if not is_scored(scores_folder(config, detector, None)):  # another process may be working on it
            return False
    folders = [run_folder(config, part, unit.fold, unit.seed) for part in parts if config.is_trained(part)]
    return all((folder / "summary.json").is_file() for folder in folders)


def _as_text(wrong: dict[str, str]) -> str:
    first, reason = next(iter(wrong.items()))
    reason = reason if reason.startswith(f"case {first}") else f"case {first}: {reason}"
    return reason if len(wrong) == 1 else f"{len(wrong)} cases, such as {reason}"
