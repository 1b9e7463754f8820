"""Assign cases to train, val and test: from a split file, or at random without patient leakage."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from sammed3d_ft.dataset.manifest import SPLITS, Case, listing, read_json
from sammed3d_ft.errors import InputError


def read_splits(path: Path, key: str | None = None, fold: int | None = None) -> dict[str, str]:
    """Read the split of each case ID from a JSON file.

    Args:
        path: an object with lists of IDs under train, val, test; nnU-Net's splits_final.json (a list of folds with
            train and val); or an object of folds, each a list of IDs.
        key: the entry to use if the file holds several such contents side by side.
        fold: the fold to use. In an object of folds, this fold is val and all others are train.

    Raises:
        InputError: another format, a missing key or fold, or an ID in two splits.
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
            raise InputError(f"{where}: choose one of its entries {_entries(content)} with --split-key")
        folds = {int(name): ids for name, ids in content.items() if name.isdigit()}
        chosen = _fold_of(folds, fold, where)
        rest = [name for number, ids in folds.items() if number != fold for name in ids]
        content = {"train": rest, "val": chosen}
    if (
        not isinstance(content, dict)
        or not set(content) <= set(SPLITS)
        or not all(isinstance(ids, list) for ids in content.values())
    ):
        raise InputError(f"{where}: expected lists of IDs under {', '.join(SPLITS)}, got {_entries(content)}")
    split_of: dict[str, str] = {}
    twice = []
    for split, ids in content.items():
        for name in map(str, ids):
            if split_of.setdefault(name, split) != split:
                twice.append(name)
    if twice:
        raise InputError(f"{where}: {listing(twice, 'ID is in two splits', 'IDs are in two splits')}")
    return split_of


def _fold_of(folds: dict[int, Any], fold: int | None, where: str) -> Any:
    if fold is None or fold not in folds:
        got = "no --fold was given" if fold is None else f"there is no fold {fold}"
        raise InputError(f"{where}: contains the folds {sorted(folds)}, but {got}")
    return folds[fold]


def _entries(content: Any) -> str:
    return ", ".join(map(repr, content)) if isinstance(content, dict) else type(content).__name__


def assign_splits(cases: Sequence[Case], split_of: dict[str, str]) -> list[Case]:
    """Assign the splits from `read_splits`.

    Unlisted cases keep the split given by the data set (nnU-Net's imagesTs is test), or remain without one.

    Raises:
        InputError: IDs that match no case, all in one message.
    """
    unknown = sorted(split_of.keys() - {case.id for case in cases})
    if unknown:
        raise InputError(listing(unknown, "ID in the splits matches no case", "IDs in the splits match no case"))
    return [replace(case, split=split_of.get(case.id, case.split)) for case in cases]


def random_splits(
    cases: Sequence[Case], seed: int = 0, val_fraction: float = 0.15, test_fraction: float = 0.15
) -> list[Case]:
    """Assign cases without a split at random, keeping each patient's cases together.

    Cases of a patient who already has a split join that split. A case without a label goes to test, or remains unused
    if its patient is in train or val. Fractions refer to the labelled cases to be assigned; each requested split gets
    at least one patient. The result depends on IDs and seed, not on the order of the cases.

    Raises:
        InputError: fractions that leave nothing for train, too few patients, or patient leakage between the splits
            of the data set itself.
    """
    if not (min(val_fraction, test_fraction) >= 0 and val_fraction + test_fraction < 1):  # NaN included
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
            f"{len(members)} patients are too few for train, {' and '.join(name for name, _ in wanted)}; "
            "provide the splits in a file"
        )
    patients = sorted(members)
    order = [patients[i] for i in np.random.default_rng(seed).permutation(len(patients))]
    for position, (name, fraction) in enumerate(wanted):
        reserve = len(wanted) - position  # one patient for each split still to fill, train included
        count = 0
        while len(order) > reserve:
            # Add the patient if this brings the count closer to the requested share.
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
    """The group, or the case itself; the prefix distinguishes a group from an ID with the same spelling."""
    return f"group {case.group}" if case.group else f"case {case.id}"
