"""Splits from files and at random: no patient leakage."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sammed3d_ft.dataset.manifest import Case
from sammed3d_ft.dataset.splits import assign_splits, random_splits, read_splits
from sammed3d_ft.errors import InputError


def case(name, group=None, split=None, labelled=True):
    return Case(name, {"PT": Path(f"{name}.nii")}, Path(f"{name}_seg.nii") if labelled else None, split, group)


def splits_file(tmp_path, content):
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(content))
    return path


def test_lists_under_a_key_and_folds_beside_them(tmp_path):
    path = splits_file(
        tmp_path,
        {
            "holdout": {"train": ["a", "b"], "val": ["c"], "test": ["d"]},
            "folds": {"0": ["a"], "1": ["b", "c"], "2": ["d"]},
        },
    )
    assert read_splits(path, "holdout") == {"a": "train", "b": "train", "c": "val", "d": "test"}
    assert read_splits(path, "folds", 1) == {"a": "train", "d": "train", "b": "val", "c": "val"}
    with pytest.raises(InputError, match=r"choose one of its entries 'holdout', 'folds' with --split-key"):
        read_splits(path)
    with pytest.raises(InputError, match="has no entry 'cv'"):
        read_splits(path, "cv")
    with pytest.raises(InputError, match=r"folds \[0, 1, 2\], but there is no fold 3"):
        read_splits(path, "folds", 3)


def test_nnunet_splits_final(tmp_path):
    path = splits_file(tmp_path, [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}])
    assert read_splits(path, fold=1) == {"b": "train", "a": "val"}
    with pytest.raises(InputError, match="no --fold was given"):
        read_splits(path)


def test_splits_file_mistakes(tmp_path):
    with pytest.raises(InputError, match="1 ID is in two splits: a"):
        read_splits(splits_file(tmp_path, {"train": ["a"], "val": ["a"]}))
    with pytest.raises(InputError, match="expected lists of IDs under train, val, test"):
        read_splits(splits_file(tmp_path, {"train": ["a"], "validation": ["b"]}))
    with pytest.raises(InputError, match="2 IDs in the splits match no case: x; y"):
        assign_splits([case("a")], {"a": "train", "x": "val", "y": "val"})


def test_unlisted_cases_keep_what_the_data_set_says():
    cases = assign_splits([case("a"), case("b"), case("c", split="test")], {"a": "val"})
    assert [c.split for c in cases] == ["val", None, "test"]


@settings(max_examples=60, deadline=None)
@given(
    groups=st.lists(st.integers(0, 12), min_size=12, max_size=60),
    seed=st.integers(0, 5),
    backwards=st.booleans(),
)
def test_random_splits_keep_patients_whole_and_ignore_order(groups, seed, backwards):
    cases = [case(f"c{i:02}", f"p{group}") for i, group in enumerate(groups)]
    if len(set(groups)) < 3:
        with pytest.raises(InputError, match="are too few for train"):
            random_splits(cases, seed)
        return
    assigned = random_splits(cases[::-1] if backwards else cases, seed)
    of_patient: dict[str, set] = {}
    for c in assigned:
        of_patient.setdefault(c.group, set()).add(c.split)
    assert all(len(splits) == 1 for splits in of_patient.values())
    assert {c.split for c in assigned} == {"train", "val", "test"}
    assert {c.id: c.split for c in assigned} == {c.id: c.split for c in random_splits(cases, seed)}


def test_random_fractions_and_seed():
    cases = [case(f"c{i:03}") for i in range(200)]
    first = random_splits(cases, 0, 0.2, 0.1)
    assert Counter(c.split for c in first) == {"train": 140, "val": 40, "test": 20}
    assert random_splits(cases, 1, 0.2, 0.1) != first
    assert Counter(c.split for c in random_splits(cases, 0, 0.2, 0)) == {"train": 160, "val": 40}


def test_random_splits_respect_what_is_settled():
    cases = [
        case("known", "p0", "test"),
        case("again", "p0"),  # a patient of the test set stays there
        case("bare", labelled=False),  # without a label, not usable for training
        *[case(f"c{i}", f"p{i}") for i in range(1, 11)],
    ]
    splits = {c.id: c.split for c in random_splits(cases, 0, 0.2, 0)}
    assert splits["known"] == splits["again"] == splits["bare"] == "test"
    assert Counter(splits[f"c{i}"] for i in range(1, 11)) == {"train": 8, "val": 2}


def test_an_unlabelled_case_never_leaks_a_training_patient_into_test():
    cases = [case("p1_a", "p1", "train"), case("p1_b", "p1", labelled=False)]
    assert [c.split for c in random_splits(cases)] == ["train", None]


def test_random_split_mistakes():
    with pytest.raises(InputError, match="leave nothing for train"):
        random_splits([case("a")], 0, 0.5, 0.5)
    with pytest.raises(InputError, match="1 patient in two of its splits: p"):
        random_splits([case("a", "p", "train"), case("b", "p", "test"), case("c")])


def test_real_splits(real_data):
    split_of = read_splits(real_data / "fdg_pet_sarcoma" / "splits.json", "holdout")
    assert Counter(split_of.values()) == {"train": 24, "val": 5, "test": 5}
