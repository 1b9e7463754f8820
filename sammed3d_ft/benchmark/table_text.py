"""Writes a benchmark's tables as CSV and Markdown, with sentences that explain the numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from sammed3d_ft.benchmark.config import METRICS, BenchmarkConfig
from sammed3d_ft.benchmark.scores import AREA, Scores
from sammed3d_ft.benchmark.tables import Line, SizeLine, Tables
from sammed3d_ft.files import write_csv, write_whole


def write_tables(config: BenchmarkConfig, scores: Scores, tables: Tables) -> str:
    """Write ``table.csv``, ``sizes.csv``, ``cases.csv`` and ``table.md``; return the text of ``table.md``."""
    for name, kind, lines in (("table", Line, tables.lines), ("sizes", SizeLine, tables.sizes)):
        columns = [field.name for field in fields(kind)]
        write_csv(config.out / f"{name}.csv", columns, map(vars, lines))
    columns = ["row", "clicks", "accumulate_clicks", "fold", "seed", "case", "patient", "error", *METRICS]
    write_csv(config.out / "cases.csv", columns, ({c: line.get(c) for c in columns} for line in scores.lines))
    text = markdown(config, tables)
    write_whole(config.out / "table.md", text)
    return text


def explained(config: BenchmarkConfig, tables: Tables) -> list[str]:
    """Sentences that explain the numbers, the same in Markdown and on the page."""
    per_lesion = config.protocol == "clicks"
    given = (
        "Prompted methods receive the stated number of clicks per lesion from a simulated user who knows the ground "
        "truth: first at the lesion's deepest point, then at the deepest point of the error."
        if per_lesion
        else "Prompted methods follow autoPET IV: a first mask without clicks, then ten steps of one foreground and "
        "one background click per scan. The area under a metric (auc) is trapezoidal over these 11 steps, so a "
        "constant Dice of 1 gives 10."
    )
    sentences = [
        f"{given} Automatic methods receive no clicks: the scores of the two kinds differ by the information given, "
        "not by the model alone.",
        "One evaluator scores all masks on the scans' own grids. A patient's value is the mean over the patient's "
        "scans and over seeds; n is the number of patients for whom it is defined with every seed, out of all "
        "patients. 95 % CI: percentile bootstrap over patients.",
        f"Tests compare each method with {config.reference} in the same block, over the patients for whom both are "
        "defined: mean difference, Hodges-Lehmann estimate (95 % CI), Wilcoxon signed-rank test. Holm and Bonferroni "
        "correct for the number of methods in a block, separately for each metric.",
    ]
    if any(line.accumulate_clicks for line in tables.lines):
        sentences.append(
            "Clicks, accumulated: at each step the decoder is given all clicks on the lesion so far; newest only: the "
            "newest click and its own previous mask."
        )
    for name in dict.fromkeys(metric.removeprefix(AREA) for metric in metrics_of(tables)):
        sentences.append(f"{label_of(name)}: {METRICS[name].convention}; {METRICS[name].empties}.")
    return sentences


def label_of(metric: str) -> str:
    """A metric's display name, or its column name if it has none."""
    if metric.startswith(AREA):
        return f"{label_of(metric.removeprefix(AREA))}, area under the curve"
    return METRICS[metric].label or metric


OVERVIEW = "Overview of means"
METRIC_COLUMNS = (
    *("block", "method", "clicks", "n", "mean (95 % CI)", "median"),
    *("difference", "Hodges-Lehmann (95 % CI)", "p", "p (Holm)", "p (Bonferroni)"),
)
SIZE_COLUMNS = ("block", "method", "clicks", "size", "lesions", "recall (95 % CI)", "lesion Dice (95 % CI)")


def overview(tables: Tables) -> list[tuple[list[str], list[list[str]]]]:
    """The means of all metrics for each block: column names and rows. ``[n/N]`` marks means over n of N patients."""
    found = []
    for block in tables.blocks:
        rows = []
        for row, _ in block.entries:
            of = {line.metric: line for line in tables.lines if line.block == block.title and line.row == row}
            means = [f"{number(line.mean)}{_share(line)}" for line in map(of.__getitem__, block.metrics)]
            rows.append([row, _clicks(of[block.metrics[0]]), *means])
        found.append(([block.title, "clicks", *map(label_of, block.metrics)], rows))
    return found


def _clicks(line: Line | SizeLine) -> str:
    """The clicks given, and for models with a choice which of them the decoder is given at each step."""
    modes = {"true": ", accumulated", "false": ", newest only", "": ""}
    return f"{line.clicks}{modes[line.accumulate_clicks]}"


def _share(line: Line) -> str:
    return "" if line.patients == line.of else f" [{line.patients}/{line.of}]"


def metric_rows(tables: Tables, metric: str) -> list[list[str]]:
    """Table rows with `METRIC_COLUMNS` for one metric, block by block."""
    return [
        [
            line.block,
            line.row,
            _clicks(line),
            f"{line.patients}/{line.of}" + (f" ({line.failed} missing)" if line.failed else ""),
            interval(line.mean, line.ci_low, line.ci_high),
            number(line.median),
            number(line.difference),
            interval(line.hodges_lehmann, line.hl_low, line.hl_high),
            *(p_value(p) for p in (line.p, line.p_holm, line.p_bonferroni)),
        ]
        for line in tables.lines
        if line.metric == metric
    ]


def size_rows(tables: Tables) -> list[list[str]]:
    """Table rows with `SIZE_COLUMNS`."""
    return [
        [
            line.block,
            line.row,
            _clicks(line),
            line.size_class,
            f"{line.lesions}/{line.of}",
            interval(line.recall, line.recall_low, line.recall_high),
            interval(line.lesion_dice, line.dice_low, line.dice_high),
        ]
        for line in tables.sizes
    ]


def metrics_of(tables: Tables) -> list[str]:
    """The metrics of all blocks, in order."""
    return list(dict.fromkeys(metric for block in tables.blocks for metric in block.metrics))


def markdown(config: BenchmarkConfig, tables: Tables) -> str:
    """All tables as one Markdown text."""
    metrics = metrics_of(tables)
    parts = ["\n\n".join(explained(config, tables)), f"## {OVERVIEW}"]
    parts += [_grid(columns, rows) for columns, rows in overview(tables)]
    for metric in metrics:
        parts += [f"## {label_of(metric)}", _grid(METRIC_COLUMNS, metric_rows(tables, metric))]
    if tables.sizes:
        parts += ["## By lesion size", _grid(SIZE_COLUMNS, size_rows(tables))]
    return "\n\n".join(parts) + "\n"


def _grid(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """Three decimals, or one from 100 on; empty if not defined."""
    return "" if value != value else f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"


def interval(value: float, low: float, high: float) -> str:
    """``value (low to high)``."""
    if value != value or low != low:
        return number(value)
    return f"{number(value)} ({number(low)} to {number(high)})"


def p_value(p: float) -> str:
    """Three decimals, or ``<0.001``; empty if not defined."""
    return "" if p != p else "<0.001" if p < 0.001 else f"{p:.3f}"
