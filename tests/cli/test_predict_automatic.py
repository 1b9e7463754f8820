"""`sammed3d-ft predict` with the export of an automatic network, and `segment`, its former name for that."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sammed3d_ft.automatic.networks import build_network
from sammed3d_ft.automatic.scan_preparation import ScanPreparation
from sammed3d_ft.automatic.segmenter import FORMAT
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import same_grid
from sammed3d_ft.images.images import read_image, read_label
from sammed3d_ft.model.weights import save_safetensors
from sammed3d_ft.prompted.predictor import Predictor
from tests.support.command import command
from tests.support.tiny_cases import write_case


@pytest.mark.parametrize("name", ["predict", "segment"])
def test_a_scan_is_segmented_without_clicks(name: str, tmp_path: Path) -> None:
    case = write_case(tmp_path, "case", [((12.0, 12.0, 11.0), 19.0)])
    torch.manual_seed(0)
    network = build_network("segresnet", "laptop", 1, 32)
    metadata = {"format": FORMAT, "network": "segresnet", "size": "laptop", "crop_size": "32"}
    metadata["preparation"] = ScanPreparation(("PT",), 6.0).to_json()
    save_safetensors(tmp_path / "model.safetensors", network.state_dict(), metadata)
    words = (name, "--image", case.images["PT"], "--out", tmp_path / "mask.nii.gz", "--device", "cpu")
    told = command(*words, "--checkpoint", tmp_path / "model.safetensors")
    assert " lesions, " in told
    assert f"mask: {tmp_path / 'mask.nii.gz'}" in told
    assert same_grid(read_label(tmp_path / "mask.nii.gz"), read_image(case.images["PT"]))

    nothing = {**network.state_dict(), "conv_final.2.conv.bias": torch.tensor([-1e3])}  # no voxel, no lesion
    save_safetensors(tmp_path / "model.safetensors", nothing, metadata)
    words += ("--checkpoint", tmp_path / "model.safetensors", "--table", tmp_path / "lesions.csv")
    command(*words)
    assert (tmp_path / "lesions.csv").read_text() == (
        "lesion_id,voxels,volume_ml,size_class,centroid_x_mm,centroid_y_mm,centroid_z_mm,"
        "suv_max,suv_mean,suv_peak,suv_peak_flagged,tla\n"
    )

    for useless in (["--flips"], ["--no-obey"], ["--clicks", "c.json"], ["--spacing-mm", "1"], ["--newest-click-only"]):
        with pytest.raises(InputError, match=f"takes no clicks: omit {useless[0]}$"):
            command(*words, *useless)


def test_predict_says_that_a_baseline_takes_no_clicks(tmp_path: Path) -> None:
    network = build_network("segresnet", "laptop", 1, 32)
    save_safetensors(tmp_path / "model.safetensors", network.state_dict(), {"format": FORMAT})
    with pytest.raises(InputError, match="is a baseline network, which takes no clicks: use `sammed3d-ft predict`"):
        Predictor.from_pretrained(tmp_path / "model.safetensors", "cpu")
