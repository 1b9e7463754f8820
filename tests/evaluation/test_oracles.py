"""Surface and matching scores against the field's own libraries: surface-distance as it runs, panoptica as recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import surface_distance
from scipy import ndimage
from scipy.spatial.distance import cdist

from prompts.lesions import lesions_from_mask
from sammed3d_ft.evaluation import CaseResult, evaluate_case
from sammed3d_ft.images.images import read_label
from tests.support.ellipsoids import painted

pytestmark = pytest.mark.filterwarnings("ignore:Please import:DeprecationWarning")  # surface-distance of scipy

PANOPTICA: dict[str, Any] = json.loads((Path(__file__).parent / "golden" / "panoptica.json").read_text())
"""Recorded by scripts/make_panoptica_golden.py with panoptica 2.1.7."""


def _theirs(truth: np.ndarray, pred: np.ndarray, spacing_mm: np.ndarray) -> list[float]:
    """NSD at 2 and 4 mm and HD95 by surface-distance, on the masks' box: neither is empty (it fails on those)."""
    used = np.argwhere(truth | pred)
    box = tuple(slice(low, high + 1) for low, high in zip(used.min(axis=0), used.max(axis=0), strict=True))
    distances = surface_distance.compute_surface_distances(truth[box], pred[box], spacing_mm)
    nsd = [surface_distance.compute_surface_dice_at_tolerance(distances, tolerance) for tolerance in (2.0, 4.0)]
    return [*nsd, surface_distance.compute_robust_hausdorff(distances, 95)]


def _compare(truth: np.ndarray, pred: np.ndarray, spacing_mm: np.ndarray) -> CaseResult:
    """The case and each match of it equal surface-distance on the same pair of masks."""
    result = evaluate_case(truth, pred, spacing_mm)
    assert [*result.nsd.values(), result.hd95_mm] == pytest.approx(_theirs(truth, pred, spacing_mm), abs=1e-9)
    truth_labels, pred_labels = lesions_from_mask(truth)[0], lesions_from_mask(pred)[0]
    matches = [row for row in result.lesions if row.fate == "matched"]
    theirs = [
        _theirs(truth_labels == row.lesion.lesion_id, pred_labels == row.partner_id, spacing_mm) for row in matches
    ]
    ours = [[*row.nsd.values(), row.hd95_mm] for row in matches]
    np.testing.assert_allclose(ours, theirs, atol=1e-9, rtol=0)
    means = [*result.matched_nsd.values(), result.matched_hd95_mm]
    np.testing.assert_allclose(means, np.mean(theirs, axis=0), atol=1e-9, rtol=0)
    return result


@pytest.mark.parametrize("seed", range(8))
def test_case_and_matches_equal_surface_distance(seed: int) -> None:
    rng = np.random.default_rng(seed)
    spacing_mm = rng.uniform(0.8, 5.0, 3)
    field = ndimage.gaussian_filter(rng.normal(size=(36, 33, 30)), 2.0)
    noise = ndimage.gaussian_filter(rng.normal(size=field.shape), 1.5)
    level = np.quantile(field, 0.85)
    result = _compare(field > level, field + 0.35 * noise > level, spacing_mm)
    assert result.detection[0.1].tp >= 3


@pytest.mark.parametrize("name", ["pred_nnUNet", "pred_datacentric"])
def test_real_matches_equal_surface_distance(real_data: Path, name: str) -> None:
    folder = real_data / "psma_masks"
    truth, pred = (read_label(folder / f"{file}.nii.gz") for file in ("label_expert", name))
    used = np.argwhere((truth.array | pred.array) > 0)
    box = tuple(slice(low, high + 1) for low, high in zip(used.min(axis=0), used.max(axis=0), strict=True))
    result = _compare(truth.array[box] > 0, pred.array[box] > 0, truth.spacing_mm)
    assert result.detection[0.1].tp > 60


@pytest.mark.parametrize("case", PANOPTICA["cases"])
def test_f1_and_pq_equal_panoptica(case: dict[str, Any]) -> None:
    truth, pred = (painted(PANOPTICA["shape"], case[name]) > 0 for name in ("truth", "pred"))
    found = evaluate_case(truth, pred, PANOPTICA["spacing_mm"], connectivity=26).detection[0.5]
    assert (found.tp, found.fp, found.fn) == (case["tp"], case["fp"], case["fn"])
    assert (found.f1, found.pq) == pytest.approx((case["rq"], case["pq"]), abs=1e-12)


@pytest.mark.parametrize("name", ["pred_nnUNet", "pred_datacentric"])
def test_real_f1_and_pq_equal_panoptica(real_data: Path, name: str) -> None:
    folder = real_data / "psma_masks"
    truth, pred = (read_label(folder / f"{file}.nii.gz") for file in ("label_expert", name))
    found = evaluate_case(truth.array, pred.array, truth.spacing_mm, connectivity=26).detection[0.5]
    theirs = PANOPTICA["psma"][name]
    assert (found.tp, found.fp, found.fn) == (theirs["tp"], theirs["fp"], theirs["fn"])
    assert (found.f1, found.pq) == pytest.approx((theirs["rq"], theirs["pq"]), abs=1e-12)


def test_real_dmax_equals_all_pairs(real_data: Path) -> None:
    truth = read_label(real_data / "psma_masks" / "label_expert.nii.gz")
    coords_mm = np.argwhere(truth.array) @ truth.affine[:3, :3].T
    largest_mm = max(float(cdist(part, coords_mm).max()) for part in np.array_split(coords_mm, 20))
    result = evaluate_case(truth.array, truth.array, truth.spacing_mm, affine=truth.affine)
    assert result.truth.dmax_cm == pytest.approx(largest_mm / 10, rel=1e-12)
