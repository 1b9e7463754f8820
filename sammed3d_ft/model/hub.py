"""Exports and LoRA adapters on the Hugging Face hub, named `hub:owner/name` or `hub:owner/name@revision`."""

from __future__ import annotations

import errno
import os
from functools import lru_cache
from pathlib import Path

from sammed3d_ft.errors import InputError

PREFIX = "hub:"
EXPORT_FILES = ("model.safetensors",)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors", "decoder.safetensors")


def local_copy(path: str | Path) -> Path:
    """The folder of a downloaded export or adapter for a name that starts with `hub:`; any other path unchanged.

    Files are kept in the client's cache (HF_HOME) and downloaded once; without a network, the cached files are used.

    Raises:
        InputError: the hub or the repository cannot be reached, or it holds neither an export nor an adapter.
    """
    name = str(path)
    if not name.startswith(PREFIX):
        return Path(path)
    repo, _, revision = name.removeprefix(PREFIX).partition("@")
    return _downloaded(repo, revision or None)


@lru_cache(maxsize=32)
def _downloaded(repo: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    check_name(repo)
    try:
        folder = Path(snapshot_download(repo, revision=revision, allow_patterns=[*EXPORT_FILES, *ADAPTER_FILES]))
    except Exception as error:
        raise hub_error(error, repo, revision) from error
    if not any(all((folder / name).is_file() for name in files) for files in (EXPORT_FILES, ADAPTER_FILES)):
        raise InputError(
            f"{repo} on the hub holds neither an export ({', '.join(EXPORT_FILES)}) nor a LoRA adapter "
            f"({', '.join(ADAPTER_FILES)}); to download another file: "
            f"sammed3d-ft weights fetch --repo {repo} --file FILE"
        )
    return folder


def check_name(repo: str) -> None:
    """InputError unless a repository is named `owner/name`."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
        valid = repo.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise InputError(f"{repo!r} is not a repository on the hub: expected owner/name")


def hub_error(error: Exception, repo: str, revision: str | None = None) -> InputError:
    """What went wrong at the hub, in one line with the way out."""
    from huggingface_hub.constants import HF_HUB_CACHE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if os.strerror(errno.ENOSPC) in str(error):  # an OSError, or the hub client's RuntimeError with its text
        return InputError(
            f"the disk is full: {repo} needs more space in {HF_HUB_CACHE}; free some, or set HF_HOME to another disk"
        )
    # The response's type depends on the client's HTTP library.
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, RevisionNotFoundError):
        return InputError(f"{repo} on the hub has no revision {revision}: check the branch, tag or commit")
    if isinstance(error, GatedRepoError):
        return InputError(f"{repo} on the hub needs its owner's permission: request it on its page, then set HF_TOKEN")
    if isinstance(error, RepositoryNotFoundError):
        return InputError(
            f"{repo} was not found on the hub: check the name; if it is private, set HF_TOKEN or run `hf auth login`"
        )
    if status in (401, 403):
        return InputError(
            f"the hub refused access to {repo}: the token (HF_TOKEN or `hf auth login`) is invalid or lacks permission"
        )
    reason = " ".join(str(error).split())[:160] or type(error).__name__
    return InputError(f"the hub could not be used for {repo} ({reason}): check the network and HF_ENDPOINT")
