"""Score the classical one-click threshold rule on a manifest: a fixed fraction of the lesion's maximum.

    python scripts/fixed_threshold.py MANIFEST [--split test]

The rule is `sammed3d_ft.comparators.threshold.FractionOfMaximum`: starting from a click inside the lesion, it finds the
PET maximum within 20 mm and returns the connected component of voxels at or above 41 % of it that contains the maximum.

The click is the deepest point of the reference mask, by two definitions, which differ for lesions that are elongated or
cut by the field of view. `array`: the first voxel, in file order, with the largest distance to a background voxel of
the image. `model`: the model's click in this project (`prompts.depth.deepest_point`), which treats space beyond the
image as background and resolves ties by the distance to the lesion's centre.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from scipy import ndimage

from prompts.depth import deepest_point
from sammed3d_ft.comparators.threshold import FractionOfMaximum
from sammed3d_ft.dataset.manifest import Case, read_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.images import grid_difference, read_image, read_label

RULE = FractionOfMaximum(0.41)


def dice_of_case(case: Case) -> tuple[float, float]:
    """Dice of the rule's mask with the whole reference mask, for the click `array` and for the click `model`.

    Raises:
        InputError: no PET, no label, an empty label, or different grids.
    """
    if "PT" not in case.images or case.label is None:
        raise InputError(f"case {case.id}: the rule needs a PT image and a label; exclude the case")
    pet, label = read_image(case.images["PT"], case=case.id), read_label(case.label, case=case.id)
    if difference := grid_difference(pet, label):
        raise InputError(f"case {case.id}: {difference}; resample the label onto the PET")
    # In the file's own axis order, because the first voxel depends on it.
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
            raise InputError(f"{options.manifest}: no cases, or none in the requested split")
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
