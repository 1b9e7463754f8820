"""Resumable download of published weights from the Hugging Face hub.

The hub client provides the file's location, size and checksum, and downloads it. The partial file is managed here,
because the client deletes it when its process ends.
"""

from __future__ import annotations

import re
from pathlib import Path

from sammed3d_ft.errors import InputError
from sammed3d_ft.provenance import file_hash


def fetch(out: Path, repo: str, file: str, revision: str = "main", sha256: str | None = None) -> str:
    """Download `file` of a hub repository to `out`, with a progress bar, and return its SHA-256.

    The download grows beside `out` as `.<name>.<checksum>.incomplete`; after an interruption, the same call resumes
    it. Once complete, it is verified against the hub's checksum, and against `sha256` if given, and renamed to `out`.
    An existing `out` is not downloaded again, only verified. The client's environment variables apply (HF_ENDPOINT,
    HF_TOKEN, proxies).

    Raises:
        InputError: hub or file unreachable, or a checksum mismatch; says how to place the file manually.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InputError(f"--sha256 {sha256}: expected 64 hexadecimal digits")
    if out.is_dir():
        raise InputError(f"{out} is a folder; name the file to write, such as {out / Path(file).name}")
    if out.exists():
        found = file_hash(out)
        if sha256 is not None and found != sha256.lower():
            raise InputError(f"{out} already exists with SHA-256 {found}, expected {sha256}; remove it first")
        return found
    partial, stated = _download(out, repo, file, revision)
    found = file_hash(partial)
    for expected, whose in ((stated, "the hub states"), (sha256, "--sha256 is")):
        if expected is not None and found != expected.lower():
            partial.unlink()
            raise InputError(
                f"{file} of {repo} was downloaded with SHA-256 {found}, but {whose} {expected}; the download was "
                "deleted: try again, or check the revision and the source of the checksum"
            )
    partial.replace(out)
    return found


def _download(out: Path, repo: str, file: str, revision: str) -> tuple[Path, str | None]:
    """Path of the completed download under its temporary name, and the hub's SHA-256 (for large files only).

    `hf_hub_download` gives every call a temporary file of its own and removes it, so it cannot resume after the process
    was killed; `http_get`, on which it is built, can.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    partial: Path | None = None
    try:
        seen = get_hf_file_metadata(hf_hub_url(repo, file, revision=revision))
        etag = seen.etag or "unknown"
        partial = out.parent / f".{out.name}.{re.sub(r'[^0-9A-Za-z]', '', etag)[:16]}.incomplete"
        out.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab") as received:
            if seen.size is not None and received.tell() > seen.size:
                received.truncate(0)
            # Pinned to the commit, so that a resumed download cannot mix two versions.
            http_get(
                hf_hub_url(repo, file, revision=seen.commit_hash or revision),
                received,
                resume_size=received.tell(),
                headers=build_hf_headers(),
                expected_size=seen.size,
                displayed_filename=file,
            )
    except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError) as error:
        option = "file"
        if isinstance(error, RepositoryNotFoundError):
            option = "repo"
        elif isinstance(error, RevisionNotFoundError):
            option = "revision"
        raise InputError(
            f"{file} of {repo}, revision {revision}, was not found on the hub: check --{option} (if private, HF_TOKEN)"
        ) from error
    # The exception types depend on the client's HTTP library; all mean that the download failed.
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        again = "run the same command again to resume" if _holds(partial) else "try again"
        raise InputError(
            f"could not download {file} of {repo} from the hub ({reason}); {again}, or obtain the file another "
            f"way and place it at {out.resolve()}"
        ) from error
    return partial, etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None


def _holds(partial: Path | None) -> bool:
    return partial is not None and partial.exists() and partial.stat().st_size > 0
