"""Tuning methods: which parameters of a SAM-Med3D train, and LoRA adapters (the only importer of peft)."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prompts.errors import InputError
from sammed3d_ft.model.build import build_model, parameter_count
from sammed3d_ft.model.sam_med3d import SAMMed3D
from sammed3d_ft.model.weights import read_state_dict, read_whole_model, save_safetensors, state_hash

# The blocks' attention alone: the bare names qkv and proj would match patch_embed.proj, too.
LORA_TARGETS = r"image_encoder\.blocks\.\d+\.attn\.(qkv|proj)"
_PATCH_EMBEDDING = "image_encoder.patch_embed.proj"
# Without gradient in the click loop, where weight decay alone would move them and DDP would wait for them:
# mask heads 1 to 3 (the loop uses mask 0) and "no mask" (the loop always feeds a mask).
_NEVER_TRAINED = re.compile(
    r"mask_decoder\.output_hypernetworks_mlps\.[1-9]\d*\..*|prompt_encoder\.no_mask_embed\..*"
)
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
        trainable, total: numbers of parameters, those of LoRA included in both.
        parts: (trainable, total) of image encoder, prompt encoder and mask decoder.
        adapted: names of the modules with a LoRA adapter.
        peft_model: peft's handle of the model, which `save_adapter` needs; None without LoRA.
    """

    method: str
    trainable: int
    total: int
    parts: dict[str, tuple[int, int]]
    adapted: tuple[str, ...] = ()
    peft_model: Any = field(default=None, repr=False, compare=False)

    def lines(self) -> list[str]:
        """For printing, a line each: the whole, the parts, the adapters."""
        told = [f"tuning {self.method}: {_share(self.trainable, self.total)} parameters train"]
        told += [f"  {part}: {_share(*counts)}" for part, counts in self.parts.items()]
        if self.adapted:
            told.append(f"  LoRA on {len(self.adapted)} modules, {self.adapted[0]} to {self.adapted[-1]}")
        return told


def configure_tuning(
    model: SAMMed3D,
    method: str,
    *,
    lora_rank: int = 8,
    lora_alpha: float = 16.0,
    lora_dropout: float = 0.0,
) -> TuningReport:
    """Freezes and adapts a model in place; the caller goes on with the same object.

    Args:
        model: without adapters yet.
        method: ``decoder`` (the image encoder is frozen), ``lora`` (low-rank adapters, Hu et al. 2021, on
            the query-key-value and output maps of every encoder block; prompt encoder and mask decoder
            train whole, and with two input channels the patch embedding) or ``full``.
        lora_rank, lora_alpha, lora_dropout: of the adapters, whose update is scaled by alpha / rank. Their
            weights are drawn from torch's global generator.

    Mask heads 1 to 3 and the "no mask" embedding, which the click loop does not use, are always frozen.

    Raises:
        InputError: unknown method, rank below 1, dropout outside [0, 1), `decoder` with two input channels,
            a model that is adapted already, or nothing to adapt.
    """
    if method not in _METHODS:
        raise InputError(f"unknown tuning method {method!r}: expected one of {', '.join(_METHODS)}")
    if _lora_layers(model):
        raise InputError("the model has LoRA adapters already: build it anew, or merge them first")
    if method == "decoder" and model.in_channels != 1:
        raise InputError(
            f"tuning method decoder with {model.in_channels} input channels: the second channel's patch "
            "embedding would stay zero and the channel unused; use full or lora, or one channel"
        )
    peft_model = _METHODS[method](model, lora_rank, lora_alpha, lora_dropout)
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
    """The parameters that train, by name; they share memory with the model."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def load_trainable_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Puts back, in place, what `trainable_state` of a model tuned alike gave.

    Raises:
        InputError: names or shapes that are not exactly those of the parameters that train.
    """
    own = trainable_state(model)
    _require_fit("the trained parameters", state, own)
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(state[name])


def merged_state(model: nn.Module) -> dict[str, Tensor]:
    """Complete state dict under the published names, LoRA merged into the weights; the model stays as it is.

    Tensors that no adapter touches share memory with the model.
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


def save_adapter(
    report: TuningReport, model: SAMMed3D, folder: str | Path, metadata: Mapping[str, str]
) -> None:
    """Writes a LoRA-tuned model without its base: PEFT's two files, and what trained beside the adapters.

    The folder appears whole or not at all, and replaces an adapter of that name. It holds
    ``adapter_config.json`` and ``adapter_model.safetensors``, as peft reads them, and
    ``decoder.safetensors``: the trained prompt encoder and mask decoder, with the metadata.

    Args:
        report: of `configure_tuning` with ``lora``.
        model: the model it configured.
        folder: where to.
        metadata: what prediction must know; ``base_hash`` (`state_hash` of the base checkpoint's tensors) is
            required. ``variant``, ``in_channels`` and ``method`` are added.

    Raises:
        InputError: `folder` is there and holds something else.
    """
    if report.peft_model is None:
        raise ValueError(f"tuning method {report.method} has no adapter: save merged_state(model) instead")
    if not metadata.get("base_hash"):
        raise ValueError("metadata without base_hash: state_hash of the base checkpoint's tensors is needed")
    folder = Path(folder)
    if (
        folder.exists()
        and not (folder / _CONFIG_FILE).is_file()
        and (folder.is_file() or any(folder.iterdir()))
    ):
        raise InputError(f"{folder} exists and is no adapter: name another folder, or remove it")
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
    """A model with an adapter merged into its base weights, in evaluation mode, and the adapter's metadata.

    Args:
        folder: written by `save_adapter`.
        base: the checkpoint that was fine-tuned.

    Raises:
        InputError: no or another base; files missing, damaged, or that do not fit each other.
    """
    from peft import PeftConfig, get_peft_model, set_peft_model_state_dict

    folder = Path(folder)
    for name in (_CONFIG_FILE, _LORA_FILE, _DECODER_FILE):
        if not (folder / name).is_file():
            raise InputError(f"{folder} is no adapter of this toolkit: it has no {name}")
    decoder = read_state_dict(folder / _DECODER_FILE)
    metadata = decoder.metadata
    absent = [key for key in ("base_hash", "variant", "in_channels") if key not in metadata]
    if absent:
        raise InputError(f"{folder / _DECODER_FILE} does not say {', '.join(absent)}: save the adapter again")
    needed = f"the base checkpoint with hash {metadata['base_hash']} (`weights inspect` shows a file's)"
    if base is None:
        raise InputError(f"{folder} is a LoRA adapter without its base model: give {needed}")
    found_hash = state_hash(read_whole_model(base)[1].state)
    if found_hash != metadata["base_hash"]:
        raise InputError(f"{base} has hash {found_hash}, but {folder} was trained on another: give {needed}")
    model = build_model(metadata["variant"], base, in_channels=int(metadata["in_channels"]))
    try:
        config = PeftConfig.from_pretrained(str(folder))
    except (ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{folder / _CONFIG_FILE} is no LoRA configuration of peft ({reason})") from error
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


def _tune_decoder(model: SAMMed3D, rank: int, alpha: float, dropout: float) -> None:
    model.requires_grad_(True)
    model.image_encoder.requires_grad_(False)


def _tune_full(model: SAMMed3D, rank: int, alpha: float, dropout: float) -> None:
    model.requires_grad_(True)


def _tune_lora(model: SAMMed3D, rank: int, alpha: float, dropout: float) -> Any:
    from peft import LoraConfig, get_peft_model

    if rank < 1:
        raise InputError(f"LoRA rank {rank}: expected at least 1")
    if not 0 <= dropout < 1:
        raise InputError(f"LoRA dropout {dropout}: expected 0 <= dropout < 1")
    if not any(re.fullmatch(LORA_TARGETS, name) for name, _ in model.named_modules()):
        raise InputError(f"LoRA would adapt no module: none is named {LORA_TARGETS}")
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=LORA_TARGETS,
        # The second channel's patch embedding starts at zero and must train; a low rank would not do.
        modules_to_save=[_PATCH_EMBEDDING] if model.in_channels > 1 else None,
    )
    peft_model = get_peft_model(model, config)  # in place, and freezes all else
    for part in (model.prompt_encoder, model.mask_decoder):
        part.requires_grad_(True)
    return peft_model


_METHODS: dict[str, Callable[[SAMMed3D, int, float, float], Any]] = {
    "decoder": _tune_decoder,
    "lora": _tune_lora,
    "full": _tune_full,
}


def _lora_layers(model: nn.Module) -> dict[str, Any]:
    """Modules with a LoRA adapter, by name."""
    # Told by an attribute, so that models without adapters need no peft.
    return {name: module for name, module in model.named_modules() if hasattr(module, "get_delta_weight")}


def _adapter_state(peft_model: Any) -> dict[str, Tensor]:
    """The adapter's tensors under peft's names. Not asked for embeddings, peft does not ask the hub."""
    from peft import get_peft_model_state_dict

    return get_peft_model_state_dict(peft_model, save_embedding_layers=False)


def _decoder_parameters(model: SAMMed3D) -> Iterator[tuple[str, nn.Parameter]]:
    """What trains beside the adapters: prompt encoder and mask decoder but for what never trains."""
    for part in ("prompt_encoder", "mask_decoder"):
        for name, parameter in model.get_submodule(part).named_parameters(prefix=part):
            if not _NEVER_TRAINED.fullmatch(name):
                yield name, parameter


def _require_fit(what: str, state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Names and shapes must be equal, or `InputError` names the first that differ."""
    differences = {
        "missing": [name for name in expected if name not in state],
        "unexpected": [name for name in state if name not in expected],
        "of another shape": [n for n in expected if n in state and state[n].shape != expected[n].shape],
    }
    told = [f"{len(names)} {kind}, such as {names[0]}" for kind, names in differences.items() if names]
    if told:
        raise InputError(
            f"{what} do not fit the model: of {len(expected)} tensors {'; '.join(told)}; use the same "
            "variant, tuning method and LoRA rank as the run that wrote them"
        )


def _replace_folder(new: Path, folder: Path) -> None:
    """Renames `new` to `folder`, in the place of an earlier one."""
    old = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    new.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _share(trainable: int, total: int) -> str:
    return f"{trainable:,} of {total:,} ({100 * trainable / total:.2f} %)"
