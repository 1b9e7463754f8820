"""Downloads published weights from the Hugging Face hub, and goes on where an interrupted download stopped.

The hub's client answers where the file is, of which size and checksum, and fetches it; the incomplete file
is kept here, because the client itself drops it when its process ends.
"""

from __future__ import annotations

import re
from pathlib import Path

from prompts.errors import InputError
from sammed3d_ft.model.weights import sha256_of


def fetch(out: Path, repo: str, file: str, revision: str = "main", sha256: str | None = None) -> str:
    """Downloads `file` of a hub repository to `out`, with a progress bar, and returns its SHA-256.

    The file is compared with the checksum that the hub states and with `sha256` if given; only then it
    appears at `out`. Until then it grows beside it as `.<name>.<checksum>.incomplete`, which the same call
    continues later. A file already at `out` is not downloaded again, only compared. The client's
    environment variables hold (HF_ENDPOINT, HF_TOKEN, proxies).

    Raises:
        InputError: hub or file out of reach, or a checksum that differs; says how to place the file by hand.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        raise InputError(f"--sha256 {sha256}: expected 64 hexadecimal digits")
    if out.is_dir():
        raise InputError(f"{out} is a folder; name the file to write, such as {out / Path(file).name}")
    if out.exists():
        found = sha256_of(out)
        if sha256 is not None and found != sha256.lower():
            raise InputError(
                f"{out} is there already with SHA-256 {found}, expected {sha256}; remove it first"
            )
        return found
    partial, stated = _download(out, repo, file, revision)
    found = sha256_of(partial)
    for expected, whose in ((stated, "the hub states"), (sha256, "--sha256 is")):
        if expected is not None and found != expected.lower():
            partial.unlink()
            raise InputError(
                f"{file} of {repo} came with SHA-256 {found}, {whose} {expected}; the download was removed: "
                "try again, or check the revision and the checksum's source"
            )
    partial.replace(out)
    return found


def _download(out: Path, repo: str, file: str, revision: str) -> tuple[Path, str | None]:
    """Path of the whole file under its incomplete name; the SHA-256 that the hub states for large files."""
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
            # By the commit, so that a resumed download cannot mix two versions.
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
            f"the hub knows no {file} of {repo}, revision {revision}: check --{option} (if private, HF_TOKEN)"
        ) from error
    # The client's errors come from whichever HTTP library it uses; all mean that the download did not
    # succeed.
    except Exception as error:
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        again = "the same command continues the part received" if _holds(partial) else "try again"
        raise InputError(
            f"could not download {file} of {repo} from the hub ({reason}); {again}, or get the file by other "
            f"means and place it at {out.resolve()}"
        ) from error
    return partial, etag if re.fullmatch(r"[0-9a-f]{64}", etag) else None


def _holds(partial: Path | None) -> bool:
    return partial is not None and partial.exists() and partial.stat().st_size > 0
