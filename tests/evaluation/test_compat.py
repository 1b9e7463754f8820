"""Published scoring rules against plain reimplementations and hand-computed cases."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.compat import COMPAT, compat_columns
from sammed3d_ft.images.images import read_label

SPACING_MM = np.array([2.0, 1.5, 3.0])
VOXEL_ML = 0.009
EDGES, CORNERS = (ndimage.generate_binary_structure(3, rank) for rank in (2, 3))


def line(length: int, *spans: tuple[int, int]) -> np.ndarray:
    out = np.zeros((length, 3, 3), bool)
    for first, last in spans:
        out[first : last + 1, 1, 1] = True
    return out


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth and prediction of a few blobs each, up to the volume's border, and PET."""
    rng = np.random.default_rng(seed)
    field = ndimage.gaussian_filter(rng.normal(size=(24, 22, 20)), 1.3)
    noise = ndimage.gaussian_filter(rng.normal(size=field.shape), 1.3)
    truth, pred = field > np.quantile(field, 0.9), field + 0.5 * noise > np.quantile(field, 0.92)
    return truth, pred, rng.gamma(2.0, 2.0, field.shape)


def false_volume(mine: np.ndarray, other: np.ndarray, voxel_ml: float) -> float:
    """Volume of 18-connected components of one mask that hold no voxel of the other."""
    labels, count = ndimage.label(mine, EDGES)
    alone = [number for number in range(1, count + 1) if not other[labels == number].any()]
    return float(np.isin(labels, alone).sum() * voxel_ml)


def criteria(truth: np.ndarray, pred: np.ndarray, pet: np.ndarray) -> dict[str, tuple[int, int, int]]:
    """C1 to C3 as worded by their authors; a lesion that has been found cannot be found again."""
    truth_labels, n_truth = ndimage.label(truth, EDGES)
    pred_labels, n_pred = ndimage.label(pred, EDGES)
    truth_voxels = np.bincount(truth_labels.ravel())
    c1 = sum(bool(truth[pred_labels == j].any()) for j in range(1, n_pred + 1))
    missed = sum(not pred[truth_labels == i].any() for i in range(1, n_truth + 1))
    counts = {"c1": (c1, n_pred - c1, missed)}
    for name in ("c2", "c3"):
        left = list(range(1, n_truth + 1))
        for j in range(1, n_pred + 1):
            lesion = pred_labels == j
            shared = np.bincount(truth_labels[lesion], minlength=n_truth + 1)
            ious = {
                i: shared[i] / (truth_voxels[i] + lesion.sum() - shared[i]) for i in range(1, n_truth + 1) if shared[i]
            }
            if not ious:
                continue
            best = max(ious, key=lambda i: (ious[i], -i))
            hottest = np.unravel_index(np.argmax(np.where(truth_labels == best, pet, -1)), pet.shape)
            if ious[best] >= 0.5 if name == "c2" else lesion[hottest]:
                left.remove(best)
        tp = n_truth - len(left)
        counts[name] = (tp, n_pred - tp, len(left))
    return counts


@pytest.mark.parametrize("seed", range(12))
def test_l1dfl_equals_its_definition(seed: int) -> None:
    truth, pred, pet = random_case(seed)
    found = compat_columns("l1dfl", truth, pred, SPACING_MM, pet)
    for name, (tp, fp, fn) in criteria(truth, pred, pet).items():
        assert (found[f"l1dfl_tp_{name}"], found[f"l1dfl_fp_{name}"], found[f"l1dfl_fn_{name}"]) == (tp, fp, fn)
        assert found[f"l1dfl_f1_{name}"] == pytest.approx(2 * tp / (2 * tp + fp + fn))
        assert found[f"l1dfl_sensitivity_{name}"] == pytest.approx(tp / (tp + fn))
    assert found["l1dfl_dice"] == pytest.approx(2 * (truth & pred).sum() / (truth.sum() + pred.sum()))
    assert found["l1dfl_fpv_ml"] == pytest.approx(false_volume(pred, truth, VOXEL_ML))
    assert found["l1dfl_fnv_ml"] == pytest.approx(false_volume(truth, pred, VOXEL_ML))


def test_l1dfl_by_hand() -> None:
    hot = np.ones((60, 3, 3))
    hot[30] = 2.0
    five = line(60, *((x, x + 1) for x in range(0, 50, 10)))  # 0, 10, 20, 30, 40
    blob = compat_columns("l1dfl", five, line(60, (0, 45)), SPACING_MM, hot)
    # The blob overlaps all equally: C3 asks for the hottest voxel of the first.
    assert [blob[f"l1dfl_f1_c{c}"] for c in (1, 2, 3)] == pytest.approx([1.0, 0.0, 2 / (2 + 4)])
    shredded = compat_columns(
        "l1dfl", line(60, (26, 40), *((x, x) for x in (0, 5, 10, 15))),
        line(60, (26, 27), (29, 31), (33, 34), (36, 37), (39, 40)), SPACING_MM, hot,
    )  # fmt: skip
    assert [shredded[f"l1dfl_f1_c{c}"] for c in (1, 2, 3)] == pytest.approx([10 / 14, 0.0, 2 / (2 + 4 + 4)])
    assert (shredded["l1dfl_tp_c1"], shredded["l1dfl_fn_c1"], shredded["l1dfl_tp_c3"]) == (5, 4, 1)
    shifted = compat_columns("l1dfl", line(60, (29, 30)), line(60, (30, 31)), SPACING_MM, hot)
    assert [shifted[f"l1dfl_f1_c{c}"] for c in (1, 2, 3)] == [1.0, 0.0, 1.0]
    half = compat_columns("l1dfl", line(60, (28, 31)), line(60, (28, 29)), SPACING_MM, hot)
    assert [half[f"l1dfl_f1_c{c}"] for c in (1, 2, 3)] == [1.0, 1.0, 0.0]  # IoU of exactly one half is enough


@pytest.mark.parametrize("seed", range(6))
def test_autopet_equals_its_rule(seed: int) -> None:
    truth, pred, _ = random_case(seed)
    assert compat_columns("autopet", truth, pred, SPACING_MM) == pytest.approx(
        {
            "autopet_dice": 2 * (truth & pred).sum() / (truth.sum() + pred.sum()),
            "autopet_fpv_ml": false_volume(pred, truth, VOXEL_ML),
            "autopet_fnv_ml": false_volume(truth, pred, VOXEL_ML),
        }
    )


@pytest.mark.parametrize("name", ["pred_nnUNet", "pred_datacentric"])
def test_real_case_by_every_rule(real_data: Path, name: str) -> None:
    folder = real_data / "psma_masks"
    volumes = [read_label(folder / f"{file}.nii.gz") for file in ("label_expert", name)]
    whole = [volume.array > 0 for volume in volumes]
    used = np.argwhere(whole[0] | whole[1])
    box = tuple(slice(max(low - 1, 0), high + 2) for low, high in zip(used.min(axis=0), used.max(axis=0), strict=True))
    truth, pred = (mask[box] for mask in whole)
    spacing = volumes[0].spacing_mm
    pet = np.random.default_rng(0).gamma(2.0, 2.0, whole[0].shape).astype(np.float32)
    columns = {rule: compat_columns(rule, whole[0], whole[1], spacing, pet) for rule in COMPAT}
    voxel_ml = float(np.prod(spacing)) / 1000
    assert columns["autopet"]["autopet_fpv_ml"] == pytest.approx(false_volume(pred, truth, voxel_ml))
    assert columns["autopet"]["autopet_fnv_ml"] == pytest.approx(false_volume(truth, pred, voxel_ml))
    assert columns["deep-psma"]["deep_psma_surface_dice_0mm"] == pytest.approx(contour_dice(truth, pred))
    for criterion, counts in criteria(truth, pred, pet[box]).items():
        found = columns["l1dfl"]
        assert tuple(found[f"l1dfl_{what}_{criterion}"] for what in ("tp", "fp", "fn")) == counts
    expected = lesion_wise(truth, pred, float(np.prod(spacing)))
    assert columns["brats-mets"] == pytest.approx({f"brats_mets_{key}": v for key, v in expected.items()})


def contour_dice(truth: np.ndarray, pred: np.ndarray) -> float:
    """Surface Dice at 0 mm by ITK's contour filter, which DEEP-PSMA uses."""
    contours = []
    for mask in (truth, pred):
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        contours.append(sitk.GetArrayFromImage(sitk.LabelContour(image, False)) > 0)
    return float(2 * (contours[0] & contours[1]).sum() / (contours[0].sum() + contours[1].sum()))


@pytest.mark.parametrize("seed", range(6))
def test_deep_psma_equals_its_rule(seed: int) -> None:
    truth, pred, _ = random_case(seed)  # blobs reach the border of the volume, where there is no contour
    found = compat_columns("deep-psma", truth, pred, SPACING_MM)
    assert found["deep_psma_surface_dice_0mm"] == pytest.approx(contour_dice(truth, pred))
    of_autopet = compat_columns("autopet", truth, pred, SPACING_MM)
    assert [found[f"deep_psma_{what}"] for what in ("dice", "fpv_ml", "fnv_ml")] == list(of_autopet.values())


def lesion_wise(truth: np.ndarray, pred: np.ndarray, voxel_mm3: float) -> dict[str, float]:
    """The rule of BraTS-METS lesion by lesion, on whole arrays."""
    near, count = ndimage.label(ndimage.binary_dilation(truth, EDGES), CORNERS)
    pred_labels, n_pred = ndimage.label(pred, CORNERS)
    dices, found, touched = [], 0, set()
    for number in range(1, count + 1):
        lesion = truth & (near == number)
        touching = np.setdiff1d(pred_labels[near == number], [0])
        touched |= set(touching.tolist())
        if lesion.sum() * voxel_mm3 > 2:
            guess = np.isin(pred_labels, touching)
            dices.append(2 * (lesion & guess).sum() / (lesion.sum() + guess.sum()))
            found += len(touching) > 0
    fp = n_pred - len(touched)
    score = sum(dices) / (len(dices) + fp) if len(dices) + fp else 1.0
    return {"lesion_dice": score, "tp": found, "fp": fp, "fn": len(dices) - found}


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("spacing", [(2.0, 1.5, 3.0), (1.0, 1.0, 1.0)])
def test_brats_mets_equals_its_rule(seed: int, spacing: tuple[float, ...]) -> None:
    truth, pred, _ = random_case(seed)
    rng = np.random.default_rng(seed)
    for mask in (truth, pred):
        mask[tuple(rng.integers(0, side, 12) for side in mask.shape)] = True  # single voxels, some beside a lesion
    expected = lesion_wise(truth, pred, float(np.prod(spacing)))
    found = compat_columns("brats-mets", truth, pred, spacing)
    assert found == pytest.approx({f"brats_mets_{key}": value for key, value in expected.items()})


def test_brats_mets_by_hand() -> None:
    # 0-3 and 6-7 are one lesion by dilation (4 and 5 fill up); the prediction beside 20-22 touches its dilation; 30 is
    # of 1 mm^3 and left out, and the prediction on it is no false positive.
    truth = line(60, (0, 3), (6, 7), (20, 22), (30, 30))
    pred = line(60, (0, 1), (23, 24), (30, 30), (50, 50))
    found = compat_columns("brats-mets", truth, pred, (1, 1, 1))
    assert found == pytest.approx(
        {"brats_mets_lesion_dice": (4 / 8 + 0) / (2 + 1), "brats_mets_tp": 2, "brats_mets_fp": 1, "brats_mets_fn": 0}
    )


NOTHING, SOME = line(20), line(20, (3, 6))


@pytest.mark.parametrize(
    ("truth", "pred", "expected"),
    [
        pytest.param(NOTHING, SOME, [0, 0.036, 0, 0, math.nan, 0.036, math.nan, math.nan, 0], id="truth empty"),
        pytest.param(SOME, NOTHING, [0, 0, 0.036, 0, 0, 0, 0.036, 0, 0], id="prediction empty"),
        pytest.param(NOTHING, NOTHING, [math.nan, 0, 0, math.nan, math.nan, 0, math.nan, math.nan, 1], id="both empty"),
    ],
)
def test_empty_masks(truth: np.ndarray, pred: np.ndarray, expected: list[float]) -> None:
    pet = np.ones(truth.shape)
    columns: dict[str, float] = {}
    for rule in COMPAT:
        columns |= compat_columns(rule, truth, pred, SPACING_MM, pet)
    names = ["l1dfl_dice", "l1dfl_fpv_ml", "l1dfl_fnv_ml", "l1dfl_f1_c1"]
    names += [
        "autopet_dice",
        "autopet_fpv_ml",
        "autopet_fnv_ml",
        "deep_psma_surface_dice_0mm",
        "brats_mets_lesion_dice",
    ]
    assert [columns[name] for name in names] == pytest.approx(expected, nan_ok=True)
    assert columns["l1dfl_tp_c3"] == 0


def test_without_pet_only_c3_is_not_defined() -> None:
    columns = compat_columns("l1dfl", SOME, SOME, SPACING_MM)
    assert {name for name, value in columns.items() if math.isnan(value)} == {
        f"l1dfl_{what}_c3" for what in ("tp", "fp", "fn", "sensitivity", "f1")
    }
    assert list(columns) == list(compat_columns("l1dfl", SOME, SOME, SPACING_MM, np.ones(SOME.shape)))


def test_wrong_input_is_refused_and_every_rule_names_its_source() -> None:
    rules = "l1dfl, autopet, deep-psma, brats-mets"
    with pytest.raises(InputError, match=f"unknown scoring rule 'autopet3'; expected one of {rules}"):
        compat_columns("autopet3", SOME, SOME, SPACING_MM)
    with pytest.raises(InputError, match="prediction has shape"):
        compat_columns("autopet", SOME, SOME[:3], SPACING_MM)
    with pytest.raises(InputError, match="PET has shape"):
        compat_columns("l1dfl", SOME, SOME, SPACING_MM, np.ones((2, 2, 2)))
    assert all("\n" not in rule.convention and rule.source for rule in COMPAT.values())
