"""The interface between the training loop and a task, and the case handling that all tasks share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from accelerate import Accelerator
from accelerate.utils import gather_object
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from sammed3d_ft.dataset.manifest import Case, Manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.provenance import case_content, digest

_Score = TypeVar("_Score")


class Task(Protocol):
    """A model with its data, loss and scores: what the training loop needs, prompted or automatic."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def cases(self) -> SplitCases: ...
    @property
    def starts_trained(self) -> bool:
        """Whether the model works before training; if so, it is scored first and may remain the best."""

    @property
    def base_hash(self) -> str:
        """Hash of the weights that training starts from."""

    @property
    def learning_rates(self) -> dict[str, float]:
        """Learning rates by parameter-name prefix; the longest matching prefix applies."""

    def lines(self) -> list[str]:
        """Summary of the trainable parameters, printed and stored in ``run.json``."""

    def prepare(self, accelerator: Accelerator) -> None:
        """One-time work before the first epoch; called by all processes together."""

    @property
    def sample_count(self) -> int:
        """Training samples per epoch; known after `prepare`."""

    def datasets(self) -> Callable[[int], Dataset[Any]]:
        """A function that creates the training samples of an epoch; each depends only on seed, epoch and its index.

        Loader processes receive this function, so it must not refer to the model.
        """

    def case_ids(self, batch: dict[str, Any]) -> list[str]:
        """Case IDs in a batch, for error messages."""

    def loss(
        self, model: nn.Module, batch: dict[str, Any], epoch: int, step: int, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, and scalars to log: maxima if named ``train/max_...``, otherwise means.

        ``model`` is the DDP-wrapped model, so that gradients are averaged. ``progress`` is the fraction of steps done;
        it depends only on the step, so that a resumed run continues identically.
        """

    def state(self) -> dict[str, Tensor]:
        """All tensors that training changes; they share memory with the model."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore, in place, the tensors returned by `state`; InputError if they do not fit."""

    def score(self, accelerator: Accelerator, split: str, *, selecting: bool = False) -> list[Any]:
        """Score the cases of a split on their own grids, divided among processes; results are in case order.

        With ``selecting``, only as far as `Report.selection` needs it; without, completely.
        """

    def export(self, folder: Path, facts: Mapping[str, Any]) -> Path:
        """Write ``model.safetensors`` with the metadata that prediction needs, among it ``facts``; return its path."""


class Report(Protocol):
    """What a training reports of a task's scores."""

    @property
    def shown(self) -> Mapping[str, str]:
        """Values shown next to the progress bar: label -> name of the logged value."""

    def summary(self, scores: Sequence[Any], split: str) -> dict[str, float]:
        """Mean scores, named ``<split>/...``."""

    def selection(self, summary: Mapping[str, float]) -> float:
        """The value by which the best model is selected, from the summary of ``val``; NaN if undefined."""

    def validation_line(self, summary: Mapping[str, float]) -> str:
        """The summary of ``val`` in a few words."""

    def write_scores(self, run: Path, split: str, scores: Sequence[Any]) -> None:
        """Write ``<split>_cases.csv`` and the files that reproduce or explain the scores."""

    def results(self, summary: Mapping[str, Any]) -> Table:
        """The final results from ``summary.json``, as a table."""


@dataclass(frozen=True)
class SplitCases:
    """The cases of a manifest by split."""

    train: tuple[Case, ...]
    val: tuple[Case, ...]
    test: tuple[Case, ...]

    @classmethod
    def of(cls, manifest: Manifest) -> SplitCases:
        """Group the cases by split; InputError if the train or val split is empty."""
        cases = cls(*(manifest.split(name) for name in ("train", "val", "test")))
        for name, found in (("train", cases.train), ("val", cases.val)):
            if not found:
                raise InputError(f"manifest {manifest.path}: no cases in split {name!r}; training needs train and val")
        return cases

    @property
    def fingerprint(self) -> str:
        """Digest of case IDs, splits, label contents and image file sizes."""
        cases = [(case, case_content(case)) for case in (*self.train, *self.val, *self.test)]
        return digest([(case.id, case.split, [*of["images"].values()], of["label"]) for case, of in cases])

    def shared_scores(self, accelerator: Accelerator, split: str, score: Callable[[Case], _Score]) -> list[_Score]:
        """Score the cases of a split, divided among the processes; every process gets all scores, in case order."""
        cases = {"train": self.train, "val": self.val, "test": self.test}[split]
        mine = list(enumerate(cases))[accelerator.process_index :: accelerator.num_processes]
        show = accelerator.is_local_main_process
        scores = [(number, score(case)) for number, case in tqdm(mine, desc=split, disable=not show, leave=False)]
        gathered = gather_object(scores) if accelerator.num_processes > 1 else scores
        return [found for _, found in sorted(gathered, key=lambda pair: pair[0])]


def mean(values: Sequence[float]) -> float:
    """Mean of the values; NaN if there are none."""
    return sum(values) / len(values) if values else float("nan")
