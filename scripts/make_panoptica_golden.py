"""Create the golden files of panoptica and picai_eval for tests/evaluation, in an environment with both packages.

python scripts/make_panoptica_golden.py tests/evaluation/golden [--psma FOLDER]

Both pin versions of numpy, pandas and cc3d that conflict with this project, so their results are recorded instead of
computed in the tests: pip install panoptica==2.1.7 picai_eval==1.4.13 in a separate environment. Cases are unions of
ellipsoids, stored as parameters from which the tests rebuild the masks. --psma adds the two predictions of the real
PSMA case: a folder with label_expert.nii.gz, pred_nnUNet.nii.gz and pred_datacentric.nii.gz.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

SHAPE = (44, 40, 36)
SPACING_MM = (2.0, 2.0, 3.0)


def ellipsoids(rng: np.random.Generator, lesions: int, spread: float) -> tuple[list[list[float]], list[list[float]]]:
    """Centres, radii (voxels) and confidence of reference and predicted ellipsoids; confidences are multiples of 1/64.

    ``spread`` is the SD of a prediction's displacement from its lesion, in radii.
    """
    truth, pred = [], []
    for _ in range(lesions):
        centre, radii = rng.uniform(5, np.array(SHAPE) - 6), rng.uniform(1.5, 5, 3)
        truth.append([*centre, *radii, 1.0])
        for _ in range(rng.choice([0, 1, 1, 1, 2])):
            moved = centre + rng.normal(0, spread, 3) * radii
            guess = radii * rng.uniform(1 - 1.4 * spread, 1.2, 3)
            pred.append([*moved, *guess, int(rng.integers(1, 65)) / 64])
    for _ in range(rng.integers(0, 4)):
        pred.append([*rng.uniform(3, np.array(SHAPE) - 4), *rng.uniform(1, 3, 3), int(rng.integers(1, 65)) / 64])
    return [[round(v, 6) for v in e] for e in truth], [[round(v, 6) for v in e] for e in pred]


def painted(shape: tuple[int, int, int], parts: list[list[float]]) -> np.ndarray:
    """(x, y, z) float32: the highest confidence of the ellipsoids that contain a voxel (border included), or 0."""
    x, y, z = np.indices(shape).astype(float)
    out = np.zeros(shape, np.float32)
    for cx, cy, cz, rx, ry, rz, confidence in parts:
        inside = ((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 + ((z - cz) / rz) ** 2 <= 1
        out[inside] = np.maximum(out[inside], np.float32(confidence))
    return out


def panoptica_scores(truth: np.ndarray, pred: np.ndarray, spacing_mm: tuple[float, ...]) -> dict[str, float]:
    from panoptica import (
        ConnectedComponentsInstanceApproximator,
        InputType,
        NaiveThresholdMatching,
        Panoptica_Evaluator,
    )

    evaluator = Panoptica_Evaluator(
        expected_input=InputType.SEMANTIC,
        instance_approximator=ConnectedComponentsInstanceApproximator(),
        instance_matcher=NaiveThresholdMatching(matching_threshold=0.5, allow_many_to_one=False),
    )
    found = evaluator.evaluate(pred.astype(np.uint8), truth.astype(np.uint8), voxelspacing=spacing_mm, verbose=False)[
        "ungrouped"
    ]
    return {name: float(getattr(found, name)) for name in ("tp", "fp", "fn", "rq", "sq", "pq")}


def panoptica_golden(psma: Path | None) -> dict[str, Any]:
    cases = []
    for seed in range(12):
        truth, pred = ellipsoids(np.random.default_rng(seed), 8, spread=0.15)
        masks = (painted(SHAPE, truth) > 0, painted(SHAPE, pred) > 0)
        cases.append({"truth": truth, "pred": pred, **panoptica_scores(*masks, SPACING_MM)})
    content: dict[str, Any] = {
        "source": (
            f"panoptica {version('panoptica')}, scripts/make_panoptica_golden.py: 26-connectivity, "
            "NaiveThresholdMatching at IoU 0.5, one to one; ellipsoids as centre, radii (voxels, border included), 1"
        ),
        "shape": SHAPE,
        "spacing_mm": SPACING_MM,
        "cases": cases,
    }
    if psma is not None:
        import SimpleITK as sitk

        real = {
            name: sitk.GetArrayFromImage(sitk.ReadImage(str(psma / f"{name}.nii.gz"))) > 0
            for name in ("label_expert", "pred_nnUNet", "pred_datacentric")
        }
        content["psma"] = {
            name: panoptica_scores(real["label_expert"], pred, (2.0, 4.07, 4.07))
            for name, pred in real.items()
            if name != "label_expert"
        }
    return content


def detection_map(confidence: np.ndarray) -> np.ndarray:
    """A detection map as expected by picai_eval: each 26-connected component has one value, here its maximum."""
    labels, count = ndimage.label(confidence, np.ones((3, 3, 3)))
    highest = np.concatenate(([0.0], ndimage.maximum(confidence, labels, np.arange(1, count + 1)))) if count else [0.0]
    return np.asarray(highest, np.float32)[labels]


def picai_golden() -> dict[str, Any]:
    from picai_eval import evaluate

    cases: list[dict[str, Any]] = []
    for seed, lesions in enumerate((5, 4, 0, 6, 3, 0, 2, 5, 0, 4)):
        truth, pred = ellipsoids(np.random.default_rng(100 + seed), lesions, spread=0.35)
        cases.append({"truth": truth, "pred": pred})
    maps = [detection_map(painted(SHAPE, case["pred"])) for case in cases]
    labels = [(painted(SHAPE, case["truth"]) > 0).astype(np.int32) for case in cases]
    metrics = evaluate(y_det=maps, y_true=labels, min_overlap=0.1, num_parallel_calls=1)
    for index, case in enumerate(cases):
        case["lesions"] = sorted(
            [int(is_lesion), float(c), float(iou)] for is_lesion, c, iou in metrics.lesion_results[index]
        )
        case["confidence"] = float(metrics.case_pred[index])
    true_positives, false_positives = metrics.lesion_TP, metrics.lesion_FP
    return {
        "source": (
            f"picai_eval {version('picai_eval')}, scripts/make_panoptica_golden.py: evaluate(min_overlap=0.1) of "
            "detection maps; ellipsoids as centre, radii (voxels, border included), confidence; lesions as lesion or "
            "not, confidence, IoU; the last point of its curve, at infinite false_positives, is left out"
        ),
        "shape": SHAPE,
        "spacing_mm": SPACING_MM,
        "cases": cases,
        "average_precision": float(metrics.AP),
        "auroc": float(metrics.auroc),
        "thresholds": [float(t) for t in metrics.thresholds[:-1]],
        "true_positives": [int(t) for t in true_positives[:-1]],
        "false_positives": [int(f) for f in false_positives[:-1]],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder for panoptica.json and picai.json")
    parser.add_argument("--psma", type=Path, help="folder of the real PSMA masks")
    arguments = parser.parse_args()
    for name, content in (("panoptica", panoptica_golden(arguments.psma)), ("picai", picai_golden())):
        (arguments.out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
