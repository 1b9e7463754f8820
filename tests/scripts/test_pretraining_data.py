"""The pre-training phantoms: several sets in one manifest, and complete sets are kept."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from sammed3d_ft.dataset.manifest import read_manifest
from sammed3d_ft.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


def test_sets_become_one_manifest_and_complete_ones_are_kept(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "pretraining_data.py"))
    make, one_set = script["make"], script["PhantomSet"]
    sets = {
        "small": one_set(2, 1, 5, "psma", "pelvis", 0.6),
        "large": one_set(1, 0, 5, "psma", "pelvis", 40.0),
    }
    cases = read_manifest(make(tmp_path, sets)).cases
    ids = [f"{name}_phantom_psma_5_{n:04}" for name, n in (("small", 0), ("small", 1), ("large", 0))]
    assert [(case.id, case.split) for case in cases] == list(zip(ids, ["train", "val", "train"], strict=True))
    assert all(case.label is not None and case.label.is_file() for case in cases)

    written = cases[0].images["PT"].stat().st_mtime_ns
    (tmp_path / "large" / "manifest.json").unlink()  # as if it had been interrupted
    with pytest.raises(InputError, match="large holds images already: remove it"):
        make(tmp_path, sets)
    assert cases[0].images["PT"].stat().st_mtime_ns == written
