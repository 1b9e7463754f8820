"""Fixtures of the benchmark tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.benchmark_cases import Done, write_files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A cohort, its folds and the configs of a benchmark's rows."""
    write_files(tmp_path)
    return tmp_path


@pytest.fixture
def trained() -> Done:
    """Stand-ins for trainings and their models."""
    return Done()
