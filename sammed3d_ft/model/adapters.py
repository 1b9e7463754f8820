"""Tuning methods: which parameters of SAM-Med3D are trained, and LoRA adapters. The only module that imports peft."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sammed3d_ft.errors import InputError
from sammed3d_ft.model.build import build_model, parameter_count
from sammed3d_ft.model.sam_med3d import SAMMed3D
from sammed3d_ft.model.weights import read_state_dict, read_whole_model, save_safetensors
from sammed3d_ft.provenance import state_hash

# Only the blocks' attention: the bare names qkv and proj would also match patch_embed.proj.
LORA_TARGETS = r"image_encoder\.blocks\.\d+\.attn\.(qkv|proj)"
_PATCH_EMBEDDING = "image_encoder.patch_embed.proj"
# These get no gradient in the click loop: mask heads 1 to 3 (the loop uses mask 0) and the "no mask" embedding (the
# loop always feeds a mask). If trainable, weight decay alone would change them, and DDP would wait for their gradients.
_NEVER_TRAINED = re.compile(r"mask_decoder\.output_hypernetworks_mlps\.[1-9]\d*\..*|prompt_encoder\.no_mask_embed\..*")
_METHODS = ("decoder", "lora", "full")
_PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
_ADAPTER = "default"  # peft's name of a model's first adapter
_CONFIG_FILE, _LORA_FILE, _DECODER_FILE = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "decoder.safetensors",
)


@dataclass(frozen=True)
class TuningReport:
    """What `configure_tuning` did.

    Attributes:
        method: "decoder", "lora" or "full".
        trainable, total: parameter counts, both including LoRA.
        parts: (trainable, total) for the image encoder, prompt encoder and mask decoder.
        adapted: names of the modules with a LoRA adapter.
        peft_model: peft's wrapper of the model, needed by `save_adapter`; None without LoRA.
    """

    method: str
    trainable: int
    total: int
    parts: dict[str, tuple[int, int]]
    adapted: tuple[str, ...] = ()
    peft_model: Any = field(default=None, repr=False, compare=False)

    def lines(self) -> list[str]:
        """A printable summary: total, parts and adapters, one line each."""
        summary = [f"tuning {self.method}: {_share(self.trainable, self.total)} parameters are trainable"]
        summary += [f"  {part}: {_share(*counts)}" for part, counts in self.parts.items()]
        if self.adapted:
            summary.append(f"  LoRA on {len(self.adapted)} modules, {self.adapted[0]} to {self.adapted[-1]}")
        return summary


def configure_tuning(
    model: SAMMed3D,
    method: str,
    *,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
) -> TuningReport:
    """Freeze and adapt a model in place.

    Args:
        model: a model without adapters.
        method: ``decoder`` (the image encoder is frozen), ``lora`` (low-rank adapters, Hu et al. 2021, on the
            query-key-value and output projections of every encoder block; the prompt encoder, the mask decoder
            and, with two input channels, the patch embedding are trained in full) or ``full``.
        lora_rank, lora_alpha, lora_dropout: adapter settings; the update is scaled by alpha / rank. Adapter
            weights are drawn from torch's global generator.

    Mask heads 1 to 3 and the "no mask" embedding, which the click loop does not use, are always frozen.

    Raises:
        InputError: unknown method, rank below 1, dropout outside [0, 1), `decoder` with two input channels,
            a model that already has adapters, or no module to adapt.
    """
    if method not in _METHODS:
        raise InputError(f"unknown tuning method {method!r}: expected one of {', '.join(_METHODS)}")
    if _lora_layers(model):
        raise InputError("the model already has LoRA adapters: build a new model, or merge them first")
    if method == "decoder" and model.in_channels != 1:
        raise InputError(
            f"tuning method decoder does not support {model.in_channels} input channels: the patch embedding of "
            "the second channel would stay zero, leaving the channel unused; use full or lora, or one channel"
        )
    peft_model = _adapt(model, lora_rank, lora_alpha, lora_dropout) if method == "lora" else None
    if peft_model is None:
        model.requires_grad_(True)
        model.image_encoder.requires_grad_(method == "full")
    for name, parameter in model.named_parameters():
        if _NEVER_TRAINED.fullmatch(name):
            parameter.requires_grad_(False)
    return TuningReport(
        method=method,
        trainable=parameter_count(model, trainable=True),
        total=parameter_count(model),
        parts={
            part: (
                parameter_count(model.get_submodule(part), trainable=True),
                parameter_count(model.get_submodule(part)),
            )
            for part in _PARTS
        },
        adapted=tuple(_lora_layers(model)),
        peft_model=peft_model,
    )


def trainable_state(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name; they share memory with the model."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def load_trainable_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Restore, in place, the `trainable_state` of a model with the same tuning.

    Raises:
        InputError: names or shapes differ from those of the trainable parameters.
    """
    own = trainable_state(model)
    _require_fit("the trained parameters", state, own)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Complete state dict under the published names, with LoRA merged into the weights; the model is unchanged.

    Tensors without an adapter share memory with the model.
    """
    adapted = _lora_layers(model)
    merged: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        module, _, leaf = name.partition(".base_layer.")
        if leaf:
            if leaf == "weight":
                with torch.no_grad():
                    tensor = tensor + adapted[module].get_delta_weight(_ADAPTER).to(tensor.dtype)
            merged[f"{module}.{leaf}"] = tensor
        elif f".modules_to_save.{_ADAPTER}." in name:
            merged[name.replace(f".modules_to_save.{_ADAPTER}.", ".")] = tensor
        elif ".lora_" not in name and ".original_module." not in name:
            merged[name] = tensor
    return merged


def save_adapter(report: TuningReport, model: SAMMed3D, folder: str | Path, metadata: Mapping[str, str]) -> None:
    """Write a LoRA-tuned model without its base weights.

    The folder is written atomically and replaces an existing adapter. It holds ``adapter_config.json`` and
    ``adapter_model.safetensors``, readable by peft, and ``decoder.safetensors``: the trained prompt encoder and
    mask decoder, with the metadata.

    Args:
        report: result of `configure_tuning` with ``lora``.
        model: the model it configured.
        folder: output folder.
        metadata: settings that prediction needs; ``base_hash`` (`state_hash` of the base checkpoint's tensors)
            is required. ``variant``, ``in_channels`` and ``method`` are added.

    Raises:
        InputError: `folder` exists and is not an adapter.
    """
    if report.peft_model is None:
        raise ValueError(f"tuning method {report.method} has no adapter: save merged_state(model) instead")
    if not metadata.get("base_hash"):
        raise ValueError("metadata without base_hash: state_hash of the base checkpoint's tensors is needed")
    folder = Path(folder)
    if folder.exists() and not (folder / _CONFIG_FILE).is_file() and (folder.is_file() or any(folder.iterdir())):
        raise InputError(f"{folder} exists and is not an adapter: choose another folder, or remove it")
    header = {
        **metadata,
        "variant": model.variant.name,
        "in_channels": str(model.in_channels),
        "method": report.method,
    }
    partial = folder.with_name(f".{folder.name}.incomplete")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    config = deepcopy(report.peft_model.peft_config[_ADAPTER])
    config.inference_mode = True
    config.save_pretrained(partial)
    save_safetensors(partial / _LORA_FILE, _adapter_state(report.peft_model), {})
    save_safetensors(partial / _DECODER_FILE, dict(_decoder_parameters(model)), header)
    _replace_folder(partial, folder)


def load_adapter(folder: str | Path, base: str | Path | None) -> tuple[SAMMed3D, dict[str, str]]:
    """Load an adapter merged into its base weights: a model in evaluation mode, and the adapter's metadata.

    Args:
        folder: written by `save_adapter`.
        base: the checkpoint that was fine-tuned.

    Raises:
        InputError: no base or the wrong one; files that are missing, damaged or inconsistent.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    folder = Path(folder)
    for name in (_CONFIG_FILE, _LORA_FILE, _DECODER_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is not an adapter of this toolkit: {name} is missing")
    decoder = read_state_dict(folder / _DECODER_FILE)
    metadata = decoder.metadata
    absent = [key for key in ("base_hash", "variant", "in_channels") if key not in metadata]
    if absent:
        raise InputError(f"{folder / _DECODER_FILE} lacks {', '.join(absent)} in its metadata: save the adapter again")
    needed = f"the base checkpoint with hash {metadata['base_hash']} (`weights inspect` shows a file's)"
    if base is None:
        raise InputError(f"{folder} is a LoRA adapter without its base model: provide {needed}")
    found_hash = state_hash(read_whole_model(base)[1].state)
    if found_hash != metadata["base_hash"]:
        raise InputError(f"{base} has hash {found_hash}, but {folder} was trained on another base: provide {needed}")
    model = build_model(metadata["variant"], base, in_channels=int(metadata["in_channels"]))
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{folder / _CONFIG_FILE} is not a LoRA configuration of peft ({reason})") from error
    if str(getattr(config.peft_type, "value", config.peft_type)) != "LORA":
        raise InputError(f"{folder / _CONFIG_FILE} describes a {config.peft_type} adapter: expected LORA")
    peft_model = get_peft_model(model, config)
    lora = read_state_dict(folder / _LORA_FILE).state
    _require_fit(str(folder / _LORA_FILE), lora, _adapter_state(peft_model))
    set_peft_model_state_dict(peft_model, lora)
    merged: SAMMed3D = peft_model.merge_and_unload()
    own = dict(_decoder_parameters(merged))
    _require_fit(str(folder / _DECODER_FILE), decoder.state, own)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(decoder.state[name])
    return merged.requires_grad_(True).eval(), metadata


def _adapt(model: SAMMed3D, rank: int, alpha: float, dropout: float) -> Any:
    from peft import LoraConfig, get_peft_model

    if rank < 1:
        raise InputError(f"LoRA rank {rank}: expected at least 1")
    if not 0 <= dropout < 1:
        raise InputError(f"LoRA dropout {dropout}: expected 0 <= dropout < 1")
    if not any(re.fullmatch(LORA_TARGETS, name) for name, _ in model.named_modules()):
        raise InputError(f"LoRA found no module to adapt: no module name matches {LORA_TARGETS}")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=LORA_TARGETS,
        # The second channel's patch embedding starts at zero and is trained in full: a low-rank update is not enough.
        modules_to_save=[_PATCH_EMBEDDING] if model.in_channels > 1 else None,
    )
    peft_model = get_peft_model(model, config)  # modifies the model in place and freezes everything else
    for part in (model.prompt_encoder, model.mask_decoder):
        part.requires_grad_(True)
    return peft_model


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    """Modules with a LoRA adapter, by name."""
    # Recognised by an attribute, so that models without adapters do not need peft.
    return {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}


def _adapter_state(peft_model: Any) -> dict[str, Tensor]:
    """The adapter's tensors under peft's names. Without embedding layers, peft does not contact the hub."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(peft_model, save_embedding_layers=False)


def _decoder_parameters(model: SAMMed3D) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters trained besides the adapters: prompt encoder and mask decoder without the frozen ones."""
    for part in ("prompt_encoder", "mask_decoder"):
        for name, parameter in model.get_submodule(part).named_parameters(prefix=part):
            if not _NEVER_TRAINED.fullmatch(name):
                yield name, parameter


def _require_fit(what: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise InputError, with the first differing names, unless names and shapes are equal."""
    differences = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "with another shape": [n for n in expected if n in state and state[n].shape != expected[n].shape],
    }
    found = [f"{len(names)} {kind}, such as {names[0]}" for kind, names in differences.items() if names]
    if found:
        raise InputError(
            f"{what} do not fit the model: of {len(expected)} tensors {'; '.join(found)}; use the same "
            "variant, tuning method and LoRA rank as the run that wrote them"
        )


def _replace_folder(new: Path, folder: Path) -> None:
    """Rename `new` to `folder`, replacing an existing folder."""
    old = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _share(trainable: int, total: int) -> str:
    return f"{trainable:,} of {total:,} ({100 * trainable / total:.2f} %)"
