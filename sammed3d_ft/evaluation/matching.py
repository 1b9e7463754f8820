"""Matches predicted to ground-truth lesions: overlaps, one-to-one matching, and the fate of unmatched lesions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sammed3d_ft.evaluation.components import Components


@dataclass(frozen=True)
class Overlaps:
    """Every pair of a ground-truth and a predicted lesion that share a voxel. Lesion indices start at 0."""

    truth: np.ndarray
    """(p,) index of the pair's ground-truth lesion."""
    pred: np.ndarray
    """(p,) index of the pair's predicted lesion."""
    shared_voxels: np.ndarray
    """(p,) number of shared voxels."""
    iou: np.ndarray
    """(p,) shared voxels / voxels in the union."""
    n_truth: int
    n_pred: int


def overlaps(truth: Components, pred: Components) -> Overlaps:
    """The overlapping pairs of two sets of lesions on one grid, counted by one bincount."""
    _, in_truth, in_pred = np.intersect1d(truth.voxels, pred.voxels, assume_unique=True, return_indices=True)
    both = (truth.labels[in_truth].astype(np.int64) - 1) * max(pred.count, 1) + (pred.labels[in_pred] - 1)
    table = np.bincount(both, minlength=0)
    cells = np.flatnonzero(table)
    shared = table[cells]
    i, j = np.divmod(cells, max(pred.count, 1))
    return Overlaps(i, j, shared, shared / (truth.sizes[i] + pred.sizes[j] - shared), truth.count, pred.count)


@dataclass(frozen=True)
class Matching:
    """One-to-one matches at an IoU threshold."""

    pred_of_truth: np.ndarray
    """(n_truth,) index of the matched prediction, -1 if unmatched."""
    truth_of_pred: np.ndarray
    """(n_pred,) index of the matched ground-truth lesion, -1 if unmatched."""
    iou: np.ndarray
    """(n_truth,) IoU with the matched prediction, 0 if unmatched."""

    @property
    def tp(self) -> int:
        return int((self.pred_of_truth >= 0).sum())

    @property
    def fp(self) -> int:
        return int((self.truth_of_pred < 0).sum())

    @property
    def fn(self) -> int:
        return int((self.pred_of_truth < 0).sum())


def match(pairs: Overlaps, iou_threshold: float) -> Matching:
    """Match lesions one to one among the pairs with IoU >= threshold.

    The matching has as many pairs as possible and, among those, the largest summed IoU (Hungarian algorithm).
    """
    pred_of_truth = np.full(pairs.n_truth, -1)
    truth_of_pred = np.full(pairs.n_pred, -1)
    iou = np.zeros(pairs.n_truth)
    allowed = np.flatnonzero(pairs.iou >= iou_threshold)
    if len(allowed):
        # Lesions compete only if a chain of allowed pairs connects them, so each connected group is solved alone.
        i, j = pairs.truth[allowed], pairs.pred[allowed]
        nodes = pairs.n_truth + pairs.n_pred
        graph = coo_array((np.ones(len(i)), (i, j + pairs.n_truth)), shape=(nodes, nodes))
        group = connected_components(graph, directed=False)[1][i]
        order = np.argsort(group, kind="stable")
        for members in np.split(allowed[order], np.flatnonzero(np.diff(group[order])) + 1):
            for pair in _best(pairs, members):
                pred_of_truth[pairs.truth[pair]] = pairs.pred[pair]
                truth_of_pred[pairs.pred[pair]] = pairs.truth[pair]
                iou[pairs.truth[pair]] = pairs.iou[pair]
    return Matching(pred_of_truth, truth_of_pred, iou)


def _best(pairs: Overlaps, members: np.ndarray) -> np.ndarray:
    """The pairs chosen among ``members``, the pairs of one group."""
    if len(members) == 1:
        return members
    truths, rows = np.unique(pairs.truth[members], return_inverse=True)
    preds, columns = np.unique(pairs.pred[members], return_inverse=True)
    # One more match outweighs any sum of IoUs, which cannot exceed the number of matches.
    one_match = min(len(truths), len(preds)) + 1.0
    gain = np.zeros((len(truths), len(preds)))
    gain[rows, columns] = one_match + pairs.iou[members]
    chosen = linear_sum_assignment(gain, maximize=True)
    pair_at = np.full(gain.shape, -1)
    pair_at[rows, columns] = members
    picked = pair_at[chosen]
    return picked[picked >= 0]


@dataclass(frozen=True)
class Fates:
    """The fate of every lesion under one matching, with the partner that explains it (-1: none)."""

    truth: list[str]
    truth_partner: np.ndarray
    """(n_truth,) the match; for ``merged`` the prediction that covers it; for ``low_iou`` the best overlap."""
    pred: list[str]
    pred_partner: np.ndarray
    """(n_pred,) the match; for ``fragment`` the lesion it is part of; for ``low_iou`` the best overlap."""
    splits: int
    """Ground-truth lesions that share voxels with two or more predictions."""
    merges: int
    """Predictions that share voxels with two or more ground-truth lesions."""


def fates(pairs: Overlaps, matching: Matching) -> Fates:
    """Classify every unmatched lesion by its best overlap (largest IoU; lower index if equal).

    An unmatched ground-truth lesion is ``missed`` (no overlap), ``merged`` (its best overlap is matched to another
    ground-truth lesion) or ``low_iou``. An unmatched prediction is ``isolated`` (no overlap), ``fragment`` (its best
    overlap is matched to another prediction) or ``low_iou``.
    """
    best_pred = best_overlaps(pairs.truth, pairs.pred, pairs.iou, pairs.n_truth)
    best_truth = best_overlaps(pairs.pred, pairs.truth, pairs.iou, pairs.n_pred)
    return Fates(
        _fates(matching.pred_of_truth, best_pred, matching.truth_of_pred, "missed", "merged"),
        np.where(matching.pred_of_truth >= 0, matching.pred_of_truth, best_pred),
        _fates(matching.truth_of_pred, best_truth, matching.pred_of_truth, "isolated", "fragment"),
        np.where(matching.truth_of_pred >= 0, matching.truth_of_pred, best_truth),
        splits=int((np.bincount(pairs.truth, minlength=1) >= 2).sum()),
        merges=int((np.bincount(pairs.pred, minlength=1) >= 2).sum()),
    )


def _fates(matches: np.ndarray, best: np.ndarray, others: np.ndarray, alone: str, taken: str) -> list[str]:
    """The fate of each lesion of one mask; ``others`` holds the matches of the lesions that ``best`` names."""
    names = np.where(best < 0, alone, np.where(np.append(others, -1)[best] >= 0, taken, "low_iou"))
    fates: list[str] = np.where(matches >= 0, "matched", names).tolist()
    return fates


def best_overlaps(mine: np.ndarray, other: np.ndarray, iou: np.ndarray, count: int) -> np.ndarray:
    """(count,) the largest-IoU partner of each lesion (lower index if equal), -1 without overlap."""
    best = np.full(count, -1)
    order = np.lexsort((-other, iou))  # increasing IoU, so that the last assignment is the best one
    best[mine[order]] = other[order]
    return best
