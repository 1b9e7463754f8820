"""Compare the time of predicting a whole-body phantom with 20 lesions, file to file, with that of its encoder passes.

python scripts/bench_predict.py [--variant vit_b_ori] [--lesions 20] [--threads 2]

`vit_b_ori` has random weights with empty masks, so auto-zoom treats every lesion as small: two encoder passes each.
This measures cost, not quality. `--variant mini` uses the shipped weights and gives real masks. A separate process
measures reading, cropping, encoding, decoding, and writing mask, lesion numbers, table and record; then the same number
of encoder passes alone; then one additional click per lesion.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from prompts.click_files import write_clicks
from prompts.scan import clicks_from_mask
from sammed3d_ft.images.grids import from_array
from sammed3d_ft.images.images import write_float
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.sam_med3d import SAMMed3D
from sammed3d_ft.model.weights import save_safetensors
from sammed3d_ft.phantom.simulate import make_phantom
from sammed3d_ft.prompted.clicked_scan import ClickedScan
from sammed3d_ft.recipes import predict


def write_inputs(work: Path, variant: str, lesions: int) -> str:
    """Write a phantom with at least `lesions` lesions, one click on each of the first `lesions`, and weights.

    Returns the checkpoint.
    """
    for case in range(100):
        phantom = make_phantom(11, case, "psma", "whole-body")
        numbers = np.unique(phantom.instances)[1:]
        if len(numbers) >= lesions:
            break
    pet = from_array(phantom.pet, phantom.pet_affine)
    write_float(work / "pet.nii.gz", pet.array, pet)
    some = from_array(np.where(phantom.instances <= numbers[lesions - 1], phantom.instances, 0), phantom.pet_affine)
    clicks = clicks_from_mask(some.array, spacing_mm=some.spacing_mm)
    write_clicks(work / "clicks.json", clicks.to_world(some.affine))
    Console().print(f"phantom {phantom.id}: {phantom.pet.shape} voxels, {len(clicks.labels)} of {len(numbers)} lesions")
    if variant == "mini":
        return "mini"
    model = seeded_model(variant, seed=0)
    with torch.no_grad():
        for parameter in model.get_submodule("mask_decoder.output_hypernetworks_mlps.0.layers.2").parameters():
            parameter.zero_()
    save_safetensors(work / "model.safetensors", model.state_dict(), {})
    return str(work / "model.safetensors")


def measure(work: Path, checkpoint: str) -> None:
    """Run in a separate process: print the values of the table."""
    start = time.perf_counter()
    outputs = predict.Outputs(work / "mask.nii.gz", work / "instances.nii.gz", table=work / "lesions.csv")
    loaded = predict.load_model(Path(checkpoint), "cpu")
    model, encoded = loaded.predictor.model, [0]

    def count(encoder: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        encoded[0] += len(inputs[0])

    assert isinstance(model, SAMMed3D)
    counting = model.image_encoder.register_forward_pre_hook(count)
    scan = ClickedScan.read(work / "pet.nii.gz", work / "clicks.json")
    predict.segment(loaded, scan, None, outputs, start)
    counting.remove()
    total = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

    size = model.image_size
    passes = []
    with torch.inference_mode():
        for _ in range(encoded[0]):
            crop = torch.randn(1, 1, size, size, size)
            start = time.perf_counter()
            model.image_encoder(crop)
            passes.append(time.perf_counter() - start)

    loaded.predictor.set_image({"PT": scan.volume})
    first: list[float] = []
    later: list[float] = []
    for lesion in scan.lesions[:5]:
        position = lesion.positions_vox[0]
        for times in (first, later):
            start = time.perf_counter()
            loaded.predictor.add_click(position, 1, lesion.number)
            times.append(time.perf_counter() - start)
            position = position + 1
    medians = statistics.median(first), statistics.median(later)
    print(total, sum(passes), peak, *medians, len(passes), len(scan.lesions), sep="\t")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=("vit_b_ori", "mini"), default="vit_b_ori")
    parser.add_argument("--lesions", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    parser.add_argument("--measure", nargs=2, metavar=("WORK", "CHECKPOINT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.measure:
        measure(Path(given.measure[0]), given.measure[1])
        return
    with tempfile.TemporaryDirectory() as work:
        checkpoint = write_inputs(Path(work), given.variant, given.lesions)
        command = [sys.executable, __file__, "--threads", str(given.threads), "--measure", work, checkpoint]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    total, encoders, peak, first, later, count, lesions = map(float, printed.split())
    table = Table(title=f"{given.variant}, {int(lesions)} lesions, file to file, {given.threads} threads")
    table.add_column("")
    table.add_column("", justify="right")
    table.add_row("total, s", f"{total:.1f}")
    table.add_row(f"{int(count)} encoder passes alone, s", f"{encoders:.1f}")
    table.add_row("total / encoder passes", f"{total / encoders:.2f}")
    table.add_row("peak memory of the process, GB", f"{peak / 1e9:.2f}")
    table.add_row("first click on a lesion, s", f"{first:.3f}")
    table.add_row("later click, s", f"{later:.3f}")
    table.add_row("later / first", f"{later / first:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
