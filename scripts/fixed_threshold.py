"""Scores the classical one-click rule on a manifest: a fixed share of the lesion's maximum, as a baseline.

    python scripts/fixed_threshold.py MANIFEST [--split test]

The rule is `sammed3d_ft.baselines.threshold.FractionOfMaximum`: from a click inside the lesion the PET's maximum
within 20 mm, and of all voxels at or above 41 % of it the connected component that holds it.

The click is the deepest point of the true mask, by two definitions that differ where lesions are long or cut
by the field of view. `array`: the first voxel, in the file's order, of largest distance to a background voxel
of the image. `model`: the click that the model is given in this project (`prompts.depth.deepest_point`), for
which what lies beyond the image is background, and the lesion's centre decides between equally deep voxels.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

from prompts.depth import deepest_point
from prompts.errors import InputError
from sammed3d_ft.baselines.threshold import FractionOfMaximum
from sammed3d_ft.data.images import grid_difference, read_image, read_label
from sammed3d_ft.data.manifest import Case, read_manifest

RULE = FractionOfMaximum(0.41)


def dice_of_case(case: Case) -> tuple[float, float]:
    """Dice of the rule's mask with the whole true mask, from the click `array` and from the click `model`.

    Raises:
        InputError: no PET, no label, an empty label, or another grid than the PET's.
    """
    if "PT" not in case.images or case.label is None:
        raise InputError(f"case {case.id}: the rule needs a PT image and a label; leave the case out")
    pet, label = read_image(case.images["PT"], case=case.id), read_label(case.label, case=case.id)
    if difference := grid_difference(pet, label):
        raise InputError(f"case {case.id}: {difference}; resample the label onto the PET")
    # On the file's own axes, since the first voxel depends on their order.
    truth = label.source.from_canonical(label.array) > 0
    uptake = label.source.from_canonical(pet.array)
    spacing_mm = np.linalg.norm(label.source.affine[:3, :3], axis=0)
    deepest = deepest_point(truth, spacing_mm)
    if deepest is None:
        raise InputError(f"case {case.id}: the label is empty, so there is nothing to click on")
    depth = ndimage.distance_transform_edt(truth, sampling=spacing_mm)
    clicks_vox = (np.array(np.unravel_index(np.argmax(depth), depth.shape)), deepest[0])
    array, model = (_dice(RULE.region_of(uptake, click, spacing_mm), truth) for click in clicks_vox)
    return array, model


def _dice(predicted: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (predicted & truth).sum() / (predicted.sum() + truth.sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Dice of the 41 % one-click rule on a manifest's cases.")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--split", choices=("train", "val", "test"), help="only these cases")
    options = parser.parse_args()
    try:
        manifest = read_manifest(options.manifest)
        cases = manifest.cases if options.split is None else manifest.split(options.split)
        if not cases:
            raise InputError(f"{options.manifest}: no case in it, or none in the split asked for")
        values = []
        print(f"{'case':<24} {'array':>6} {'model':>6}")
        for case in cases:
            values.append(dice_of_case(case))
            print(f"{case.id:<24} {values[-1][0]:6.4f} {values[-1][1]:6.4f}")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    array, model = np.mean(values, axis=0)
    print(f"{f'mean of {len(values)}':<24} {array:6.4f} {model:6.4f}")


if __name__ == "__main__":
    main()
