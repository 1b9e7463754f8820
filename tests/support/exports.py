"""Exports with random weights."""

from __future__ import annotations

from pathlib import Path

from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.weights import save_safetensors
from sammed3d_ft.prompted.preprocessing import Preprocessing


def random_mini(folder: Path) -> Path:
    """An export of `mini` with random weights; its crops of 160 mm make two lesions cheap."""
    path = folder / "model.safetensors"
    metadata = {"variant": "mini", "preprocessing": Preprocessing(("PT",), 2.5, {"PT": (0, 30)}).to_json()}
    save_safetensors(path, seeded_model("mini", 0).state_dict(), metadata)
    return path
