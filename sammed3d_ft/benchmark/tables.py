"""The numbers in a benchmark's tables: statistics and tests per block and metric, and results by lesion size."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sammed3d_ft.benchmark.config import BenchmarkConfig
from sammed3d_ft.benchmark.scores import AREA, Level, Scores
from sammed3d_ft.evaluation.paired import bonferroni, holm, paired_test
from sammed3d_ft.evaluation.statistics import summarise
from sammed3d_ft.lesions.table import SIZE_CLASSES

_NAN = float("nan")


@dataclass(frozen=True)
class TableBlock:
    """Methods compared with each other, each at one level."""

    title: str
    clicks: Level
    """Clicks given to its prompted methods."""
    entries: tuple[tuple[str, Level], ...]
    metrics: tuple[str, ...]


@dataclass(frozen=True)
class Line:
    """One method in one block, for one metric."""

    block: str
    row: str
    clicks: str
    accumulate_clicks: str
    """See `Scores.mode`."""
    metric: str
    patients: int
    """Patients for whom the metric is defined."""
    of: int
    """All patients."""
    failed: int
    """Patients with a missing result: a run, a mask or its scoring failed or is pending."""
    mean: float
    ci_low: float
    ci_high: float
    median: float
    pairs: int | None = None
    """Patients for whom it is defined here and for the reference; None without a test."""
    difference: float = _NAN
    """Mean of this method minus the reference, over the pairs."""
    hodges_lehmann: float = _NAN
    hl_low: float = _NAN
    hl_high: float = _NAN
    p: float = _NAN
    p_holm: float = _NAN
    p_bonferroni: float = _NAN


@dataclass(frozen=True)
class SizeLine:
    """One method in one block, for one size class of lesions."""

    block: str
    row: str
    clicks: str
    accumulate_clicks: str
    size_class: str
    lesions: int
    of: int
    """Lesions of this class in all patients that have been scored for any method."""
    recall: float
    recall_low: float
    recall_high: float
    lesion_dice: float
    dice_low: float
    dice_high: float


@dataclass(frozen=True)
class Tables:
    """All numbers shown."""

    blocks: tuple[TableBlock, ...]
    lines: tuple[Line, ...]
    sizes: tuple[SizeLine, ...]


def build_tables(config: BenchmarkConfig, scores: Scores) -> Tables:
    """Statistics of every block; the patient is the unit throughout."""
    blocks = _blocks(config, scores)
    lines = [line for block in blocks for metric in block.metrics for line in _lines(config, scores, block, metric)]
    sizes = [line for block in blocks for line in _sizes(config, scores, block)]
    return Tables(tuple(blocks), tuple(lines), tuple(sizes))


def clicks_label(config: BenchmarkConfig, level: Level) -> str:
    """The clicks given to a method, in words."""
    if level is None or (config.protocol == "autopet4" and level == 0):
        return "none"
    return f"{level} per lesion" if config.protocol == "clicks" else f"{level} + {level} per scan"


def _blocks(config: BenchmarkConfig, scores: Scores) -> list[TableBlock]:
    """A block for each number of clicks, which includes the automatic methods; then a block of these alone."""
    automatic = tuple((row, level) for row, level in scores.values if level is None)
    shown = tuple(config.shown_metrics)
    counts: list[Level] = [*config.click_counts]
    if config.protocol == "autopet4":
        counts = [counts[-1], 0]
    blocks = []
    for k in counts:
        prompted = tuple((row, level) for row, level in scores.values if level == k)
        metrics = shown
        if config.protocol == "autopet4" and k:
            metrics = tuple(name for metric in shown for name in (metric, f"{AREA}{metric}"))
        if prompted:
            beside = tuple(entry for entry in automatic if (entry[0], k) not in prompted)
            order = sorted(prompted + beside, key=lambda entry: list(config.rows).index(entry[0]))
            blocks.append(TableBlock(_title(config, k), k, tuple(order), metrics))
    if automatic and (config.protocol == "clicks" or not blocks):
        blocks.append(TableBlock("automatic", None, automatic, shown))
    return blocks


def _title(config: BenchmarkConfig, k: Level) -> str:
    if config.protocol == "autopet4":
        return f"{k} + {k} clicks per scan" if k else "step 0, no clicks"
    return f"{k} click{'' if k == 1 else 's'} per lesion"


def _lines(config: BenchmarkConfig, scores: Scores, block: TableBlock, metric: str) -> list[Line]:
    patients = scores.patients
    values = {row: scores.by_patient(row, level, metric) for row, level in block.entries}
    summaries = summarise(values, patients)
    lines = []
    for row, level in block.entries:
        of = summaries[row]
        line = Line(
            block.title,
            row,
            clicks_label(config, level),
            scores.mode(row, level),
            metric,
            of.n,
            len(patients),
            scores.failed_patients(row, level),
            of.mean,
            of.ci_low,
            of.ci_high,
            of.median,
        )
        if row != config.reference and config.reference in values:
            test = paired_test(values[row], values[config.reference])
            line = replace(
                line,
                pairs=test.n,
                difference=test.mean_difference,
                hodges_lehmann=test.hodges_lehmann,
                hl_low=test.hl_low,
                hl_high=test.hl_high,
                p=test.p,
            )
        lines.append(line)
    p = [line.p for line in lines]
    return [
        replace(line, p_holm=by_holm, p_bonferroni=by_bonferroni)
        for line, by_holm, by_bonferroni in zip(lines, holm(p), bonferroni(p), strict=True)
    ]


def _sizes(config: BenchmarkConfig, scores: Scores, block: TableBlock) -> list[SizeLine]:
    """Recall and mean Dice of the ground-truth lesions of each class; intervals by resampling patients."""
    lines = []
    for name in SIZE_CLASSES:
        total = max(sum(lesion.size_class == name for lesion in of) for of in scores.lesions.values())
        for row, level in block.entries if total else ():
            chosen = [lesion for lesion in scores.lesions[row, level] if lesion.size_class == name]
            columns = {"recall": [lesion.found for lesion in chosen], "dice": [lesion.dice for lesion in chosen]}
            recall, dice = summarise(columns, [lesion.patient for lesion in chosen]).values()
            lines.append(
                SizeLine(
                    block.title,
                    row,
                    clicks_label(config, level),
                    scores.mode(row, level),
                    name,
                    len(chosen),
                    total,
                    *(recall.mean, recall.ci_low, recall.ci_high),
                    *(dice.mean, dice.ci_low, dice.ci_high),
                )
            )
    return lines
