"""Assigns cases to train, val and test: by a file of splits, or at random with no patient in two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prompts.errors import InputError
from sammed3d_ft.data.manifest import SPLITS, Case, listing, read_json


def read_splits(path: Path, key: str | None = None, fold: int | None = None) -> dict[str, str]:
    """Split of each case id, from a JSON file.

    Args:
        path: an object with lists of ids under train, val, test; nnU-Net's splits_final.json (a list of
            folds with train and val); or an object of folds, each a list of ids.
        key: the entry to take when the file holds several such things side by side.
        fold: which fold. In an object of folds, that one is val and all others are train.

    Raises:
        InputError: another form, a missing key or fold, or an id in two splits.
    """
    content = read_json(path)
    where = str(path)
    if key is not None:
        if not isinstance(content, dict) or key not in content:
            raise InputError(f"{path}: has no entry {key!r}; it has {_entries(content)}")
        content, where = content[key], f"{path}, {key}"
    if isinstance(content, list):
        content = _fold_of(dict(enumerate(content)), fold, where)
    elif isinstance(content, dict) and not set(content) & set(SPLITS):
        if not all(isinstance(ids, list) for ids in content.values()):
            raise InputError(f"{where}: choose one of its entries {_entries(content)} by --split-key")
        folds = {int(name): ids for name, ids in content.items() if name.isdigit()}
        chosen = _fold_of(folds, fold, where)
        rest = [name for number, ids in folds.items() if number != fold for name in ids]
        content = {"train": rest, "val": chosen}
    if (
        not isinstance(content, dict)
        or not set(content) <= set(SPLITS)
        or not all(isinstance(ids, list) for ids in content.values())
    ):
        raise InputError(f"{where}: expected lists of ids under {', '.join(SPLITS)}, got {_entries(content)}")
    split_of: dict[str, str] = {}
    twice = []
    for split, ids in content.items():
        for name in map(str, ids):
            if split_of.setdefault(name, split) != split:
                twice.append(name)
    if twice:
        raise InputError(f"{where}: {listing(twice, 'id is in two splits', 'ids are in two splits')}")
    return split_of


def _fold_of(folds: dict[int, Any], fold: int | None, where: str) -> Any:
    if fold is None or fold not in folds:
        got = "no --fold was given" if fold is None else f"there is no fold {fold}"
        raise InputError(f"{where}: holds the folds {sorted(folds)}, but {got}")
    return folds[fold]


def _entries(content: Any) -> str:
    return ", ".join(map(repr, content)) if isinstance(content, dict) else type(content).__name__


def assign_splits(cases: Sequence[Case], split_of: dict[str, str]) -> list[Case]:
    """Cases with the splits of `read_splits`.

    A case that is not listed keeps the split of its data set (nnU-Net's imagesTs is test), or stays out.

    Raises:
        InputError: an id that is no case's, listed all at once.
    """
    unknown = sorted(split_of.keys() - {case.id for case in cases})
    if unknown:
        raise InputError(listing(unknown, "id of the splits is no case", "ids of the splits are no cases"))
    return [replace(case, split=split_of.get(case.id, case.split)) for case in cases]


def random_splits(
    cases: Sequence[Case], seed: int = 0, val_fraction: float = 0.15, test_fraction: float = 0.15
) -> list[Case]:
    """Give the cases that have no split yet one, at random, whole patients at a time.

    Further cases of a patient who is in a split already follow. A case without a label goes to test, or stays
    out when its patient is in train or val. Fractions are of the labelled cases to assign; each split asked
    for gets one patient at least. The result depends on ids and seed, not on the order of the cases.

    Raises:
        InputError: fractions that leave nothing for train, too few patients, or a patient whom the data set
            itself has in two splits.
    """
    if min(val_fraction, test_fraction) < 0 or val_fraction + test_fraction >= 1:
        raise InputError(f"fractions val {val_fraction:g} and test {test_fraction:g} leave nothing for train")
    settled: dict[str, str] = {}
    torn = []
    for case in cases:
        if case.split and settled.setdefault(_patient(case), case.split) != case.split:
            torn.append(case.group or case.id)
    if torn:
        raise InputError(
            "the data set has "
            + listing(sorted(set(torn)), "patient in two of its splits", "patients in two of its splits")
        )
    open_cases = [c for c in cases if not c.split and c.label is not None and _patient(c) not in settled]
    members = Counter(map(_patient, open_cases))
    wanted = [(name, f) for name, f in (("test", test_fraction), ("val", val_fraction)) if f > 0]
    if members and len(members) <= len(wanted):
        raise InputError(
            f"{len(members)} patients cannot fill train, {' and '.join(name for name, _ in wanted)}; "
            "give splits in a file"
        )
    patients = sorted(members)
    order = [patients[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    for position, (name, fraction) in enumerate(wanted):
        reserve = len(wanted) - position  # one patient for each split still to fill, train included
        count = 0
        while len(order) > reserve:
            # A patient is taken when that brings the count nearer to the share asked for.
            if count and count + members[order[-1]] / 2 > fraction * len(open_cases):
                break
            patient = order.pop()
            settled[patient] = name
            count += members[patient]
    settled.update(dict.fromkeys(order, "train"))
    return [replace(case, split=case.split or _follow(case, settled)) for case in cases]


def _follow(case: Case, settled: dict[str, str]) -> str | None:
    split = settled.get(_patient(case), "test")
    return None if case.label is None and split != "test" else split


def _patient(case: Case) -> str:
    """The group, or the case itself; the prefix keeps a group and an id of equal spelling apart."""
    return f"group {case.group}" if case.group else f"case {case.id}"
