"""The automatic training task: the U-Net family for the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

import sammed3d_ft
from sammed3d_ft.automatic.config import AutomaticConfig
from sammed3d_ft.automatic.networks import build_network, encoder_variant
from sammed3d_ft.automatic.report import AutomaticScore, score_mask
from sammed3d_ft.automatic.scan_crops import CropSettings, ScanCrops
from sammed3d_ft.automatic.scan_preparation import ScanPreparation
from sammed3d_ft.automatic.scan_store import ScanStore, prepare_scan_of
from sammed3d_ft.automatic.segmenter import FORMAT, AutomaticSegmenter
from sammed3d_ft.dataset.case_images import read_case
from sammed3d_ft.dataset.manifest import Case, Manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.losses.training_loss import TrainingLoss
from sammed3d_ft.model.build import build_model, parameter_count
from sammed3d_ft.model.weight_fit import describe_misfit
from sammed3d_ft.model.weights import load_weights, origin, read_state_dict, save_safetensors
from sammed3d_ft.provenance import case_files, digest, state_hash
from sammed3d_ft.training.task import SplitCases

# Increment this when scans are prepared differently. Older stores are then ignored, not deleted.
_STORE_FORMAT = 1


class AutomaticTask:
    """Network and data of an automatic training run; implements `Task`.

    Args:
        config: config of the run.
        manifest: the run's cases, already checked.

    Raises:
        InputError: weights that do not fit, or no training cases.
    """

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
