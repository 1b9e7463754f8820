"""Files of an earlier version can be read: a stopped run, both kinds of export, and case identities.

``golden/version_0_1.tar.xz`` was written by version 0.1.0 as it was before its packages were laid out anew. All of its
tensors are constants, one for each name, so that it is small; its two cases are synthetic.
"""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from sammed3d_ft.automatic.segmenter import AutomaticSegmenter
from sammed3d_ft.dataset.manifest import read_manifest
from sammed3d_ft.images.images import read_image
from sammed3d_ft.inference import Predictor
from sammed3d_ft.model.weights import read_state_dict
from sammed3d_ft.provenance import case_content, state_hash
from sammed3d_ft.recipes.train import load_config, train

EARLIER = Path(__file__).with_name("golden") / "version_0_1.tar.xz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("earlier")
    with tarfile.open(EARLIER) as archive:
        archive.extractall(path, filter="data")
    return path


@pytest.fixture(scope="module")
def expected(folder: Path) -> dict[str, Any]:
    """The results of that version on these files."""
    content: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    return content


def test_exports_give_the_same_logits(folder: Path, expected: dict[str, Any]) -> None:
    pet = read_image(folder / "cases" / "val_0_pt.nii.gz")
    predictor = Predictor.from_pretrained(folder / "whole" / "export" / "model.safetensors", device="cpu")
    predictor.set_image({"PT": pet})
    lesion = predictor.add_click((6, 6, 5))
    automatic = AutomaticSegmenter.from_pretrained(folder / "automatic" / "export" / "model.safetensors", device="cpu")

    assert int(lesion.mask.sum()) == expected["mask_voxels"]
    assert lesion.predicted_iou == pytest.approx(expected["predicted_iou"], rel=1e-4)
    for name, logits in (("prompted", lesion.logits), ("automatic", automatic.segment({"PT": pet}))):
        found = [float(logits.min()), float(logits.mean()), float(logits.max())]
        assert found == pytest.approx(expected[f"{name}_logits"], rel=1e-3, abs=1e-5)


def test_hashes_are_the_same(folder: Path, expected: dict[str, Any]) -> None:
    assert state_hash(read_state_dict(folder / "base.safetensors").state) == expected["base_hash"]
    assert case_content(read_manifest(folder / "manifest.json").cases[0]) == expected["case"]


def test_a_stopped_run_resumes(folder: Path, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """It refuses other settings, data or base weights, so all of these are recognised as those that it began with."""
    monkeypatch.chdir(folder)
    summary = train(load_config(Path("prompted.yaml")))

    log = [json.loads(line) for line in Path("stopped/metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in log if "train/loss" in line]
    assert losses == pytest.approx(expected["losses"], rel=1e-4)
    assert {name: summary[name] for name in expected["dice"]} == pytest.approx(expected["dice"], abs=1e-6)
