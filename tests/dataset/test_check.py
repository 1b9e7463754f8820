"""The pre-flight check finds each defect, and all of them at once."""

from __future__ import annotations

import gzip
import logging
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sammed3d_ft.dataset.check import check_manifest
from sammed3d_ft.dataset.manifest import Case, Manifest
from sammed3d_ft.errors import InputError

AFFINE = np.diag([4.0, 4, 3, 1])


def save(path: Path, array, affine=AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)
    return path


def suv(seed=0):
    return np.random.default_rng(seed).gamma(2, 1, (12, 10, 8)).astype(np.float32)


def hounsfield():
    return np.random.default_rng(9).uniform(-900, 900, (12, 10, 8)).astype(np.int16)


def two_lesions():
    mask = np.zeros((12, 10, 8), np.uint8)
    mask[1:3, 1:3, 1:3] = 1
    mask[8, 8, 6] = 1
    return mask


@pytest.fixture
def cohort(tmp_path) -> list[Case]:
    """Four valid cases with PET, CT and label: two in train, one in val, one in test."""
    cases = []
    for name, split in (("a", "train"), ("b", "train"), ("c", "val"), ("d", "test")):
        folder = tmp_path / name
        images = {
            "PT": save(folder / "pet.nii.gz", suv()),
            "CT": save(folder / "ct.nii.gz", hounsfield()),
        }
        cases.append(Case(name, images, save(folder / "seg.nii.gz", two_lesions()), split, f"patient {name}"))
    return cases


def check(cases, modalities=("PT",), **options):
    return check_manifest(Manifest(tuple(cases), Path("m.json")), modalities, progress=False, **options)


def found(report, severity):
    return [(problem.case, problem.text) for problem in report.problems if problem.severity == severity]


def only(report, severity="error"):
    """The single finding of a report, as (case, text)."""
    other = "warning" if severity == "error" else "error"
    assert found(report, other) == []
    assert len(found(report, severity)) == 1, found(report, severity)
    return found(report, severity)[0]


def test_a_sound_cohort_has_no_findings_and_is_summarised(cohort):
    report = check(cohort, ("PT", "CT"))
    assert report.problems == ()
    report.raise_if_bad()
    assert [summary.id for summary in report.summaries] == ["a", "b", "c", "d"]
    summary = report.summaries[0]
    assert (summary.split, summary.shape, summary.spacing_mm) == ("train", (12, 10, 8), (4, 4, 3))
    assert summary.lesions == 2
    assert summary.volume_ml == pytest.approx(9 * 48 / 1000)  # 9 voxels of 4 x 4 x 3 mm


def test_connectivity_is_by_which_lesions_are_counted(cohort):
    mask = np.zeros((12, 10, 8), np.uint8)
    mask[1, 1, 1] = mask[2, 2, 1] = mask[3, 3, 2] = 1  # joined by an edge, then by a corner
    save(cohort[0].label, mask)
    assert [check(cohort, connectivity=c).summaries[0].lesions for c in (6, 18, 26)] == [3, 2, 1]


def _missing(case):
    case.images["PT"].unlink()


def _truncated(case):
    case.images["PT"].write_bytes(case.images["PT"].read_bytes()[:-500])


def _no_nifti(case):
    case.label.write_bytes(gzip.compress(b"no header here" * 100))


def _label_of_other_shape(case):
    save(case.label, two_lesions()[:-1])


def _label_elsewhere(case):
    moved = AFFINE.copy()
    moved[0, 3] = 8
    save(case.label, two_lesions(), moved)


def _nan(case):
    values = suv()
    values[0, 0, :3] = np.nan
    save(case.images["PT"], values)


def _nan_in_ct(case):
    values = hounsfield().astype(np.float32)
    values[0, 0, 0] = np.inf
    save(case.images["CT"], values)


def _fractional_label(case):
    save(case.label, two_lesions() * np.float32(0.5))


def _negative_label(case):
    save(case.label, -two_lesions().astype(np.int16))


def _ct_elsewhere(case):
    moved = AFFINE.copy()
    moved[2, 3] = 1000
    save(case.images["CT"], hounsfield(), moved)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_missing, "no such file"),
        (_truncated, "ends too early"),
        (_no_nifti, "label: "),
        (_label_of_other_shape, "not on the grid of the PT: shape 11x10x8 against 12x10x8"),
        (_label_elsewhere, "not on the grid of the PT: shifted by (8.00, 0.00, 0.00) mm, 2.00 voxels"),
        (_nan, "3 NaN"),
        (_nan_in_ct, "CT: "),
        (_fractional_label, "9 voxels hold fractions"),
        (_negative_label, "9 voxels hold a negative label"),
        (_ct_elsewhere, "CT does not overlap the PT"),
    ],
)
def test_each_spoilt_file_is_an_error_of_its_case(cohort, spoil, message):
    spoil(cohort[1])
    case, text = only(check(cohort))
    assert case == "b"
    assert message in text


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": "a"}, "the ID is used 2 times"),
        ({"split": "validation"}, "unknown split 'validation'"),
        ({"group": "patient c"}, "patient patient c is in the splits train and val"),
        ({"label": None}, "has no label, which is required in train"),
        ({"images": {}}, "has no PT"),
    ],
)
def test_each_wrong_entry_is_an_error(cohort, change, message):
    cohort[1] = replace(cohort[1], **change)
    assert message in only(check(cohort))[1]


def test_a_missing_modality_is_an_error_only_when_asked_for(cohort):
    del cohort[3].images["CT"]
    assert check(cohort, ("PT",)).problems == ()
    assert only(check(cohort, ("PT", "CT"))) == ("d", "has no CT")


def test_a_file_used_twice_is_an_error_even_through_a_link(cohort, tmp_path):
    (tmp_path / "link.nii.gz").symlink_to(cohort[0].images["PT"])
    cohort[1].images["PT"] = tmp_path / "link.nii.gz"
    _, text = only(check(cohort))
    assert text.endswith("is used 2 times: PT of a, PT of b")


def test_a_label_on_the_cts_grid_is_reported(cohort):
    fine = np.diag([2.0, 2, 3, 1])
    save(cohort[0].images["CT"], np.repeat(np.repeat(hounsfield(), 2, 0), 2, 1), fine)
    assert check(cohort).problems == ()  # a CT may have its own grid
    save(cohort[0].label, np.repeat(np.repeat(two_lesions(), 2, 0), 2, 1), fine)
    assert "(it is on the grid of the CT)" in only(check(cohort))[1]
    save(cohort[0].images["PT"], suv())
    assert check(cohort[:1], ("CT", "PT")).errors == ()  # with the CT first, the label belongs to it


def test_a_label_in_another_axis_order_is_on_the_same_grid(cohort):
    turned = np.ascontiguousarray(two_lesions()[::-1].transpose(2, 0, 1))
    affine = AFFINE @ np.array([[0, -1, 0, 11], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1.0]])
    save(cohort[0].label, turned, affine)
    assert check(cohort).problems == ()


@pytest.mark.parametrize(
    ("index", "message"),
    [(0, "provides no training target"), (2, "kept: any predicted lesion"), (3, "kept: any predicted lesion")],
)
def test_an_empty_label_is_a_warning(cohort, index, message):
    save(cohort[index].label, np.zeros((12, 10, 8), np.uint8))
    report = check(cohort)
    case, text = only(report, "warning")
    assert case == "abcd"[index]
    assert message in text
    assert report.summaries[index].lesions == 0
    report.raise_if_bad()


@pytest.mark.parametrize(
    ("modality", "values", "message"),
    [
        ("PT", suv() * 5000, "are the values in Bq/ml?"),
        ("PT", hounsfield().astype(np.float32), "is it a CT?"),
        ("PT", np.zeros((12, 10, 8), np.float32), "every voxel is 0"),
        ("CT", suv(3), "is it a PET?"),
    ],
)
def test_implausible_values_are_warnings(cohort, modality, values, message):
    save(cohort[1].images[modality], values)
    case, text = only(check(cohort), "warning")
    assert case == "b"
    assert text.startswith(f"{modality}: ")
    assert message in text


def test_noise_below_zero_is_no_warning(cohort):
    values = suv()
    values[::3] -= 0.5
    save(cohort[1].images["PT"], values)
    assert check(cohort).problems == ()


def test_ambiguous_geometry_is_listed_and_not_logged_too(cohort, caplog):
    image = nib.load(cohort[2].images["PT"])
    header = image.header.copy()
    header.set_sform(AFFINE, 1)
    shifted = AFFINE.copy()
    shifted[0, 3] = 40
    header.set_qform(shifted, 1)
    nib.save(nib.Nifti1Image(suv(), None, header), cohort[2].images["PT"])
    with caplog.at_level(logging.WARNING):
        case, text = only(check(cohort), "warning")
    assert case == "c"
    assert "sform and qform place the corners 10.00 voxels apart" in text
    assert caplog.text == ""


def test_a_ct_that_covers_little_of_the_pet_is_a_warning(cohort):
    save(cohort[0].images["CT"], hounsfield()[:6])
    assert "covers only" in only(check(cohort), "warning")[1]


def test_splits_without_cases_and_cases_without_split_are_warnings(cohort):
    cohort[3] = replace(cohort[3], split=None)
    assert found(check(cohort), "warning") == [
        ("", "no cases in test"),
        ("", "1 cases have no split and will not be used"),
    ]


def test_an_unlabelled_test_case_is_a_warning(cohort):
    cohort[3] = replace(cohort[3], label=None)
    assert only(check(cohort), "warning") == ("d", "has no label: it can be predicted but not scored")


def test_everything_is_listed_at_once(cohort):
    _missing(cohort[0])
    _fractional_label(cohort[0])
    _nan(cohort[1])
    _ct_elsewhere(cohort[2])
    cohort[3] = replace(cohort[3], split="tset", group="patient c")
    report = check(cohort, threads=3)
    assert [case for case, _ in found(report, "error")] == ["d", "", "a", "a", "b", "c"]
    with pytest.raises(InputError) as error:
        report.raise_if_bad()
    line = str(error.value)
    assert line.startswith("m.json: 6 errors: case d: unknown split 'tset'")
    for part in ("no such file", "fractions", "NaN", "does not overlap", "patient patient c"):
        assert part in line


def test_modalities_must_be_known(cohort):
    for modalities in ((), ("MR",), ("PT", "PT")):
        with pytest.raises(InputError, match="expected one or more of"):
            check(cohort, modalities)


def test_real_cohort_is_sound(real_data):
    folder = real_data / "fdg_pet_sarcoma"
    cases = [
        Case(
            f"STS_{i:03}",
            {"PT": path / "PET_image.nii.gz", "CT": path / "CT_image.nii.gz"},
            path / "PET_mask.nii.gz",
            s,
        )
        for i, s in ((1, "train"), (2, "val"), (3, "test"))
        for path in [folder / f"STS_{i:03}"]
    ]
    report = check(cases, ("PT", "CT"))
    assert report.problems == ()
    assert [summary.lesions for summary in report.summaries] == [1, 1, 1]
    cases[0] = replace(cases[0], label=folder / "STS_001" / "CT_mask.nii.gz")
    assert "(it is on the grid of the CT)" in only(check(cases))[1]
