"""Opens a checkpoint for prediction: an export, a published checkpoint, or the folder of an adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from sammed3d_ft.errors import InputError
from sammed3d_ft.model.hub import local_copy
from sammed3d_ft.model.published import PublishedWeights
from sammed3d_ft.model.sam_med3d import SAMMed3D
from sammed3d_ft.model.variants import VARIANTS
from sammed3d_ft.model.weight_fit import PATCH_WEIGHT
from sammed3d_ft.model.weights import published_weights, read_whole_model
from sammed3d_ft.prompted.preprocessing import Preprocessing


@dataclass(frozen=True)
class Pretrained:
    """A model and the settings needed to use it."""

    model: SAMMed3D
    preprocessing: Preprocessing
    accumulate: bool
    """Whether the decoder was trained with all clicks so far, or only with the newest."""
    zoom: bool
    """Whether it was trained and validated with auto-zoom."""
    preset: str | None
    """Name of the published weights whose settings these are; None: those of its metadata, or the defaults."""
    stated: frozenset[str]
    """Which of ``preprocessing`` and ``accumulate_clicks`` its metadata or the preset state; the rest are defaults."""


def open_pretrained(path: str | Path, base: str | Path | None = None) -> Pretrained:
    """The model of a checkpoint, on the CPU, in evaluation mode, float32, with the settings it was trained with.

    Exports state them. Published weights, recognised by name or file name, have presets (`PUBLISHED`). Other weights
    get the defaults: PT, or PT and CT, with the default clipping at the variant's spacing, accumulated clicks and
    auto-zoom.

    Args:
        path: a weights file, an export's folder, the folder of a LoRA adapter, a name, or ``hub:owner/name``.
        base: the weights that an adapter was trained on; only for adapters.

    Raises:
        InputError: no such file, not a complete model, an adapter without its base, or invalid metadata.
    """
    path = local_copy(path)
    preset: PublishedWeights | None = None
    if (path / "adapter_config.json").is_file():
        if base is None:
            raise InputError(f"{path} is a LoRA adapter: also give the weights it was trained on (--base)")
        from sammed3d_ft.model.adapters import load_adapter

        model, metadata = load_adapter(path, base)
    else:
        if base is not None:
            raise InputError(f"{path} is not a LoRA adapter and needs no base weights: omit --base {base}")
        variant, found = read_whole_model(path)
        preset = _preset(path, variant)
        metadata = {**preset_metadata(path, variant), **found.metadata}
        with torch.device("meta"):
            model = SAMMed3D(VARIANTS[variant], in_channels=found.state[PATCH_WEIGHT].shape[1])
        # Copies, because the tensors may be memory-mapped and the file may be replaced while the model is in use.
        state = {name: tensor.to(torch.float32, copy=True) for name, tensor in found.state.items()}
        model.load_state_dict(state, assign=True)
    return Pretrained(
        model.eval(),
        _preprocessing(model, metadata, path),
        _flag(metadata, "accumulate_clicks", path),
        _flag(metadata, "zoom", path),
        None if preset is None else preset.name,
        frozenset({"preprocessing", "accumulate_clicks"} & metadata.keys()),
    )


def preset_metadata(path: str | Path, variant: str) -> dict[str, str]:
    """The settings of published weights as an export states them; empty for other weights."""
    preset = _preset(path, variant)
    if preset is None:
        return {}
    return {
        "preprocessing": preset_preprocessing(preset, ("PT",)).to_json(),
        "accumulate_clicks": str(preset.accumulate).lower(),
    }


def preset_preprocessing(published: PublishedWeights, modalities: tuple[str, ...]) -> Preprocessing:
    """The preprocessing that published weights were trained with, for these modalities."""
    limits = {name: limits for name, limits in published.clip.items() if name in modalities}
    return Preprocessing(modalities, published.spacing_mm, limits)


def _preset(path: str | Path, variant: str) -> PublishedWeights | None:
    published = published_weights(path)
    return published if published is not None and published.variant == variant else None


def _preprocessing(model: SAMMed3D, metadata: Mapping[str, str], path: Path) -> Preprocessing:
    if "preprocessing" not in metadata:
        modalities = ("PT",) if model.in_channels == 1 else ("PT", "CT")
        return Preprocessing(modalities, model.variant.spacing_mm)
    try:
        return Preprocessing.from_json(metadata["preprocessing"])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _flag(metadata: Mapping[str, str], name: str, path: Path) -> bool:
    """A setting of the metadata, true if absent."""
    text = metadata.get(name, "true")
    if text not in ("true", "false"):
        raise InputError(f"{path}: {name} is {text!r} in its metadata; expected true or false")
    return text == "true"
