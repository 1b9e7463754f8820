"""The prompted training task: SAM-Med3D for the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, Dataset
from tqdm import tqdm

import sammed3d_ft
from prompts.corrections import next_click
from prompts.randomness import uniforms
from sammed3d_ft.dataset.manifest import Case, Manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.losses.training_loss import TrainingLoss
from sammed3d_ft.model.adapters import (
    configure_tuning,
    load_trainable_state,
    merged_state,
    save_adapter,
    trainable_state,
)
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.published import PublishedWeights, click_mode
from sammed3d_ft.model.variants import VARIANTS
from sammed3d_ft.model.weights import load_weights, origin, published_weights, read_state_dict, save_safetensors
from sammed3d_ft.prompted.augment import AugmentationRanges
from sammed3d_ft.prompted.config import SELECTED_BY, PromptedConfig
from sammed3d_ft.prompted.embedding_cache import CachedSamples, EmbeddingCache
from sammed3d_ft.prompted.lesion_store import LesionStore, open_store, prepare_case, stored_name
from sammed3d_ft.prompted.predictor import Predictor
from sammed3d_ft.prompted.preprocessing import Preprocessing
from sammed3d_ft.prompted.pretrained import preset_preprocessing
from sammed3d_ft.prompted.promptable_shapes import ShapeSamples
from sammed3d_ft.prompted.samples import LesionSamples, SampleSettings
from sammed3d_ft.prompted.simulated_user import CaseScore, simulate_files
from sammed3d_ft.provenance import case_files, digest, state_hash
from sammed3d_ft.training.batches import loader_workers
from sammed3d_ft.training.task import SplitCases

# Increase this when crops, augmentation or clicks are drawn differently. Older embeddings are then left alone.
_CACHE_FORMAT = 2


class PromptedTask:
    """Model and data of a prompted training run; implements `Task`.

    Args:
        config: config of the run.
        manifest: the run's cases, already checked.

    Raises:
        InputError: weights that do not fit, no training cases, or contradictory settings.
    """

    def __init__(self, config: PromptedConfig, manifest: Manifest) -> None:
        self.config = config
        self.cases = SplitCases.of(manifest)
        if config.data.shapes and (config.tune.method == "decoder" or config.data.modalities != ("PT",)):
            raise InputError(
                f"data.shapes {config.data.shapes}: generic shapes are PET-like and different in every epoch, so they "
                f"require data.modalities [PT] and tune.method full or lora"
            )
        published = published_weights(config.model.weights)
        preset = Preprocessing(config.data.modalities, VARIANTS[config.model.variant].spacing_mm)
        if published is not None:
            preset = preset_preprocessing(published, config.data.modalities)
        limits = {name: None if given == "none" else given for name, given in config.data.clip.items()}
        self.preprocessing = Preprocessing(
            config.data.modalities, config.model.spacing_mm or preset.spacing_mm, {**preset.clip, **limits}
        )
        self._start = [] if published is None else self._preset_lines(published)
        self.model = seeded_model(config.model.variant, config.run.seed, in_channels=len(config.data.modalities))
        if config.model.weights == "random":
            self.base_hash = state_hash(self.model.state_dict())
        else:
            load_weights(self.model, config.model.weights)
            # Hash of the tensors in the file, because an adapter's base is later checked against this file.
            self.base_hash = state_hash(read_state_dict(config.model.weights).state)
        self.tuning = configure_tuning(
            self.model,
            config.tune.method,
            lora_rank=config.tune.lora_rank,
            lora_alpha=config.tune.lora_alpha,
            lora_dropout=config.tune.lora_dropout,
        )
        self.criterion = TrainingLoss(config.loss.name, config.loss.options, config.loss.warm_start)
        self.cached = config.tune.method == "decoder"
        self.samples = SampleSettings(
            crop_size=self.model.image_size,
            logits_size=self.model.variant.logits_size,
            spacing_mm=self.preprocessing.spacing_mm,
            first_click=config.clicks.first,
            ranges=AugmentationRanges(**config.augment.model_dump()),
            seed=config.run.seed,
            zoom=config.model.zoom,
            ambiguous=config.clicks.ambiguous,
            start_masks=config.clicks.start_masks,
        )
        self.store: LesionStore | None = None
        self.cache: EmbeddingCache | None = None

    @property
    def starts_trained(self) -> bool:
        """Whether the initial weights are a candidate for the best model: not if they are random."""
        return self.config.model.weights != "random"

    def lines(self) -> list[str]:
        """Summary of the trainable parameters, and of published weights that training starts from."""
        return [*self.tuning.lines(), *self._start]

    def _preset_lines(self, published: PublishedWeights) -> list[str]:
        """What the weights were trained with, and the settings of this run where they differ."""
        modalities = tuple(name for name in self.preprocessing.modalities if name in published.clip)
        preset = preset_preprocessing(published, modalities or tuple(published.clip))
        trained = f"{preset}, {click_mode(published.accumulate)}"
        here = f"{self.preprocessing}, {click_mode(self.config.clicks.accumulate)}"
        lines = [f"base weights {published.name}, licence: {published.licence}", f"  trained with {trained}"]
        return lines if here == trained else [*lines, f"  fine-tuned here with {here}"]

    def state(self) -> dict[str, Tensor]:
        """The trainable parameters; checkpoints do not repeat frozen weights."""
        return trainable_state(self.model)

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore the tensors returned by `state`."""
        load_trainable_state(self.model, state)

    @property
    def learning_rates(self) -> dict[str, float]:
        """Learning rates by parameter-name prefix."""
        return {"": self.config.optim.lr_decoder, "image_encoder.": self.config.optim.lr_encoder}

    def prepare(self, accelerator: Accelerator) -> None:
        """Prepare the lesion store and, with a frozen encoder, the embeddings; all processes share the work."""
        root = self.config.cache.dir or self.config.run.dir / "cache"
        rank, world = accelerator.process_index, accelerator.num_processes
        data, show = self.config.data, not accelerator.is_local_main_process
        for case in tqdm(self.cases.train[rank::world], desc="lesions", disable=show, leave=False):
            prepare_case(
                root / "lesions", case, self.preprocessing, connectivity=data.connectivity, targets=data.targets
            )
        accelerator.wait_for_everyone()
        names = [stored_name(case, self.preprocessing, data.connectivity, data.targets) for case in self.cases.train]
        self.store = open_store(root / "lesions", names)
        if self.cached:
            self._build_cache(accelerator, root)

    def _build_cache(self, accelerator: Accelerator, root: Path) -> None:
        assert self.store is not None
        settings = self.config.cache
        encoder = self.model.image_encoder.to(accelerator.device).eval()
        weights = state_hash(encoder.state_dict())
        content = digest(
            _CACHE_FORMAT,
            self.preprocessing.to_json(),
            self.config.data.targets,
            self.config.data.connectivity,
            [case_files(case) for case in self.cases.train],
        )
        draw = [asdict(self.samples), settings.batch_size]
        self.cache = EmbeddingCache(
            root / f"embeddings_{digest(content, weights, draw)}", self.store, self.samples, settings.views
        )
        rank, world = accelerator.process_index, accelerator.num_processes

        @torch.inference_mode()
        def encode(image: Tensor) -> Tensor:
            return encoder(image.to(accelerator.device))

        total = len(self.cache.missing(rank, world))
        with tqdm(
            total=total,
            desc="embeddings",
            disable=not (total and accelerator.is_local_main_process),
            leave=False,
        ) as bar:
            for written in self.cache.build(
                encode, settings.batch_size, rank, world, loader_workers(self.config.data.workers, accelerator.device)
            ):
                bar.update(written)
        accelerator.wait_for_everyone()

    @property
    def sample_count(self) -> int:
        """Training samples per epoch: lesions, then generic shapes."""
        assert self.store is not None
        return len(self.store) * self.config.data.repeats + self.config.data.shapes

    def datasets(self) -> Callable[[int], Dataset[Any]]:
        """A function that creates the training samples of an epoch."""
        assert self.store is not None
        if self.cache is not None:
            return partial(CachedSamples, self.cache, repeats=self.config.data.repeats)
        lesions = partial(LesionSamples, self.store, self.samples, repeats=self.config.data.repeats)
        if not self.config.data.shapes:
            return lesions
        first_shape = self.sample_count - self.config.data.shapes
        shapes = partial(ShapeSamples, self.config.data.shapes, self.samples, first_index=first_shape)
        return partial(_joined, lesions, shapes)

    def case_ids(self, batch: dict[str, Any]) -> list[str]:
        """Lesion IDs in a batch, for error messages."""
        assert self.store is not None
        lesions, shown = self.store.entries, len(self.store) * self.config.data.repeats
        return [
            lesions[index % len(lesions)].id if index < shown else f"shape {index - shown}" for index in batch["index"]
        ]

    def loss(
        self, model: nn.Module, batch: dict[str, Any], epoch: int, step: int, progress: float
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of a batch and values to log; see `Task.loss`."""
        seed, indices = self.config.run.seed, batch["index"]

        def correct(prediction: Tensor, target: Tensor, number: int) -> tuple[Tensor, Tensor]:
            keys = [(seed, epoch, index, number) for index in indices]
            return next_click(prediction, target, strategy=self.config.clicks.next, keys=keys)

        output = model(
            batch["target"],
            (batch["coords_vox"], batch["label"]),
            correct,
            partial(self.criterion, progress=progress),
            rounds=self._rounds_with_gradient(step),
            image=batch.get("image"),
            embedding=batch.get("embedding"),
            start=batch["start"],
            iou_weight=self.config.loss.iou_weight,
            accumulate=self.config.clicks.accumulate,
        )
        return output.loss, {
            "train/loss": output.loss.detach(),
            "train/mask_loss": output.mask_losses.mean(),
            "train/iou_loss": output.iou_losses.mean(),
            "train/dice_first": output.dice[0].mean(),
            "train/dice_last": output.dice[-1].mean(),
            "train/max_probability": output.max_probability.max(),
        }

    def _rounds_with_gradient(self, step: int) -> list[int]:
        """Round 1 and a random selection of later rounds, the same on every process."""
        clicks = self.config.clicks
        later = np.arange(2, clicks.rounds + 1)
        if clicks.gradient_rounds is not None:
            order = np.argsort(uniforms((self.config.run.seed, step, "rounds"), len(later)), kind="stable")
            later = np.sort(later[order[: clicks.gradient_rounds - 1]])
        return [1, *later.tolist()]

    def score(self, accelerator: Accelerator, split: str, *, selecting: bool = False) -> list[CaseScore]:
        """Score the cases of a split with simulated clicks, on their own grids, divided among processes.

        With ``selecting``, the user stops at the last number of clicks that the best model is selected by.
        """
        clicks_at = [k for k in self.config.validate_.clicks if not selecting or k <= max(SELECTED_BY)]
        predictor = Predictor(
            self.model,
            self.preprocessing,
            device=accelerator.device,
            accumulate=self.config.clicks.accumulate,
            zoom=self.config.model.zoom,
        )

        def score_case(case: Case) -> CaseScore:
            return simulate_files(
                predictor,
                case,
                clicks_at,
                connectivity=self.config.data.connectivity,
                targets=self.config.data.targets,
            )

        return self.cases.shared_scores(accelerator, split, score_case)

    def export(self, folder: Path, facts: Mapping[str, Any]) -> Path:
        """Write ``model.safetensors`` for `predict`; with LoRA also the adapter."""
        metadata = {
            "format": "sammed3d_ft export 1",
            "variant": self.config.model.variant,
            "in_channels": str(self.model.in_channels),
            "preprocessing": self.preprocessing.to_json(),
            "crop_rule": "centred on the lesion's first click",
            "accumulate_clicks": str(self.config.clicks.accumulate).lower(),
            "zoom": str(self.config.model.zoom).lower(),
            "method": self.config.tune.method,
            "base_weights": self.config.model.weights,
            "base_hash": self.base_hash,
            **origin(self.config.model.weights),
            "version": sammed3d_ft.__version__,
            **{key: str(value) for key, value in facts.items()},
        }
        save_safetensors(folder / "model.safetensors", merged_state(self.model), metadata)
        if self.config.tune.method == "lora":
            save_adapter(self.tuning, self.model, folder / "adapter", metadata)
            if self.config.model.weights == "random":  # an adapter is useless without its base
                base = seeded_model(self.config.model.variant, self.config.run.seed, self.model.in_channels)
                save_safetensors(folder.parent / "base.safetensors", base.state_dict(), {"format": "random weights"})
        return folder / "model.safetensors"


def _joined(lesions: Callable[[int], Dataset[Any]], shapes: Callable[[int], Dataset[Any]], epoch: int) -> Dataset[Any]:
    return ConcatDataset([lesions(epoch), shapes(epoch)])
