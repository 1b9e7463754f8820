"""Read and write weights: published checkpoints, state dicts and exports. The only module that reads checkpoints.

Code in a file is never run: pickles are opened by torch's restricted unpickler, which allows only a short list of
harmless types that the published checkpoint needs.
"""

from __future__ import annotations

import argparse
import json
import pickle
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from sammed3d_ft.errors import InputError
from sammed3d_ft.files import write_whole
from sammed3d_ft.model.hub import local_copy
from sammed3d_ft.model.published import PUBLISHED, PublishedWeights, published_as
from sammed3d_ft.model.sam_med3d import SAMMed3D
from sammed3d_ft.model.variants import VARIANTS
from sammed3d_ft.model.weight_fit import PATCH_WEIGHT, describe_misfit, foreign_form, recognise_variant

# Weights shipped with this package; the name can be used wherever a weights file is expected.
SHIPPED = {"mini": Path(__file__).with_name("shipped") / "mini.safetensors"}

# Keys under which training checkpoints store their tensors; the published one uses the first.
_WRAPPERS = ("model_state_dict", "state_dict", "model")
# Prefixes added to every name by DistributedDataParallel and torch.compile.
_PREFIXES = ("module.", "_orig_mod.")
# The only key in our safetensors headers: the library writes several keys in random order, and equal weights must give
# equal files.
_HEADER_KEY = "sammed3d_ft"

_NUMPY_SCALAR = np.float64(0).__reduce__()[0]
_HARMLESS: list[Any] = [
    argparse.Namespace,
    (_NUMPY_SCALAR, "numpy.core.multiarray.scalar"),
    (_NUMPY_SCALAR, "numpy._core.multiarray.scalar"),
    np.dtype,
    *(type(np.dtype(code)) for code in ("f2", "f4", "f8", "i4", "i8", "?")),
]


@dataclass(frozen=True)
class Checkpoint:
    """Content of a weights file.

    Attributes:
        state: tensors by name, on the CPU, with wrapper prefixes removed. They may be memory-mapped.
        kind: "training checkpoint" or "state dict" (pickles), "safetensors", or "export" (written by this
            toolkit).
        metadata: an export's metadata, or another safetensors file's header.
        extra_keys: other keys of a training checkpoint (epoch, optimizer_state_dict, ...).
    """

    state: dict[str, Tensor]
    kind: str
    metadata: dict[str, str] = field(default_factory=dict)
    extra_keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did.

    Attributes:
        path: the path that was given.
        kind, metadata: see `Checkpoint`.
        tensors: number of tensors loaded.
        zero_initialised: descriptions of what was not in the file and starts at zero; usually empty.
    """

    path: Path
    kind: str
    metadata: dict[str, str]
    tensors: int
    zero_initialised: tuple[str, ...] = ()


def read_state_dict(path: str | Path) -> Checkpoint:
    """Read the tensors of a checkpoint file without running any code in it.

    Args:
        path: pickled training checkpoint or state dict (`torch.save`), safetensors file, export folder, a name in
            `SHIPPED` or `PUBLISHED` (a file of that name in the current folder takes precedence), or
            ``hub:owner/name`` (see `local_copy`).

    Raises:
        InputError: a missing, empty, truncated or foreign file; a pickle that refers to anything but tensors and
            the listed harmless types.
    """
    path = weights_file(Path(path))
    form = foreign_form(path)
    if form is not None:
        raise InputError(f"{path} does not contain weights: {form}")
    with path.open("rb") as file:
        start = file.read(9)
    found = _read_safetensors(path) if start[8:9] == b"{" else _read_pickle(path, zipped=start.startswith(b"PK"))
    odd = [name for name in found.state if not name.isprintable()]
    if odd:
        raise InputError(f"{path} is damaged: {odd[0]!r:.80} is not the name of a tensor; copy or download it again")
    return found


def read_metadata(path: str | Path) -> dict[str, str]:
    """An export's metadata, from its header alone; empty for every other file, readable or not."""
    try:
        with safe_open(weights_file(Path(path)), framework="pt") as file:
            return dict(json.loads((file.metadata() or {}).get(_HEADER_KEY, "{}")))
    except (InputError, SafetensorError, OSError, ValueError, TypeError):
        return {}


def published_weights(path: str | Path) -> PublishedWeights | None:
    """The published weights that a path names, that a file is by its name, or that `weights convert` made it from."""
    return published_as(path) or published_as(read_metadata(path).get("converted_from", ""))


def origin(path: str | Path) -> dict[str, str]:
    """Source and licence of the published weights that a file holds or was fine-tuned from; empty if unknown."""
    published = published_weights(path)
    if published is not None:
        return {"weights_source": f"{published.source}, {published.file}", "weights_licence": published.licence}
    return {key: text for key, text in read_metadata(path).items() if key in ("weights_source", "weights_licence")}


def read_whole_model(path: str | Path) -> tuple[str, Checkpoint]:
    """Read a checkpoint that must hold a complete SAM-Med3D; returns its variant's name and the checkpoint.

    Raises:
        InputError: as `read_state_dict`; a baseline network; an unknown variant, an incomplete model, or NaN.
    """
    found = read_state_dict(path)
    if found.metadata.get("format", "").startswith("sammed3d_ft baseline"):
        raise InputError(f"{path} is a baseline network, which takes no clicks: use `sammed3d-ft predict` without them")
    # If no variant is recognised, the file is compared with the published one.
    variant = VARIANTS[recognise_variant(found.state) or "vit_b_ori"]
    patch = found.state.get(PATCH_WEIGHT)
    with torch.device("meta"):
        model = SAMMed3D(variant, in_channels=2 if patch is not None and patch.shape[1] == 2 else 1)
    misfit = describe_misfit(found.state, {name: tensor.shape for name, tensor in model.state_dict().items()})
    if misfit is not None:
        raise InputError(f"{path} does not hold a complete SAM-Med3D ({variant.name}): {misfit}")
    _require_finite(path, found.state)
    return variant.name, found


def load_weights(model: nn.Module, path: str | Path) -> LoadReport:
    """Load a checkpoint into a model; all names and shapes must match.

    One exception: weights with one input channel can be loaded into a model with two. The patch embedding of the
    second channel is set to zero, so that the model initially equals the one-channel model; the report says so.

    Raises:
        InputError: as `read_state_dict`; missing or unexpected names, different shapes, or NaN.
    """
    checkpoint = read_state_dict(path)
    state = dict(checkpoint.state)
    own = model.state_dict()
    zeroed: tuple[str, ...] = ()
    if PATCH_WEIGHT in own and PATCH_WEIGHT in state:
        given, wanted = state[PATCH_WEIGHT], own[PATCH_WEIGHT].shape
        if given.ndim == 5 and given.shape[1] == 1 and wanted[1] == 2 and given.shape[2:] == wanted[2:]:
            state[PATCH_WEIGHT] = torch.cat([given, torch.zeros_like(given)], dim=1)
            zeroed = (f"{PATCH_WEIGHT}[:, 1] (second input channel)",)
    misfit = describe_misfit(state, {name: tensor.shape for name, tensor in own.items()})
    if misfit is not None:
        raise InputError(f"{path} does not fit the model: {misfit}")
    _require_finite(path, state)
    model.load_state_dict(state, strict=True)
    return LoadReport(Path(path), checkpoint.kind, checkpoint.metadata, len(state), zeroed)


def save_safetensors(path: str | Path, state: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata atomically; equal content gives equal bytes.

    Raises:
        InputError: the file cannot be written (disk full, no permission, ...).
    """
    path = Path(path)
    header = {_HEADER_KEY: json.dumps(dict(metadata), sort_keys=True)}
    # Copies, because safetensors rejects tensors that share memory (tied weights, views of one buffer).
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in state.items()}
    # Serialised in memory first: the library's own writer creates a private file, and leaves a partial one if killed.
    write_whole(path, save(tensors, metadata=header))


def _require_finite(path: str | Path, state: Mapping[str, Tensor]) -> None:
    # The sum is finite only if every value is; it needs no temporary array.
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor.sum(dtype=torch.float64))]
    if broken:
        raise InputError(f"{path} holds NaN or infinite weights ({_some(broken, 3)}); choose another checkpoint")


def weights_file(path: Path) -> Path:
    """The weights file of a path, which may be an export folder or a name; see `read_state_dict`."""
    path = local_copy(path)
    if not path.exists() and str(path) in SHIPPED:
        return SHIPPED[str(path)]
    named = PUBLISHED.get(str(path))
    if not path.exists() and named is not None:
        if not named.path.is_file():
            raise InputError(
                f"{named.name} is not at {named.path}: run `sammed3d-ft weights fetch {named.name}` in this folder"
            )
        return named.path
    if not path.exists():
        raise InputError(
            f"no weights at {path}; choose another file, use the shipped weights ({' or '.join(SHIPPED)}), or run "
            f"`sammed3d-ft weights fetch NAME` to download published ones ({', '.join(PUBLISHED)})"
        )
    if not path.is_dir():
        return path
    if (path / "adapter_config.json").is_file():
        raise InputError(
            f"{path} is a LoRA adapter, which does not contain the base model; use the base checkpoint here, "
            "and the adapter with a command that accepts adapters (predict --checkpoint)"
        )
    files = sorted(path.glob("*.safetensors"))
    if len(files) != 1:
        found = ", ".join(file.name for file in files) or "none"
        raise InputError(f"{path} is a folder: expected one .safetensors file in it, found {found}; choose the file")
    return files[0]


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        with safe_open(path, framework="pt") as file:
            header = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, no mapping
    except SafetensorError as error:
        raise InputError(
            f"{path} is a damaged or truncated safetensors file ({_line(error)}); copy or download it again"
        ) from error
    if _HEADER_KEY not in header:
        return Checkpoint(_bare_names(state), "safetensors", header)
    try:
        metadata = json.loads(header[_HEADER_KEY])
    except (ValueError, RecursionError):
        metadata = None
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise InputError(f"{path} is an export with damaged metadata; copy it again")
    return Checkpoint(_bare_names(state), "export", metadata)


def _read_pickle(path: Path, zipped: bool) -> Checkpoint:
    try:
        with torch.serialization.safe_globals(_HARMLESS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd streams: what they hold is checked, or the error says it
            # Memory-mapped, because most of a training checkpoint is optimiser state, which is not needed.
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error)) or re.search(r"got <class '(\S+)'>", str(error))
        what = f"refers to {found.group(1)}" if found else "holds more than tensors"
        raise InputError(
            f"{path} was rejected without running any of its code: its pickle {what}, which weights do not need; "
            "if you trust its origin, save only its tensors with torch.save or as safetensors"
        ) from error
    except Exception as error:  # the unpickler answers a damaged stream with almost any exception
        raise InputError(
            f"{path} is a damaged or truncated checkpoint ({_line(error)}); copy or download it again"
        ) from error
    return _from_pickle(path, content)


def _from_pickle(path: Path, content: Any) -> Checkpoint:
    if not isinstance(content, Mapping):
        raise InputError(f"{path} holds a {type(content).__name__}; expected tensors by name")
    for wrapper in _WRAPPERS:
        inner = content.get(wrapper)
        if isinstance(inner, Mapping):
            extra = tuple(str(key) for key in content if key != wrapper)
            return Checkpoint(_tensors(path, inner), "training checkpoint", extra_keys=extra)
    return Checkpoint(_tensors(path, content), "state dict")


def _tensors(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    others = [
        str(name)
        for name, value in content.items()
        if not (isinstance(value, Tensor) and value.layout == torch.strided)
    ]
    if others or not content:
        what = f"{_some(others)} instead" if others else "nothing"
        raise InputError(
            f"{path} has no tensors by name, neither at the top level nor under {', '.join(_WRAPPERS)}: it holds "
            f"{what}; save model.state_dict()"
        )
    # A tensor can repeat one stored number any number of times, so a small file could ask for any amount of memory.
    repeated = [str(name) for name, tensor in content.items() if tensor.nbytes > tensor.untyped_storage().nbytes()]
    if repeated:
        raise InputError(
            f"{path} holds tensors larger than their stored values ({_some(repeated)}); save them contiguous"
        )
    return _bare_names({str(name): value for name, value in content.items()})


def _bare_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Remove prefixes that all names share."""
    prefix = next((p for p in _PREFIXES if state and all(name.startswith(p) for name in state)), None)
    if prefix is None:
        return state
    return _bare_names({name.removeprefix(prefix): tensor for name, tensor in state.items()})


def _line(error: BaseException) -> str:
    """First sentence of a message, on one line."""
    return " ".join(str(error).split()).split(". ")[0][:160] or type(error).__name__


def _some(names: Iterable[str], at_most: int = 6) -> str:
    names = list(names)
    return ", ".join(names[:at_most]) + (f" and {len(names) - at_most} more" if len(names) > at_most else "")
