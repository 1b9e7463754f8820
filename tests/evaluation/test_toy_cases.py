"""Toy cases with hand-computed values for every metric."""

from __future__ import annotations

import itertools
import math
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from prompts.lesions import lesions_from_mask
from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation import evaluate_case
from sammed3d_ft.evaluation.results import LESION_COLUMNS, CaseResult, Detection, MaskQuantities

Box = tuple[slice | int, slice | int, slice | int]


def mask(shape: tuple[int, int, int], *boxes: Box) -> np.ndarray:
    out = np.zeros(shape, bool)
    for box in boxes:
        out[box] = True
    return out


def line(length: int, *spans: tuple[int, int]) -> np.ndarray:
    """A volume whose lesions are runs of voxels along x: first and last index of each."""
    return mask((length, 3, 3), *((slice(first, last + 1), 1, 1) for first, last in spans))


def counts(result: CaseResult, threshold: float) -> tuple[int, int, int]:
    detection = result.detection[threshold]
    return detection.tp, detection.fp, detection.fn


def rod_areas(length_mm: float, width_mm: float, height_mm: float) -> tuple[float, float]:
    """Area of one surface element at the end of a rod of single voxels, and of one along its side.

    Voxels are as long as ``length_mm`` along the rod. Of n voxels it has n + 1 planes of 4 elements: the first and the
    last cut off one corner of a cell, a triangle between the middles of three edges; the others an edge, a rectangle.
    """
    edges = np.diag([length_mm, width_mm, height_mm]) / 2
    end = float(np.linalg.norm(np.cross(edges[1] - edges[0], edges[2] - edges[0]))) / 2
    return end, length_mm * math.hypot(width_mm, height_mm) / 2


def truth_fates(result: CaseResult) -> list[tuple[str, int | None]]:
    return [(row.fate, row.partner_id) for row in result.lesions if row.source == "truth"]


def pred_fates(result: CaseResult) -> list[tuple[str, int | None]]:
    return [(row.fate, row.partner_id) for row in result.lesions if row.source == "prediction"]


def test_one_blob_over_all_finds_nothing() -> None:
    # Five truths of 8 voxels under one prediction of 22 x 2 x 2 = 88: each IoU is 8 / 88 < 0.1.
    truth = mask((24, 2, 2), *((slice(x, x + 2), slice(0, 2), slice(0, 2)) for x in (0, 5, 10, 15, 20)))
    result = evaluate_case(truth, mask(truth.shape, (slice(0, 22), slice(0, 2), slice(0, 2))), (10, 10, 10))
    assert result.dice == pytest.approx(80 / 128)
    assert result.iou == pytest.approx(40 / 88)
    for threshold in (0.1, 0.25, 0.5):
        assert counts(result, threshold) == (0, 1, 5)
        assert result.detection[threshold].f1 == 0
    assert (result.fpv_ml, result.fnv_ml) == (0, 0)  # by volume nothing is wrong: every component overlaps
    assert (result.splits, result.merges) == (0, 1)
    assert result.lesion_dice == 0
    assert truth_fates(result) == [("low_iou", 1)] * 5
    assert pred_fates(result) == [("low_iou", 1)]
    without = [result.matched_dice, result.matched_iou, result.matched_hd95_mm, result.matched_volume_error_ml]
    without += [*result.matched_nsd.values(), *(row.hd95_mm for row in result.lesions)]
    without += [value for row in result.lesions for value in row.nsd.values()]
    assert all(math.isnan(value) for value in without)


def test_shredded_lesion_counts_once_and_its_shreds_are_fragments() -> None:
    # 12 voxels cut into 2, 2, 2 and 3: IoU 1/6, 1/6, 1/6 and exactly 1/4. Four further lesions are missed.
    truth = line(40, (0, 11), (20, 20), (24, 24), (28, 28), (32, 32))
    result = evaluate_case(truth, line(40, (0, 1), (3, 4), (6, 7), (9, 11)), (10, 10, 10))
    assert counts(result, 0.1) == counts(result, 0.25) == (1, 3, 4)
    assert counts(result, 0.5) == (0, 4, 5)
    assert result.detection[0.1].f1 == pytest.approx(2 / 9)
    assert result.detection[0.1].precision == pytest.approx(1 / 4)
    assert result.detection[0.1].recall == pytest.approx(1 / 5)
    assert result.lesion_dice == pytest.approx(2 * 3 / (12 + 3) / 5)
    assert (result.splits, result.merges) == (1, 0)
    assert truth_fates(result) == [("matched", 4)] + [("missed", None)] * 4
    assert pred_fates(result) == [("fragment", 1)] * 3
    assert result.fnv_ml == pytest.approx(4.0)
    assert result.lesions[0].volume_error_ml == result.matched_volume_error_ml == pytest.approx(3 - 12)
    assert (result.matched_iou, result.matched_dice) == (pytest.approx(1 / 4), pytest.approx(2 / 5))
    # Truth: planes 0 to 12. Match: planes 9 to 12, all on planes of the truth. A truth's plane k < 9 is (9 - k) cm
    # away: 95 % of its area, 44 side + 8 end, is reached in plane 1.
    end, side = rod_areas(10, 10, 10)
    total = (44 * side + 8 * end) + (8 * side + 8 * end)
    near = pytest.approx(((12 * side + 4 * end) + (8 * side + 8 * end)) / total)
    assert result.lesions[0].nsd == result.matched_nsd == {2.0: near, 4.0: near}
    assert result.lesions[0].hd95_mm == result.matched_hd95_mm == 80


def test_bridged_pair_is_one_find_and_one_named_merger() -> None:
    # Truths of 4 and 4 voxels under a prediction of 10 that bridges them: IoU 0.4 each.
    result = evaluate_case(line(12, (0, 3), (6, 9)), line(12, (0, 9)), (1, 1, 1))
    assert counts(result, 0.1) == counts(result, 0.25) == (1, 0, 1)
    assert counts(result, 0.5) == (0, 1, 2)
    assert result.detection[0.1].f1 == pytest.approx(2 / 3)
    assert result.detection[0.5].pq == 0
    assert (result.splits, result.merges) == (0, 1)
    assert sorted(truth_fates(result)) == [("matched", 1), ("merged", 1)]
    assert pred_fates(result) == []
    # The match has planes 0 to 10, the truth 5 of them at one end; plane k beyond is k mm away, 1 to 6.
    end, side = rod_areas(1, 1, 1)
    total = (12 * side + 8 * end) + (36 * side + 8 * end)
    assert result.matched_nsd[2.0] == pytest.approx(0.75)
    assert result.matched_nsd[4.0] == pytest.approx(((12 * side + 8 * end) + (32 * side + 4 * end)) / total)
    assert result.matched_hd95_mm == 5
    assert (result.matched_iou, result.matched_volume_error_ml) == (pytest.approx(0.4), pytest.approx(0.006))


def test_tiny_lesion_shifted_by_one_voxel_is_found_at_the_headline_threshold() -> None:
    truth = mask((6, 6, 6), (slice(1, 3), slice(1, 3), slice(1, 3)))
    result = evaluate_case(truth, np.roll(truth, 1, axis=0), (2.65, 2.65, 2.65))  # 0.15 ml
    assert result.truth.volume_ml == pytest.approx(0.149, abs=1e-3)
    assert result.iou == pytest.approx(1 / 3)
    assert [result.detection[t].f1 for t in (0.1, 0.25, 0.5)] == [1, 1, 0]
    # Elements of a cube of 2 x 2 x 2 voxels: at its 8 corners, 12 edges and 6 faces. One step on, one whole side and
    # the middle of the opposite side have no element of the other mask in their place; the nearest is a voxel away.
    corner, edge, face = (2.65**2 * share for share in (math.sqrt(3) / 8, math.sqrt(2) / 2, 1.0))
    every, off = 8 * corner + 12 * edge + 6 * face, 4 * corner + 4 * edge + 2 * face
    assert result.matched_nsd == {2.0: pytest.approx(1 - off / every), 4.0: 1}
    assert (result.matched_nsd, result.matched_hd95_mm) == (result.nsd, 2.65)


@pytest.mark.parametrize(("connectivity", "expected"), [(6, (3, 1)), (18, (2, 1)), (26, (1, 1))])
def test_connectivity_decides_what_touches(connectivity: int, expected: tuple[int, int]) -> None:
    # Cubes A and B touch in an edge, B and C in a corner; the prediction is A alone.
    a: Box = (slice(0, 2), slice(0, 2), slice(0, 2))
    b: Box = (slice(2, 4), slice(2, 4), slice(0, 2))
    c: Box = (slice(4, 6), slice(4, 6), slice(2, 4))
    result = evaluate_case(mask((8, 8, 8), a, b, c), mask((8, 8, 8), a), (1, 1, 1), connectivity=connectivity)
    assert (result.truth.lesions, result.pred.lesions) == expected
    assert counts(result, 0.25) == (1, 0, expected[0] - 1)
    best = {6: 1.0, 18: 8 / 16, 26: 8 / 24}[connectivity]
    assert result.lesions[0].iou == pytest.approx(best)
    assert result.lesion_dice == pytest.approx(2 * best / (1 + best) / expected[0])
    assert result.fnv_ml == pytest.approx({6: 0.016, 18: 0.008, 26: 0.0}[connectivity])
    assert result.matched_volume_error_ml == pytest.approx({6: 0.0, 18: -0.008, 26: -0.016}[connectivity])
    assert (result.matched_nsd[2.0] == 1) == (result.matched_hd95_mm == 0) == (connectivity == 6)


def test_lesion_at_the_edge_of_the_volume_is_closed_there() -> None:
    truth = mask((8, 8, 8), (slice(0, 3), slice(0, 3), slice(5, 8)))
    pred = mask((8, 8, 8), (slice(0, 4), slice(0, 3), slice(5, 8)))
    result = evaluate_case(truth, pred, (2, 2, 2))
    inside = evaluate_case(np.pad(truth, 4), np.pad(pred, 4), (2, 2, 2))
    assert result.as_row() == pytest.approx(inside.as_row(), rel=1e-14, nan_ok=True)
    assert result.hd95_mm == 2
    perfect = evaluate_case(truth, truth, (2, 2, 2))
    assert (perfect.dice, perfect.nsd[2.0], perfect.hd95_mm, perfect.detection[0.5].pq) == (1, 1, 0, 1)


def test_anisotropic_spacing() -> None:
    # One voxel against its neighbour along z: of the 8 equal surface elements of each 4 are shared, the
    # others lie one step of z away. Volume of a voxel: 1 x 2 x z mm^3.
    truth, pred = mask((5, 5, 5), (2, 2, 1)), mask((5, 5, 5), (2, 2, 2))
    for z_mm, nsd_4mm in ((5.0, 0.5), (3.0, 1.0)):
        result = evaluate_case(truth, pred, (1.0, 2.0, z_mm))
        assert result.nsd == {2.0: pytest.approx(0.5), 4.0: pytest.approx(nsd_4mm)}
        assert result.hd95_mm == z_mm
        assert (result.dice, result.iou) == (0, 0)
        assert result.fpv_ml == result.fnv_ml == pytest.approx(2 * z_mm / 1000)


def test_matched_lesions_at_anisotropic_spacing() -> None:
    # Two rods of two voxels along z, one step apart: planes 1 to 3 against 2 to 4.
    truth, pred = mask((5, 5, 6), (2, 2, slice(1, 3))), mask((5, 5, 6), (2, 2, slice(2, 4)))
    result = evaluate_case(truth, pred, (1.0, 2.0, 5.0))
    end, side = rod_areas(5, 1, 2)
    near = pytest.approx((8 * side + 8 * end) / (8 * side + 16 * end))
    assert result.matched_nsd == {2.0: near, 4.0: near}
    assert result.matched_hd95_mm == 5
    assert result.matched_iou == pytest.approx(1 / 3)


def test_number_of_matches_goes_before_their_iou() -> None:
    # Prediction 2 is the best partner of truth 1 (8/16), but then truth 2 stays alone; the other way both are
    # found: truth 1 with prediction 1 (1/10), truth 2 with prediction 2 (4/14).
    result = evaluate_case(line(18, (0, 9), (12, 15)), line(18, (0, 0), (2, 15)), (1, 1, 1))
    assert truth_fates(result) == [("matched", 1), ("matched", 2)]
    assert counts(result, 0.1) == (2, 0, 0)
    assert counts(result, 0.25) == counts(result, 0.5) == (1, 1, 1)
    assert result.detection[0.5].pq == pytest.approx(0.5 / (1 + 0.5 + 0.5))
    assert (result.splits, result.merges) == (1, 1)


def test_isolated_prediction_and_false_volumes() -> None:
    result = evaluate_case(line(20, (0, 3), (8, 8)), line(20, (0, 3), (12, 14)), (10, 10, 10))
    assert pred_fates(result) == [("isolated", None)]
    assert (result.fpv_ml, result.fnv_ml) == (pytest.approx(3), pytest.approx(1))
    assert [row.lesion.size_class for row in result.lesions] == ["large", "small", "medium"]


def test_unmatched_lesions_name_their_best_overlap() -> None:
    # 1, 3 and 1 voxels under one prediction of 40: the second has the largest IoU, though all are too low.
    result = evaluate_case(line(40, (0, 0), (10, 12), (30, 30)), line(40, (0, 39)), (1, 1, 1))
    assert truth_fates(result) == [("low_iou", 1)] * 3
    assert pred_fates(result) == [("low_iou", 2)]


PET = np.full((6, 6, 6), 2.0, np.float32)
SOME = mask((6, 6, 6), (slice(1, 3), slice(1, 3), 1))  # 4 voxels of 1 ml
NOTHING = np.zeros((6, 6, 6), bool)
NA = math.nan


@pytest.mark.parametrize(
    ("truth", "pred", "expected"),
    [
        pytest.param(
            NOTHING,
            SOME,
            {
                "overlap": NA,
                "hd95_mm": NA,
                "fpv_ml": 4,
                "fnv_ml": NA,
                "precision": NA,
                "truth": None,
                "pred": 4,
            },
            id="truth empty",
        ),
        pytest.param(
            SOME,
            NOTHING,
            {
                "overlap": 0,
                "hd95_mm": NA,
                "fpv_ml": 0,
                "fnv_ml": 4,
                "precision": NA,
                "truth": 4,
                "pred": None,
            },
            id="prediction empty",
        ),
        pytest.param(
            NOTHING,
            NOTHING,
            {
                "overlap": NA,
                "hd95_mm": NA,
                "fpv_ml": 0,
                "fnv_ml": NA,
                "precision": NA,
                "truth": None,
                "pred": None,
            },
            id="both empty",
        ),
    ],
)
def test_empties_table(truth: np.ndarray, pred: np.ndarray, expected: dict[str, float | None]) -> None:
    row = evaluate_case(truth, pred, (10, 10, 10), PET).as_row()
    overlap = ["dice", "iou", "nsd_2mm", "nsd_4mm", "pq_iou0.5", "lesion_dice", "suvmax_hit_recall"]
    overlap += [f"{name}_iou{t}" for name in ("f1", "recall") for t in (0.1, 0.25, 0.5)]
    assert [row[name] for name in overlap] == pytest.approx([expected["overlap"]] * len(overlap), nan_ok=True)
    for name in ("hd95_mm", "fpv_ml", "fnv_ml"):
        assert row[name] == pytest.approx(expected[name], nan_ok=True)
    assert all(math.isnan(row[f"precision_iou{t}"]) for t in (0.1, 0.25, 0.5))
    assert (row["splits"], row["merges"]) == (0, 0)
    matched = [name for name in row if name.startswith("matched_")]
    assert len(matched) == 6
    assert all(math.isnan(row[name]) for name in matched)
    for which in ("truth", "pred"):
        volume_ml = expected[which]
        full = volume_ml is not None
        assert row[f"{which}_lesions"] == int(full)
        assert row[f"{which}_volume_ml"] == pytest.approx(volume_ml or 0)
        assert row[f"{which}_tla"] == pytest.approx(2 * (volume_ml or 0))
        for name in ("suv_max", "suv_mean", "suv_peak"):
            assert row[f"{which}_{name}"] == pytest.approx(2.0 if full else NA, nan_ok=True)
        assert row[f"{which}_dmax_cm"] == pytest.approx(math.sqrt(2) if full else NA, nan_ok=True)


def test_pet_quantities_of_both_masks() -> None:
    pet = np.ones((10, 4, 4), np.float32)
    pet[2, 1, 1], pet[7, 1, 1] = 9.0, 5.0
    truth, pred = mask(pet.shape, (slice(1, 3), 1, 1), (7, 1, 1)), mask(pet.shape, (slice(1, 3), 1, 1))
    result = evaluate_case(truth, pred, (10, 10, 10), pet)
    assert (result.truth.suv_max, result.truth.suv_mean, result.truth.tla) == (9, 5, 15)
    assert (result.pred.suv_max, result.pred.suv_mean, result.pred.tla) == (9, 5, 10)
    assert result.truth.suv_peak == 9  # at 10 mm the sphere is one voxel
    assert result.truth.dmax_cm == pytest.approx(6)
    assert result.suvmax_hit_recall == 0.5
    without = evaluate_case(truth, pred, (10, 10, 10))
    assert all(math.isnan(v) for v in (without.truth.suv_max, without.truth.tla, without.suvmax_hit_recall))


def test_centroids_are_world_mm_whatever_the_crop() -> None:
    affine = np.array([[2.0, 0, 0, -30], [0, 2, 0, 10], [0, 0, 4, 100], [0, 0, 0, 1]])
    truth = mask((9, 9, 9), (slice(4, 6), 5, 6))
    pet = np.ones(truth.shape, np.float32)
    for pet_or_none in (None, pet):
        lesion = evaluate_case(truth, truth, (2, 2, 4), pet_or_none, affine=affine).lesions[0].lesion
        assert lesion.centroid_mm == (-21.0, 20.0, 124.0)


def test_suv_peak_sees_beyond_the_lesions_box() -> None:
    # The sphere reaches one voxel beyond the lesion; cropping must not cut it (7 voxels at 5 mm).
    pet = np.ones((9, 9, 9), np.float32)
    pet[4, 4, 4] = 15.0
    one = mask(pet.shape, (4, 4, 4))
    assert evaluate_case(one, one, (5, 5, 5), pet).truth.suv_peak == pytest.approx(3.0)


def test_every_column_reads_its_own_quantity() -> None:
    plain = ["dice", "iou", "hd95_mm", "fpv_ml", "fnv_ml", "lesion_dice", "matched_dice", "matched_iou", "splits"]
    plain += ["merges", "matched_hd95_mm", "matched_volume_error_ml", "suvmax_hit_recall"]
    numbers = itertools.count(1)
    changes: dict[str, Any] = {name: next(numbers) for name in plain}
    expected = dict(changes)
    for name in ("nsd", "matched_nsd"):
        changes[name] = {tolerance: next(numbers) for tolerance in (2.0, 4.0)}
        expected |= {f"{name}_{tolerance:g}mm": value for tolerance, value in changes[name].items()}
    for name in ("truth", "pred"):
        quantities = {field.name: next(numbers) for field in fields(MaskQuantities)}
        changes[name] = MaskQuantities(**quantities)
        expected |= {f"{name}_{quantity}": value for quantity, value in quantities.items()}
    changes["detection"] = {0.1: Detection(5, 3, 2), 0.25: Detection(4, 6, 3), 0.5: Detection(1, 7, 9, 0.5)}
    for threshold, tp, fp, fn in ((0.1, 5, 3, 2), (0.25, 4, 6, 3), (0.5, 1, 7, 9)):
        scores = {"tp": tp, "fp": fp, "fn": fn, "precision": tp / (tp + fp), "recall": tp / (tp + fn)}
        scores["f1"] = 2 * tp / (2 * tp + fp + fn)
        expected |= {f"{name}_iou{threshold:g}": value for name, value in scores.items()}
    expected["pq_iou0.5"] = 0.5 / (1 + 7 / 2 + 9 / 2)
    assert replace(evaluate_case(SOME, SOME, (1, 1, 1)), **changes).as_row() == pytest.approx(expected)


def test_lesion_rows_have_exactly_the_documented_columns() -> None:
    result = evaluate_case(SOME, SOME, (1, 1, 1))
    assert tuple(result.lesions[0].as_row()) == LESION_COLUMNS


def test_instance_maps_keep_touching_lesions_apart() -> None:
    # Truth 3 (4 voxels) touches truth 9 (2), which is in two pieces; prediction 5 is half of truth 3, 2 is truth 9.
    truth, pred = np.zeros((12, 3, 3), np.int16), np.zeros((12, 3, 3), np.uint8)
    truth[0:4, 1, 1], truth[4, 1, 1], truth[9, 1, 1] = 3, 9, 9
    pred[0:2, 1, 1], pred[4, 1, 1], pred[9, 1, 1] = 5, 2, 2
    result = evaluate_case(truth, pred, (10, 10, 10), instances=True)
    assert [row.lesion.lesion_id for row in result.lesions] == [3, 9]
    assert truth_fates(result) == [("matched", 5), ("matched", 2)]
    assert [row.iou for row in result.lesions] == [0.5, 1.0]
    assert (result.truth.lesions, result.pred.lesions, result.splits, result.merges) == (2, 2, 0, 0)
    assert result.dice == pytest.approx(2 * 4 / (6 + 4))
    assert result.detection[0.5].pq == pytest.approx(0.75)
    # Rods of 4 and 2 voxels: the truth's planes 3 and 4 are 1 and 2 cm away; truth 9 adds perfect numbers to the means.
    end, side = rod_areas(10, 10, 10)
    nsd = ((4 * end + 8 * side) + (8 * end + 4 * side)) / ((8 * end + 12 * side) + (8 * end + 4 * side))
    assert result.lesions[0].nsd[2.0] == pytest.approx(nsd)
    assert result.matched_nsd[2.0] == pytest.approx((nsd + 1) / 2)
    assert (result.lesions[0].hd95_mm, result.matched_hd95_mm) == (20, 10)
    as_masks = evaluate_case(truth > 0, pred > 0, (10, 10, 10))
    assert (as_masks.truth.lesions, as_masks.pred.lesions, as_masks.merges) == (2, 3, 0)
    assert (as_masks.dice, as_masks.nsd, as_masks.hd95_mm) == (result.dice, result.nsd, result.hd95_mm)


def test_instances_of_components_change_nothing() -> None:
    truth, pred = line(40, (0, 11), (20, 20), (24, 24)), line(40, (0, 1), (3, 4), (9, 11), (30, 33))
    numbers = [lesions_from_mask(one)[0] for one in (truth, pred)]
    pet = np.random.default_rng(0).random(truth.shape).astype(np.float32)
    as_instances = evaluate_case(*numbers, (1, 2, 3), pet, instances=True)
    assert repr(as_instances) == repr(evaluate_case(truth, pred, (1, 2, 3), pet))


def test_confidences_are_the_highest_probability_of_each_prediction() -> None:
    # Predictions 1 and 2 lie in truth 1 (IoU 0.4 and 0.2), 3 in no truth, 4 in truth 3 (0.05: too low); truth 2 is
    # missed.
    truth = line(60, (0, 9), (12, 13), (30, 49))
    pred = line(60, (0, 3), (6, 7), (20, 21), (35, 35))
    probability = np.full(truth.shape, 0.05, np.float32)
    probability[[0, 2, 6, 20, 21, 35], 1, 1] = [0.5, 0.75, 1.0, 0.25, 0.125, 0.625]
    result = evaluate_case(truth, pred, (1, 1, 1), probability=probability)
    assert result.scored is not None
    assert (result.scored.hits, result.scored.false_alarms) == ((0.75,), (0.25, 0.625))
    assert (result.scored.ignored, result.scored.truths, result.scored.case_confidence) == (1, 3, 1.0)
    assert [row.confidence for row in result.lesions] == pytest.approx([0.75, NA, NA, 1.0, 0.25, 0.625], nan_ok=True)
    without = evaluate_case(truth, pred, (1, 1, 1))
    assert without.scored is None
    assert all(math.isnan(row.confidence) for row in without.lesions)


def test_confidences_of_empty_masks() -> None:
    probability = np.zeros(SOME.shape)
    nothing = evaluate_case(SOME, NOTHING, (1, 1, 1), probability=probability).scored
    assert nothing is not None
    assert (nothing.hits, nothing.false_alarms, nothing.truths, nothing.case_confidence) == ((), (), 1, 0.0)


def test_numbers_are_accepted_and_equal_booleans() -> None:
    as_bool = evaluate_case(SOME, NOTHING, (1, 1, 1)).as_row()
    as_numbers = evaluate_case(SOME.astype(np.float32), NOTHING.astype(np.int16), (1, 1, 1)).as_row()
    assert {k: str(v) for k, v in as_bool.items()} == {k: str(v) for k, v in as_numbers.items()}


def test_wrong_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"prediction has shape \(6, 6, 5\)"):
        evaluate_case(SOME, SOME[..., :5], (1, 1, 1))
    with pytest.raises(InputError, match="PET has shape"):
        evaluate_case(SOME, SOME, (1, 1, 1), PET[..., :5])
    with pytest.raises(InputError, match="ground truth is not binary: it contains 2"):
        evaluate_case(SOME * 2, SOME, (1, 1, 1))
    with pytest.raises(InputError, match=r"prediction is not binary: it contains 0\.5"):
        evaluate_case(SOME, SOME * 0.5, (1, 1, 1))
    with pytest.raises(InputError, match="three positive lengths"):
        evaluate_case(SOME, SOME, (1, 1, 0))
    with pytest.raises(InputError, match="connectivity is 8"):
        evaluate_case(SOME, SOME, (1, 1, 1), connectivity=8)
    with pytest.raises(InputError, match="three axes"):
        evaluate_case(SOME[0], SOME[0], (1, 1, 1))
    with pytest.raises(InputError, match="does not match the voxel size of"):
        evaluate_case(SOME, SOME, (1, 1, 1), affine=np.diag([2.0, 1, 1, 1]))
    with pytest.raises(InputError, match=r"PET is not finite at voxel \(1, 1, 1\) inside a lesion"):
        evaluate_case(SOME, SOME, (1, 1, 1), np.full_like(PET, np.nan))
    for value in (1.5, -0.1, np.nan):
        with pytest.raises(InputError, match=rf"probability is {value}"):
            evaluate_case(SOME, SOME, (1, 1, 1), probability=np.full(SOME.shape, value))
    with pytest.raises(InputError, match="probability is 0 throughout predicted lesion 1"):
        evaluate_case(SOME, SOME, (1, 1, 1), probability=np.zeros(SOME.shape))
    with pytest.raises(InputError, match="probability has shape"):
        evaluate_case(SOME, SOME, (1, 1, 1), probability=np.zeros((2, 2, 2)))
    for value in (-2, 1.5, np.inf, np.nan):
        with pytest.raises(InputError, match=f"prediction is not an instance map: it contains {value}"):
            evaluate_case(SOME, np.where(SOME, value, 0), (1, 1, 1), instances=True)
    near = PET.copy()
    near[3, 2, 1] = np.nan
    with pytest.raises(InputError, match="PET contains NaN or infinite values in or near a lesion"):
        evaluate_case(SOME, SOME, (1, 1, 1), near)
