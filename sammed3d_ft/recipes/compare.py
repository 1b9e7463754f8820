"""Compare evaluations of several predictions: read their folders, test patient by patient, write the comparison."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sammed3d_ft.evaluation.comparison import compare, read_evaluations, write_comparison


def run(folders: Sequence[Path], out: Path, reference: str | None = None) -> dict[str, Any]:
    """Write compare.json and compare.md to ``out`` and return the content of compare.json.

    Args:
        folders: two or more folders written by `sammed3d-ft evaluate`.
        out: output folder.
        reference: one of the folders, or its evaluation's name; the first by default.

    Raises:
        InputError: folders without evaluations, or evaluations that cannot be compared; every reason is listed.
    """
    evaluations = read_evaluations(folders)
    by_folder = {str(evaluation.folder): evaluation.name for evaluation in evaluations}
    chosen = evaluations[0].name if reference is None else by_folder.get(str(Path(reference)), reference)
    content = compare(evaluations, chosen)
    write_comparison(content, out)
    return content
