"""metrics.jsonl: one JSON line per logged step, truncated to the checkpoint when a run resumes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sammed3d_ft.errors import InputError
from sammed3d_ft.files import write_whole


class MetricsLog:
    """Append to a run's ``metrics.jsonl``.

    Args:
        path: the file.
        resume_step: existing lines of later steps are dropped, because these steps will be repeated. None drops
            all lines.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        self.path = path
        kept = []
        if path.exists():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    if resume_step is not None and json.loads(line)["step"] <= resume_step:
                        kept.append(line)
                except (json.JSONDecodeError, KeyError, TypeError):
                    continue  # a line truncated when the run was killed
        write_whole(path, "".join(f"{line}\n" for line in kept))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line.

        Raises:
            InputError: the line cannot be written (disk full, ...).
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror or error})") from error
