"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from prompts.errors import InputError

# If OMP_NUM_THREADS is set (`make test`: 1 per worker), keep it: threads of several workers on one core wait for
# each other most of the time.
if "OMP_NUM_THREADS" not in os.environ:
    torch.set_num_threads(min(2, os.cpu_count() or 1))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder of real cases, named by SAMMED3D_TEST_DATA (default: ../shared/data beside the checkout)."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SAMMED3D_TEST_DATA", default))
    if not (folder / "fdg_pet_sarcoma" / "splits.json").is_file():
        pytest.skip(f"real cases absent: SAMMED3D_TEST_DATA names {folder}, which holds no fdg_pet_sarcoma")
    return folder


@pytest.fixture(autouse=True)
def one_line_errors(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every InputError of a test is a single line. Hostile inputs judge the printed line, for any file name."""

    def checked(self: InputError, *message: object) -> None:
        told = str(message[0])
        assert "\n" not in told or told.startswith("Caught "), told  # torch tells where a loader process failed
        ValueError.__init__(self, *message)

    if request.path.parent.name != "hostile":
        monkeypatch.setattr(InputError, "__init__", checked)
