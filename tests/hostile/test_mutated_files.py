"""Whatever a file holds, its reader reads it or says in one line why not."""

from __future__ import annotations

import random
import warnings
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sammed3d_ft.errors import InputError
from tests.hostile.mutated_files import READERS


@pytest.fixture(scope="module", params=READERS)
def reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return READERS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**64))
def test_a_mutated_file_is_read_or_refused_in_one_line(reader: Any, seed: int) -> None:
    paths = reader.make(random.Random(seed))
    _read(reader, paths)


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=4096), seed=st.integers(0, 2**64))
def test_any_bytes_are_read_or_refused_in_one_line(reader: Any, content: bytes, seed: int) -> None:
    """In place of a file that the reader expects."""
    (path,) = reader.make(random.Random(seed))
    changed = path if path.is_file() else next(iter(sorted(path.iterdir())))
    changed.write_bytes(content)
    _read(reader, [path])


def _read(reader: Any, paths: list[Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            reader.read(paths)
        except InputError as error:
            said = str(error)
        else:
            said = ""
    assert "\n" not in said
