"""The automatic training task: the U-Net family for the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from rich.table import Table
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

import sammed3d_ft
from prompts.lesions import lesions_from_mask
from sammed3d_ft.automatic.config import AutomaticConfig
from sammed3d_ft.automatic.networks import build_network, encoder_variant
from sammed3d_ft.automatic.scan_crops import CropSettings, ScanCrops
from sammed3d_ft.automatic.scan_preparation import ScanPreparation
from sammed3d_ft.automatic.scan_store import ScanStore, prepare_scan_of
from sammed3d_ft.automatic.segmenter import FORMAT, AutomaticSegmenter
from sammed3d_ft.dataset.case_images import read_case
from sammed3d_ft.dataset.manifest import Case, Manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.components import Components
from sammed3d_ft.evaluation.matching import match, overlaps
from sammed3d_ft.evaluation.metrics import HEADLINE_IOU
from sammed3d_ft.files import write_csv
from sammed3d_ft.lesions.table import SIZE_CLASSES, size_class
from sammed3d_ft.losses.training_loss import TrainingLoss
from sammed3d_ft.model.build import build_model, parameter_count
from sammed3d_ft.model.weight_fit import describe_misfit
from sammed3d_ft.model.weights import load_weights, origin, read_state_dict, save_safetensors
from sammed3d_ft.provenance import case_files, digest, state_hash
from sammed3d_ft.training.task import SplitCases, mean

# Increment this when scans are prepared differently. Older stores are then ignored, not deleted.
_STORE_FORMAT = 1


@dataclass(frozen=True)
class AutomaticScore:
    """Dice of one case (None if the label is empty), and of each ground-truth lesion with its match."""

    case: str
    dice: float | None
    lesions: tuple[tuple[float, float], ...]
    """Volume in ml, and Dice with the matched predicted lesion (one to one, IoU >= 0.1), 0 if there is none."""


def score_mask(mask: np.ndarray, truth: np.ndarray, voxel_ml: float, *, case: str, connectivity: int) -> AutomaticScore:
    """Score a mask (x, y, z) against the ground truth on the same grid; lesions are matched as in the evaluation."""
    true, found = (Components.of(*lesions_from_mask(m > 0, connectivity)) for m in (truth, mask))
    pairs = overlaps(true, found)
    matched = match(pairs, HEADLINE_IOU)
    shared = int(pairs.shared_voxels.sum())
    dice = 2 * shared / (len(true.voxels) + len(found.voxels)) if true.count else None
    lesions = zip(true.sizes, matched.iou, strict=True)
    return AutomaticScore(case, dice, tuple((float(size) * voxel_ml, 2 * iou / (1 + iou)) for size, iou in lesions))


class AutomaticTask:
    """Network and data of an automatic training run; implements `Task`.

    Args:
        config: config of the run.
        manifest: the run's cases, already checked.

    Raises:
        InputError: weights that do not fit, or no training cases.
    """

    shown: Mapping[str, str] = {"loss": "train/loss", "dice": "train/dice"}
    # The decoder is always new: nothing to score before training.
    starts_trained = False

    def __init__(self, config: AutomaticConfig, manifest: Manifest) -> None:
        self.config = config
        self.cases = SplitCases.of(manifest)
        self.preparation = ScanPreparation(config.data.modalities, config.crops.spacing_mm)
        network, channels = config.network, len(config.data.modalities)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)
            self.model = build_network(network.name, network.size, channels, config.crops.size)
            self.base_hash = state_hash(self.model.state_dict())
            if network.weights not in (None, "random"):
                self.base_hash = self._load_encoder(network.weights)
        self.criterion = TrainingLoss(config.loss.name, config.loss.options, config.loss.warm_start)
        drawing = config.crops.model_dump(exclude={"spacing_mm"})
        self.crops = CropSettings(**drawing, seed=config.run.seed)
        self.store: ScanStore | None = None

    def _load_encoder(self, weights: str) -> str:
        """Load the image encoder of a SAM-Med3D checkpoint; return the hash of the file's tensors."""
        variant = encoder_variant(self.config.network.name, self.config.network.size)
        assert variant is not None
        whole = build_model(variant, in_channels=len(self.config.data.modalities))
        load_weights(whole, weights)
        self.model.get_submodule("encoder").load_state_dict(whole.image_encoder.state_dict())
        return state_hash(read_state_dict(weights).state)

    @property
    def learning_rates(self) -> dict[str, float]:
        """Learning rates by parameter-name prefix."""
        optim = self.config.optim
        return {"": optim.lr, **({} if optim.lr_encoder is None else {"encoder.": optim.lr_encoder})}

    def lines(self) -> list[str]:
        """Summary of the trainable parameters."""
        network = self.config.network
        line = f"{network.name}, size {network.size}: {parameter_count(self.model, trainable=True):,} parameters train"
        return [line if network.weights is None else f"{line}; encoder's weights: {network.weights}"]

    def prepare(self, accelerator: Accelerator) -> None:
        """Resample the training scans; all processes share the work."""
        root = (self.config.cache.dir or self.config.run.dir / "cache") / "scans"
        # Each file is named by its content, so that runs with other folds, networks and losses can share it.
        files = [
            root / f"{case.id}__{digest(_STORE_FORMAT, self.preparation.to_json(), case_files(case))}.safetensors"
            for case in self.cases.train
        ]
        todo = list(zip(files, self.cases.train, strict=True))[accelerator.process_index :: accelerator.num_processes]
        for file, case in tqdm(todo, desc="scans", disable=not accelerator.is_local_main_process, leave=False):
            prepare_scan_of(case, self.preparation, file)
        accelerator.wait_for_everyone()
        self.store = ScanStore(files)
        if not any(len(self.store.lesion_voxels(index)) for index in range(len(self.store))):
            raise InputError(f"no lesion in any of the {len(self.store)} training cases: every label is empty")

    @property
    def sample_count(self) -> int:
        """Crops per epoch."""
        return len(self.cases.train) * self.config.crops.per_case

    def datasets(self) -> Callable[[int], Dataset[Any]]:
        """A function that creates the crops of an epoch."""
        assert self.store is not None
        return partial(ScanCrops, self.store, self.crops)

    def case_ids(self, batch: dict[str, Any]) -> list[str]:
        """Case IDs in a batch, for error messages."""
        return [self.cases.train[index // self.config.crops.per_case].id for index in batch["index"]]

    def loss(
        self, model: nn.Module, batch: dict[str, Any], epoch: int, step: int, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch of crops and values to log, among them the Dice over all crops together."""
        logits, target = model(batch["image"]), batch["target"]
        loss = self.criterion(logits, target, progress)
        with torch.no_grad():
            found = logits > 0
            dice = 2 * (found & target).sum() / (found.sum() + target.sum()).clamp(min=1)
            highest = logits.amax().float().sigmoid()
        return loss, {"train/loss": loss.detach(), "train/dice": dice, "train/max_probability": highest}

    def state(self) -> dict[str, Tensor]:
        """Parameters and the running statistics of batch norm."""
        return self.model.state_dict()

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors returned by `state`."""
        misfit = describe_misfit(state, {name: tensor.shape for name, tensor in self.model.state_dict().items()})
        if misfit is not None:
            raise InputError(f"the trained tensors do not fit {self.config.network.name}: {misfit}")
        self.model.load_state_dict(dict(state))

    def score(self, accelerator: Accelerator, split: str, *, selecting: bool = False) -> list[AutomaticScore]:
        """Score the cases of a split by sliding-window inference, on their own grids, divided among processes.

        The best model is selected by the same scores, so ``selecting`` has no effect.
        """
        # Each process has its own batch-norm statistics. Those of the first are saved, and DistributedDataParallel
        # broadcasts them at the next step.
        for buffer in self.model.buffers():
            buffer.copy_(broadcast(buffer))
        segmenter = AutomaticSegmenter(self.model, self.preparation, self.config.crops.size)

        def score_case(case: Case) -> AutomaticScore:
            images, label = read_case(case, segmenter.modalities)
            return score_mask(
                segmenter.segment(images) > 0,
                label.array,
                float(label.spacing_mm.prod()) / 1000,
                case=case.id,
                connectivity=self.config.data.connectivity,
            )

        return self.cases.shared_scores(accelerator, split, score_case)

    def summary(self, scores: Sequence[AutomaticScore], split: str) -> dict[str, float]:
        """Mean Dice: over cases with lesions, over lesions, and by lesion-size class."""
        lesions = [lesion for score in scores for lesion in score.lesions]
        values = {
            f"{split}/dice": mean([score.dice for score in scores if score.dice is not None]),
            f"{split}/lesion_dice": mean([dice for _, dice in lesions]),
        }
        for name in SIZE_CLASSES:
            members = [dice for volume_ml, dice in lesions if size_class(volume_ml) == name]
            if members:
                values[f"{split}/lesion_dice/{name}"] = mean(members)
        return values

    def selection(self, summary: Mapping[str, float]) -> float:
        """Mean Dice over cases."""
        return summary["val/dice"]

    def validation_line(self, summary: Mapping[str, float]) -> str:
        """Dice over cases and over lesions."""
        return f"validation Dice  {summary['val/dice']:.3f}  of lesions: {summary['val/lesion_dice']:.3f}"

    def write_scores(self, run: Path, split: str, scores: Sequence[AutomaticScore]) -> None:
        """Write ``<split>_cases.csv``: one row per case and one per ground-truth lesion."""
        rows: list[dict[str, Any]] = []
        for score in scores:
            rows.append({"case": score.case, "lesion": "all", "dice": score.dice})
            rows += [
                {"case": score.case, "lesion": number, "volume_ml": volume_ml, "dice": dice}
                for number, (volume_ml, dice) in enumerate(score.lesions, start=1)
            ]
        write_csv(run / f"{split}_cases.csv", ["case", "lesion", "volume_ml", "dice"], rows)

    def export(self, folder: Path, facts: Mapping[str, Any]) -> Path:
        """Write ``model.safetensors`` for `predict`."""
        metadata = {
            "format": FORMAT,
            "network": self.config.network.name,
            "size": self.config.network.size,
            "preparation": self.preparation.to_json(),
            "crop_size": str(self.config.crops.size),
            "loss": self.config.loss.name,
            "base_weights": self.config.network.weights or "random",
            "base_hash": self.base_hash,
            **origin(self.config.network.weights or "random"),
            "version": sammed3d_ft.__version__,
            **{key: str(value) for key, value in facts.items()},
        }
        save_safetensors(folder / "model.safetensors", self.model.state_dict(), metadata)
        return folder / "model.safetensors"

    @staticmethod
    def results(summary: Mapping[str, Any]) -> Table:
        """Dice over cases and over lesions, by split."""
        table = Table(title="Mean Dice on the scans' own grids, without clicks")
        table.add_column("split")
        for name in ("cases", "lesions"):
            table.add_column(name, justify="right")
        for split in ("val", "test"):
            if f"{split}/dice" in summary:
                table.add_row(split, f"{summary[f'{split}/dice']:.3f}", f"{summary[f'{split}/lesion_dice']:.3f}")
        return table
