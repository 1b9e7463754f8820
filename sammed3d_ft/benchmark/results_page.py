"""The benchmark's HTML page: its tables and figures in one file."""

from __future__ import annotations

from sammed3d_ft.benchmark.config import BenchmarkConfig
from sammed3d_ft.benchmark.scores import Scores
from sammed3d_ft.benchmark.table_text import (
    METRIC_COLUMNS,
    OVERVIEW,
    SIZE_COLUMNS,
    explained,
    label_of,
    metric_rows,
    metrics_of,
    overview,
    size_rows,
)
from sammed3d_ft.benchmark.tables import TableBlock, Tables
from sammed3d_ft.evaluation.statistics import summarise
from sammed3d_ft.figures.benchmark import boxes_figure, click_curves_figure, size_figure
from sammed3d_ft.figures.html_page import Page
from sammed3d_ft.lesions.table import SIZE_CLASSES

_SIZES = {"small": "small\n< 1.5 ml", "medium": "medium\n1.5 to < 4 ml", "large": "large\n>= 4 ml"}

_BySize = dict[str, dict[str, tuple[int, tuple[float, ...], tuple[float, ...]]]]


def write_page(config: BenchmarkConfig, scores: Scores, tables: Tables) -> None:
    """Write ``table.html``."""
    page = Page(f"Benchmark {config.out.name}")
    metrics = metrics_of(tables)
    count = len(scores.patients)
    page.paragraph(f"Scans: {len(scores.cases)}, patients: {count}, methods: {len(config.rows)}, seeds {config.seeds}.")
    for sentence in explained(config, tables):
        page.paragraph(sentence)
    page.heading(OVERVIEW)
    for columns, rows in overview(tables):
        page.table(columns, rows)
    page.heading("Figures")
    _figures(config, scores, tables, page)
    for metric in metrics:
        page.heading(label_of(metric))
        page.table(METRIC_COLUMNS, metric_rows(tables, metric))
    if tables.sizes:
        page.heading("By lesion size")
        page.table(SIZE_COLUMNS, size_rows(tables))
    page.write(config.out / "table.html")


def _figures(config: BenchmarkConfig, scores: Scores, tables: Tables, page: Page) -> None:
    metric, everyone = config.shown_metrics[0], list(config.rows)
    label = label_of(metric)
    curves, flat = _curves(scores, metric)
    if curves and len(config.click_counts) > 1:
        unit = "clicks per lesion" if config.protocol == "clicks" else "pairs of a foreground and a background click"
        caption = f"Mean {label} over patients by {unit}, with 95 % CI; dashed: methods without clicks"
        page.figure(click_curves_figure(curves, flat, label, unit, everyone), f"{caption}.")
    for block in tables.blocks:
        values = {row: scores.by_patient(row, level, metric) for row, level in block.entries}
        clicked = [row for row, level in block.entries if level is not None]
        if any(value == value for of in values.values() for value in of):
            page.figure(
                boxes_figure(values, label, clicked, everyone),
                f"{label} of every patient, {block.title}; box: quartiles and median; diamond: mean; "
                "hatched: methods without clicks.",
            )
    if tables.sizes:
        block = tables.blocks[0]
        page.figure(
            size_figure(_by_size(tables, block), everyone),
            f"Lesions by size, {block.title}: recall (matched at IoU >= 0.1) and mean Dice (missed lesions as 0), "
            "with 95 % CI; n: number of lesions.",
        )


def _curves(scores: Scores, metric: str) -> tuple[dict[str, dict[int, tuple[float, float, float]]], dict[str, float]]:
    """Mean and interval by number of clicks for each prompted method, and the mean of each method without clicks."""
    curves: dict[str, dict[int, tuple[float, float, float]]] = {}
    flat: dict[str, float] = {}
    for row, level in scores.values:
        of = summarise({metric: scores.by_patient(row, level, metric)}, scores.patients)[metric]
        if of.n == 0:
            continue
        if level is None:
            flat[row] = of.mean
        else:
            curves.setdefault(row, {})[level] = (of.mean, of.ci_low, of.ci_high)
    return curves, flat


def _by_size(
    tables: Tables, block: TableBlock
) -> dict[str, dict[str, tuple[int, tuple[float, ...], tuple[float, ...]]]]:
    """By class and method: number of lesions, recall and Dice, the latter two with intervals."""
    found: _BySize = {}
    for name in SIZE_CLASSES:
        for line in tables.sizes:
            if line.block == block.title and line.size_class == name and line.lesions:
                found.setdefault(_SIZES[name], {})[line.row] = (
                    line.lesions,
                    (line.recall, line.recall_low, line.recall_high),
                    (line.lesion_dice, line.dice_low, line.dice_high),
                )
    return found
