"""Upload an export or a LoRA adapter to the Hugging Face hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from sammed3d_ft.errors import InputError
from sammed3d_ft.model.hub import ADAPTER_FILES, EXPORT_FILES, check_name, hub_error
from sammed3d_ft.model.published import published_as
from sammed3d_ft.model.weights import read_metadata


def push_to_hub(path: str | Path, repo: str, private: bool | None = None) -> str:
    """Upload an export or a LoRA adapter, in one commit; the repository is created if needed.

    It can then be used by everyone with access as ``hub:owner/name``. A model card is added if the repository has none.
    The files' metadata are uploaded with them; `sammed3d-ft weights inspect` shows them.

    Args:
        path: an export's file or folder, or the folder of a LoRA adapter.
        repo: ``owner/name``.
        private: visibility of a new repository; None takes the owner's default.

    Returns:
        The URL of the commit.

    Raises:
        InputError: not an export or adapter (nothing has been uploaded then), no token, or a refused or failed upload.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token

    check_name(repo)
    files, metadata = _contents(Path(path))
    if get_token() is None:
        raise InputError("no token for the hub: set HF_TOKEN, or run `hf auth login`; uploading needs a write token")
    api = HfApi(library_name="sammed3d-ft")
    try:
        api.create_repo(repo, private=private, exist_ok=True)
        operations = [CommitOperationAdd(name, file) for name, file in files.items()]
        if not api.file_exists(repo, "README.md"):
            operations.append(CommitOperationAdd("README.md", _card(repo, metadata).encode()))
        kind = "export" if "model.safetensors" in files else "LoRA adapter"
        return str(api.create_commit(repo, operations, commit_message=f"Upload {kind} of sammed3d-ft").commit_url)
    except Exception as error:
        raise hub_error(error, repo) from error


def _contents(path: Path) -> tuple[dict[str, Path], dict[str, str]]:
    """The files to upload by name, and their metadata."""
    if (path / "adapter_config.json").is_file():
        missing = [name for name in ADAPTER_FILES if not (path / name).is_file()]
        if missing:
            raise InputError(f"{path} is not an adapter of this toolkit: {', '.join(missing)} is missing")
        return {name: path / name for name in ADAPTER_FILES}, read_metadata(path / "decoder.safetensors")
    file = path / EXPORT_FILES[0] if path.is_dir() else path
    metadata = read_metadata(file) if file.is_file() else {}
    if not metadata.get("format", "").startswith("sammed3d_ft"):
        raise InputError(
            f"{path} is neither an export nor a LoRA adapter of this toolkit: expected export/model.safetensors or "
            "export/adapter of a run"
        )
    return {EXPORT_FILES[0]: file}, metadata


def _card(repo: str, metadata: Mapping[str, str]) -> str:
    """A model card with what the metadata say."""
    facts = {
        "architecture": metadata.get("variant") or metadata.get("network"),
        "tuning": metadata.get("method"),
        "preprocessing": metadata.get("preprocessing") or metadata.get("preparation"),
        "accumulated clicks": metadata.get("accumulate_clicks"),
        "base weights": metadata.get("weights_source"),
        "licence of the base weights": metadata.get("weights_licence"),
        "hash of the base weights": metadata.get("base_hash"),
        "version of sammed3d-ft": metadata.get("version"),
    }
    head = ["library_name: sammed3d-ft", "pipeline_tag: image-segmentation", "tags: [medical, PET, lesions]"]
    base = published_as(metadata.get("base_weights", ""))
    if base is not None:
        head.append(f"base_model: {json.dumps(base.repo)}")
    lines = ["---", *head, "---", "", f"# {repo.partition('/')[2]}", ""]
    lines += ["Lesion segmentation in PET/CT, trained with sammed3d-ft. Research only; not for clinical use.", ""]
    lines += [f"- {name}: {value}" for name, value in facts.items() if value]
    adapter = "" if metadata.get("method") != "lora" else " --base BASE_WEIGHTS"
    command = f"sammed3d-ft predict --image pet.nii.gz --clicks clicks.json --checkpoint hub:{repo} --out mask.nii.gz"
    return "\n".join([*lines, "", "```sh", f"{command}{adapter}", "```", ""])
