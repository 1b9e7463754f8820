"""What the training loop asks of a task, and what all tasks do alike with their cases."""

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

from prompts.errors import InputError
from sammed3d_ft.data.itk_images import file_hash
from sammed3d_ft.data.manifest import Case, Manifest
from sammed3d_ft.recipes.config import digest

_Score = TypeVar("_Score")


class Task(Protocol):
    """A model with its data, its loss and its scores: everything that differs between kinds of training."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def cases(self) -> SplitCases: ...
    @property
    def starts_trained(self) -> bool:
        """Whether the model can do the task before training; it is then scored first, and may stay the best."""
    @property
    def base_hash(self) -> str:
        """Names the weights that training starts from."""
    @property
    def learning_rates(self) -> dict[str, float]:
        """By parameter-name prefix; the longest that fits wins."""
    @property
    def shown(self) -> Mapping[str, str]:
        """Beside the progress bar: label, and name of the logged value."""

    def lines(self) -> list[str]:
        """What is to be trained, for printing and for ``run.json``."""

    def prepare(self, accelerator: Accelerator) -> None:
        """Whatever is computed once, before the first epoch; all processes together."""

    @property
    def sample_count(self) -> int:
        """Training samples of an epoch; known after `prepare`."""

    def dataset(self, epoch: int) -> Dataset[Any]:
        """The training samples of an epoch. Each is decided by seed, epoch and its index alone."""

    def case_ids(self, batch: dict[str, Any]) -> list[str]:
        """What a batch is made of, for messages."""

    def loss(
        self, model: nn.Module, batch: dict[str, Any], epoch: int, step: int, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch, and scalars to log; those named ``train/max_...`` are maxima, the others means.

        ``model`` is the wrapped one, so that gradients are averaged. ``progress`` is the share of all steps that are
        done; like the rest of the schedule, it follows from the step alone, so that a resumed run continues alike.
        """

    def state(self) -> dict[str, Tensor]:
        """All tensors that training changes; they share memory with the model."""

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Puts back, in place, what `state` gave; `InputError` if it does not fit."""

    def score(self, accelerator: Accelerator, split: str) -> list[Any]:
        """Scores of a split's cases, in their order, on their own grids; the cases are shared among processes."""

    def summary(self, scores: Sequence[Any], split: str) -> dict[str, float]:
        """Means of scores, named ``<split>/...``."""

    def selection(self, summary: Mapping[str, float]) -> float:
        """By which the best model is chosen, from the summary of ``val``; NaN where no case defines it."""

    def validation_line(self, summary: Mapping[str, float]) -> str:
        """The summary of ``val`` in a few words."""

    def write_scores(self, run: Path, split: str, scores: Sequence[Any]) -> None:
        """Writes ``<split>_cases.csv``, and what else replays or explains the scores."""

    def export(self, folder: Path, facts: Mapping[str, Any]) -> Path:
        """Writes ``model.safetensors`` with all that its use must know, ``facts`` among it; returns its path."""

    @staticmethod
    def results(summary: Mapping[str, Any]) -> Table:
        """The final figures of ``summary.json``, as a table."""


@dataclass(frozen=True)
class SplitCases:
    """A manifest's cases by split."""

    train: tuple[Case, ...]
    val: tuple[Case, ...]
    test: tuple[Case, ...]

    @classmethod
    def of(cls, manifest: Manifest) -> SplitCases:
        """`InputError` where a split that training needs is empty."""
        cases = cls(*(manifest.split(name) for name in ("train", "val", "test")))
        for name, found in (("train", cases.train), ("val", cases.val)):
            if not found:
                raise InputError(f"manifest {manifest.path}: no case in split {name!r}; training needs train and val")
        return cases

    @property
    def fingerprint(self) -> str:
        """Names the cases, their splits, their labels, and of their images the sizes."""
        return digest(
            [
                (
                    case.id,
                    case.split,
                    [image.stat().st_size for image in case.images.values()],
                    None if case.label is None else file_hash(case.label),
                )
                for case in (*self.train, *self.val, *self.test)
            ]
        )

    def shared_scores(self, accelerator: Accelerator, split: str, score: Callable[[Case], _Score]) -> list[_Score]:
        """Scores every case of a split, each on one of the processes; all get all, in the cases' order."""
        cases = {"train": self.train, "val": self.val, "test": self.test}[split]
        mine = list(enumerate(cases))[accelerator.process_index :: accelerator.num_processes]
        show = accelerator.is_local_main_process
        scores = [(number, score(case)) for number, case in tqdm(mine, desc=split, disable=not show, leave=False)]
        gathered = gather_object(scores) if accelerator.num_processes > 1 else scores
        return [found for _, found in sorted(gathered, key=lambda pair: pair[0])]


def case_files(case: Case) -> tuple[str, list[list[Any]]]:
    """Names a case's files as they are now, for what is kept on disk of them."""
    paths = [path for path in (*case.images.values(), case.label) if path]
    return case.id, [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in paths]


def mean(values: Sequence[float]) -> float:
    """NaN of nothing."""
    return sum(values) / len(values) if values else float("nan")
