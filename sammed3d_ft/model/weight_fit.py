"""Check whether a checkpoint fits a model; describe the differences and what the file probably is."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from sammed3d_ft.model.variants import VARIANTS

PATCH_WEIGHT = "image_encoder.patch_embed.proj.weight"
_POSITIONS = "image_encoder.pos_embed"
# The pickled magic number of torch.save's legacy format, after the two bytes of the protocol.
_LEGACY_MAGIC = b"\x8a\n" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."
_GROUPS_NAMED = 4
_PARTS = ("image_encoder.", "prompt_encoder.", "mask_decoder.")


def recognise_variant(state: Mapping[str, Tensor]) -> str | None:
    """Name of the variant whose encoder has these shapes (with one or two input channels), or None."""
    patch, positions = state.get(PATCH_WEIGHT), state.get(_POSITIONS)
    if patch is None or positions is None or patch.ndim != 5:
        return None
    blocks = {name.split(".")[2] for name in state if name.startswith("image_encoder.blocks.")}
    for variant in VARIANTS.values():
        size = (variant.patch_size,) * 3
        grid = (1, *(variant.grid,) * 3, variant.embed_dim)
        if (
            patch.shape[:1] == (variant.embed_dim,)
            and patch.shape[2:] == size
            and positions.shape == grid
            and len(blocks) == variant.depth
        ):
            return variant.name
    return None


def describe_misfit(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> str | None:
    """One line that describes how tensors differ from a model's names and shapes, with a hint; None if they fit."""
    missing = [name for name in expected if name not in state]
    unexpected = [name for name in state if name not in expected]
    wrong = [name for name in expected if name in state and state[name].shape != expected[name]]
    if not (missing or unexpected or wrong):
        return None
    shapes = {name: f" {tuple(state[name].shape)} where the model has {tuple(expected[name])}" for name in wrong}
    counts = [
        f"{len(names)} {word} ({_groups(names, shapes)})"
        for word, names in (("missing", missing), ("unexpected", unexpected), ("with another shape", wrong))
        if names
    ]
    hint = _hint(state, expected)
    return f"of its {len(expected)} tensors, {'; '.join(counts)}" + (f"; {hint}" if hint else "")


def foreign_form(path: Path) -> str | None:
    """If the first bytes show that a file cannot hold weights: what it is and what to do. Otherwise None."""
    size = path.stat().st_size
    if size == 0:
        return "it is empty; download or copy it again"
    with path.open("rb") as file:
        start = file.read(256)
    text = start.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer; run `git lfs pull` there, or download the file itself"
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        return "it is a web page saved under that name; download the file itself"
    if text.startswith(b"{"):
        return "it is a JSON file; choose the file with the tensors"
    if start.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip; unpack it first"
    if start[8:9] == b"{" and 8 + int.from_bytes(start[:8], "little") > size:
        return "it is a safetensors file cut off in its header; copy or download it again"
    # Zip archive (torch.save since 1.6), torch.save's legacy format with its magic number, safetensors.
    if start.startswith(b"PK\x03\x04") or start[2:15] == _LEGACY_MAGIC or start[8:9] == b"{":
        return None
    if start[:1] == b"\x80":
        return (
            "it is a plain pickle, not written by torch.save; it was not opened, because that could run code; "
            "save its tensors with torch.save or as safetensors"
        )
    return "it was written neither by torch.save nor as safetensors; choose a .pth, .pt or .safetensors file"


def _hint(state: Mapping[str, Tensor], expected: Mapping[str, torch.Size]) -> str | None:
    """What the file probably is, judging by names and shapes."""
    patch = state.get(PATCH_WEIGHT)
    if any("lora_A" in name for name in state):
        return "it looks like a LoRA adapter: use its base checkpoint here, and the adapter with predict --checkpoint"
    if (patch is not None and patch.ndim == 4) or any(n.startswith("image_encoder.trunk.") for n in state):
        return "it looks like weights of the 2D SAM or a similar 2D model, which do not fit the 3D model"
    variant = recognise_variant(state)
    if variant is not None:
        own = _variant_of_shapes(expected)
        if variant != own:
            return f"it holds the variant {variant}" + (f", but the model is {own}" if own else "")
        if patch is not None and PATCH_WEIGHT in expected and patch.shape[1] != expected[PATCH_WEIGHT][1]:
            return f"it has {patch.shape[1]} input channels (PET and CT): build the model with in_channels=2"
        return f"its encoder is that of {variant}, but other tensors are missing, added or renamed"
    if any(f"{part}{name}" in expected for name in state for part in _PARTS):
        return "it looks like only one part of the model: save the state dict of the whole model"
    if not any(name.startswith(_PARTS) for name in state) and any(t.ndim == 5 for t in state.values()):
        return "it looks like a CNN checkpoint (U-Net, SegResNet, ...): evaluate it as a baseline instead"
    return None


def _variant_of_shapes(expected: Mapping[str, torch.Size]) -> str | None:
    return recognise_variant({name: torch.empty(shape, device="meta") for name, shape in expected.items()})


def _groups(names: Sequence[str], shapes: Mapping[str, str]) -> str:
    """Names by group: `image_encoder.blocks.* 168, such as image_encoder.blocks.0.norm1.weight`."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        groups[_group(name)].append(name)
    listed = [
        f"{members[0]}{shapes.get(members[0], '')}"
        if len(members) == 1
        else f"{group} {len(members)}, such as {members[0]}{shapes.get(members[0], '')}"
        for group, members in groups.items()
    ]
    rest = len(listed) - _GROUPS_NAMED
    return ", ".join(listed[:_GROUPS_NAMED]) + (f", and {rest} more groups" if rest > 0 else "")


def _group(name: str) -> str:
    """The group of a name: image_encoder.blocks.0.norm1.weight -> `image_encoder.blocks.*`."""
    return ".".join(name.split(".")[:2]) + ".*"
