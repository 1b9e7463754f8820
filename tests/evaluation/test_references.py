"""Surfaces, matching and real masks against independent references."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import ndimage

from prompts.lesions import lesions_from_mask
from sammed3d_ft.evaluation import evaluate_case, surface, surface_elements
from sammed3d_ft.evaluation.components import Components
from sammed3d_ft.evaluation.matching import match, overlaps
from sammed3d_ft.evaluation.surface import SurfaceDistances, hd95_mm, nsd, surface_distances
from sammed3d_ft.evaluation.surface_elements import Surfaces, element_areas_mm2
from sammed3d_ft.images.images import read_label
from tests.support.ellipsoids import painted

GOLDEN: dict[str, Any] = json.loads(Path(__file__).with_name("surface_distance_golden.json").read_text())
"""Measured with surface-distance 0.1."""


def test_areas_of_all_256_cells_equal_surface_distance() -> None:
    areas = element_areas_mm2(np.array(GOLDEN["area_spacing_mm"]))
    np.testing.assert_allclose(areas, GOLDEN["areas_mm2_by_code"], rtol=1e-14, atol=1e-14)


def test_areas_by_hand() -> None:
    areas = element_areas_mm2(np.array([1.0, 2.0, 3.0]))
    assert areas[0] == areas[255] == 0
    # Corners 0..3 (x = 0) inside: a flat cut of one whole face, 2 x 3 mm.
    assert areas[0b00001111] == pytest.approx(6.0)
    # One corner: the triangle between the middles of its three edges, (0.5, 1, 1.5) mm long.
    assert areas[0b00000001] == pytest.approx(np.linalg.norm(np.cross([-0.5, 1, 0], [-0.5, 0, 1.5])) / 2)


@pytest.mark.parametrize("case", GOLDEN["cases"])
def test_nsd_and_hd95_equal_surface_distance(case: dict[str, Any]) -> None:
    truth, pred = (painted(case["shape"], [[*part, 1] for part in case[name]]) > 0 for name in ("truth", "pred"))
    assert (truth.sum(), pred.sum()) == (case["truth_voxels"], case["pred_voxels"])
    result = evaluate_case(truth, pred, case["spacing_mm"])
    assert result.nsd[2.0] == pytest.approx(case["nsd_2mm"], abs=1e-12)
    assert result.nsd[4.0] == pytest.approx(case["nsd_4mm"], abs=1e-12)
    assert result.hd95_mm == pytest.approx(case["hd95_mm"], abs=1e-12)


def _distances(truth: np.ndarray, pred: np.ndarray, spacing_mm: np.ndarray) -> SurfaceDistances:
    (found,) = surface_distances(*(Surfaces.of(np.argwhere(mask)) for mask in (truth, pred)), spacing_mm)
    return found


def _cell_codes(mask: np.ndarray) -> np.ndarray:
    """Code of every cell of a mask by looking at each of its corners; cell (i, j, k) starts at voxel -1."""
    windows = np.lib.stride_tricks.sliding_window_view(np.pad(mask, 1), (2, 2, 2))
    return (windows.reshape(*windows.shape[:3], 8) << np.arange(8)).sum(axis=3).astype(np.uint8)


def _by_distance_transform(cells: np.ndarray, others: np.ndarray, spacing_mm: np.ndarray) -> np.ndarray:
    """Sorted distance of each of the ``cells`` to the nearest of ``others``, both (x, y, z) bool."""
    return np.sort(ndimage.distance_transform_edt(~others, sampling=spacing_mm)[cells])


@pytest.mark.parametrize("cells_at_once", [2**25, 300])
@pytest.mark.parametrize("gap", [0, 40])
def test_distances_equal_a_distance_transform(gap: int, cells_at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of several pairs at once, near and farther apart than what is searched on the grid."""
    for module in (surface, surface_elements):
        monkeypatch.setattr(module, "_CELLS_AT_ONCE", cells_at_once)
    rng = np.random.default_rng(5)
    spacing = np.array([1.3, 2.0, 4.0])
    pairs = []
    for _ in range(5):
        truth, pred = np.zeros((2, 22 + gap, 17, 16), bool)
        truth[:18], pred[4 + gap :] = (ndimage.gaussian_filter(rng.normal(size=(18, 17, 16)), 1.5) > 0.05 for _ in "tp")
        pairs.append((truth, pred))
    surfaces = [
        Surfaces.of(np.concatenate([np.argwhere(mask) for mask in masks]), [mask.sum() for mask in masks])
        for masks in zip(*pairs, strict=True)
    ]
    for (truth, pred), found in zip(pairs, surface_distances(*surfaces, spacing), strict=True):
        borders = [(codes > 0) & (codes < 255) for codes in (_cell_codes(truth), _cell_codes(pred))]
        np.testing.assert_allclose(found.truth_mm, _by_distance_transform(*borders, spacing), atol=1e-12)
        np.testing.assert_allclose(found.pred_mm, _by_distance_transform(*borders[::-1], spacing), atol=1e-12)


def test_surfaces_of_many_masks_and_of_their_union() -> None:
    """Touching masks: each one's cells, those of a selection, and those of the union, in which they have no border."""
    numbers = ndimage.zoom(np.random.default_rng(3).integers(0, 4, (4, 5, 6)), 3, order=0)
    masks = [numbers == number for number in (1, 2, 3)]
    found = Surfaces.of(np.concatenate([np.argwhere(mask) for mask in masks]), [mask.sum() for mask in masks])
    picked = found.pick(np.array([2, 0]))
    for surfaces, expected in ((found, masks), (picked, [masks[2], masks[0]]), (found.union(), [numbers > 0])):
        ends = np.cumsum(surfaces.counts)
        for mask, end, count in zip(expected, ends, surfaces.counts, strict=True):
            codes = _cell_codes(mask)
            cells = np.argwhere((codes > 0) & (codes < 255))
            np.testing.assert_array_equal(surfaces.cells[end - count : end], cells)
            np.testing.assert_array_equal(surfaces.codes[end - count : end], codes[tuple(cells.T)])


def test_tolerance_is_met_exactly_at_awkward_spacings() -> None:
    # 20 steps of 0.1 mm are 2 mm, not a rounding error more.
    truth, pred = np.zeros((40, 3, 3), bool), np.zeros((40, 3, 3), bool)
    truth[13, 1, 1], pred[33, 1, 1] = True, True
    distances = _distances(truth, pred, np.array([0.1, 0.1, 0.1]))
    assert hd95_mm(distances) == 2.0
    assert nsd(distances, 2.0) == 1.0


def _best_by_trying_all(iou: np.ndarray, threshold: float) -> tuple[int, float]:
    """Most pairs, then largest summed IoU, over every one-to-one assignment."""
    rows, columns = iou.shape
    size = max(rows, columns)
    padded = np.zeros((size, size))
    padded[:rows, :columns] = np.where(iou >= threshold, iou, 0)
    best = (0, 0.0)
    for order in itertools.permutations(range(size)):
        chosen = padded[np.arange(size), order]
        best = max(best, (int((chosen > 0).sum()), round(float(chosen.sum()), 12)))
    return best


@pytest.mark.parametrize("seed", range(30))
def test_overlaps_and_matching_equal_trying_everything(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shape = (9, 8, 7)
    # Instance maps of coarse blobs, so that many pairs overlap and compete.
    truth = rng.integers(0, 7, (3, 4, 4)).repeat(3, 0).repeat(2, 1).repeat(2, 2)[:, :, : shape[2]]
    pred = np.roll(rng.integers(0, 6, (3, 4, 4)).repeat(3, 0).repeat(2, 1).repeat(2, 2)[:, :, : shape[2]], 1, 0)
    pairs = overlaps(Components.of(truth, 6), Components.of(pred, 5))
    iou = np.zeros((6, 5))
    for i, j in np.ndindex(6, 5):
        union = ((truth == i + 1) | (pred == j + 1)).sum()
        iou[i, j] = ((truth == i + 1) & (pred == j + 1)).sum() / union if union else 0
    found = np.zeros((6, 5))
    found[pairs.truth, pairs.pred] = pairs.iou
    np.testing.assert_array_equal(found, iou)
    for threshold in (0.05, 0.1, 0.25, 0.5):
        matching = match(pairs, threshold)
        assert (matching.tp, round(float(matching.iou.sum()), 12)) == _best_by_trying_all(iou, threshold)
        matched = np.flatnonzero(matching.pred_of_truth >= 0)
        np.testing.assert_array_equal(matching.truth_of_pred[matching.pred_of_truth[matched]], matched)
        assert (matching.tp + matching.fn, matching.tp + matching.fp) == (6, 5)
        assert (iou[matched, matching.pred_of_truth[matched]] >= threshold).all()


def _plain(truth: np.ndarray, pred: np.ndarray, voxel_ml: float) -> dict[str, float]:
    """The case metrics again, by scipy's labels and plain loops over lesions."""
    structure = ndimage.generate_binary_structure(3, 2)
    truth_labels, n_truth = ndimage.label(truth, structure)
    pred_labels, n_pred = ndimage.label(pred, structure)
    both = (truth & pred).sum()
    pairs: list[tuple[int, int, float]] = []
    fnv, fpv = 0.0, 0.0
    for i in range(1, n_truth + 1):
        lesion = truth_labels == i
        touching = np.setdiff1d(pred_labels[lesion], [0])
        fnv += 0 if len(touching) else lesion.sum() * voxel_ml
        for j in touching:
            other = pred_labels == j
            iou = (lesion & other).sum() / (lesion | other).sum()
            if iou >= 0.5:
                pairs.append((i, j, iou))
    for j in range(1, n_pred + 1):
        lesion = pred_labels == j
        fpv += 0 if truth[lesion].any() else lesion.sum() * voxel_ml
    # Above one half a pair has no rival; at exactly one half (small lesions) it must be looked at.
    tp = len(pairs)
    assert len({i for i, _, _ in pairs}) == len({j for _, j, _ in pairs}) == tp
    return {
        "dice": 2 * both / (truth.sum() + pred.sum()),
        "iou": both / (truth | pred).sum(),
        "fpv_ml": fpv,
        "fnv_ml": fnv,
        "f1_iou0.5": 2 * tp / (n_truth + n_pred),
        "pq_iou0.5": sum(iou for _, _, iou in pairs) / ((n_truth + n_pred) / 2),
        "truth_lesions": n_truth,
        "pred_lesions": n_pred,
    }


@pytest.mark.parametrize(("name", "components"), [("pred_nnUNet", 88), ("pred_datacentric", 98)])
def test_real_psma_predictions(real_data: Path, name: str, components: int) -> None:
    folder = real_data / "psma_masks"
    truth, pred = (read_label(folder / f"{file}.nii.gz") for file in ("label_expert", name))
    row = evaluate_case(truth.array, pred.array, truth.spacing_mm).as_row()
    assert (row["truth_lesions"], row["pred_lesions"]) == (112, components)
    for metric, value in GOLDEN["psma"][name].items():
        assert row[metric] == pytest.approx(value, abs=1e-9)
    box = np.argwhere((truth.array | pred.array) > 0)
    crop = tuple(slice(low, high + 1) for low, high in zip(box.min(axis=0), box.max(axis=0), strict=True))
    plain = _plain(truth.array[crop] > 0, pred.array[crop] > 0, float(np.prod(truth.spacing_mm)) / 1000)
    assert {metric: row[metric] for metric in plain} == pytest.approx(plain, rel=1e-9)


@pytest.mark.parametrize(("connectivity", "expected"), [(18, 112), (26, 111)])
def test_real_psma_lesion_count(real_data: Path, connectivity: int, expected: int) -> None:
    label = read_label(real_data / "psma_masks" / "label_expert.nii.gz").array > 0
    assert lesions_from_mask(label, connectivity)[1] == expected
    assert evaluate_case(label, label, (4, 4, 2), connectivity=connectivity).truth.lesions == expected
