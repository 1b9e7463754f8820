"""A stand-in for the Hugging Face hub: repositories in memory, created, filled and read by the hub's real client."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "hf_write"
Server = TypeVar("Server", bound=ThreadingHTTPServer)


@dataclass
class Repo:
    """Files by name, as of the only commit; private ones are invisible without the token."""

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)

    @property
    def commit(self) -> str:
        content = b"".join(name.encode() + data for name, data in sorted(self.files.items()))
        return hashlib.sha1(content).hexdigest()


class Hub(ThreadingHTTPServer):
    """Speaks the part of the hub's API that creating, uploading (Git LFS) and downloading need; may break off."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.repos: dict[str, Repo] = {}
        self.uploaded: dict[str, bytes] = {}  # large files by their SHA-256
        self.downloads: list[str] = []
        self.ranges: list[str | None] = []  # asked for by each download
        self.stated: str | None = None  # the checksum of files, instead of the true one
        self.break_after: int | None = None  # bytes of a file, until set back
        self.broken = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """A server that answers in the background until the block ends."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


def client_environment(endpoint: str, home: Path) -> dict[str, str]:
    """Environment of a process whose hub client speaks to ``endpoint`` and knows no other settings."""
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("HF_")}
    return environment | {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "NO_PROXY": "127.0.0.1",
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


def run_python(
    code: str, endpoint: str, home: Path, token: str | None = None, **settings: str
) -> subprocess.CompletedProcess[str]:
    """A Python process whose hub client speaks to ``endpoint`` (the client reads its settings once)."""
    environment = client_environment(endpoint, home) | settings
    if token is not None:
        environment["HF_TOKEN"] = token
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, cwd=home.parent, capture_output=True, text=True, timeout=180, check=False
    )


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The error line of a refused command, after the client's own progress and retry messages."""
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.strip().splitlines()[-1]


def command_line(*words: object) -> str:
    """Python code that runs `sammed3d-ft` with these words."""
    return (
        f"import sys; sys.argv = {['sammed3d-ft', *map(str, words)]!r}; from sammed3d_ft.cli.main import main; main()"
    )


class _Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    @property
    def known(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def _send(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content or {}).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers["Content-Length"] or 0))

    def _repo(self, name: str) -> Repo | None:
        """The repository, or None after an error has been sent."""
        repo = self.server.repos.get(name)
        if repo is None or (repo.private and not self.known):
            # As the hub does: without a token it does not tell a private repository from none.
            self._send(404 if self.known else 401, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
            return None
        return repo

    def _at(self, repo: Repo, revision: str) -> bool:
        if revision in ("main", repo.commit):
            return True
        self._send(404, {"error": "Invalid rev id"}, {"X-Error-Code": "RevisionNotFound"})
        return False

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repo = self._repo(found[1])
            if repo is not None and self._at(repo, found[2] or "main"):
                siblings = [{"rfilename": name} for name in repo.files]
                self._send(200, {"id": found[1], "sha": repo.commit, "private": repo.private, "siblings": siblings})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            repo = self._repo(found[1])
            if repo is not None and self._at(repo, found[2]):
                entries = ({"path": name, "size": len(data), "oid": _oid(data)} for name, data in repo.files.items())
                self._send(200, [{"type": "file", **entry} for entry in entries])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            repo = self._repo(found[1])
            if repo is not None and self._at(repo, found[2]):
                self._send_file(repo, found[3])
        else:
            self._send(404)

    def _send_file(self, repo: Repo, name: str) -> None:
        if name not in repo.files:
            self._send(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            return
        hub, data = self.server, repo.files[name]
        start = int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        stop = len(data)
        if self.command == "GET":
            hub.downloads.append(name)
            hub.ranges.append(self.headers["Range"])
            stop = stop if hub.break_after is None else min(stop, start + hub.break_after)
        self.send_response(206 if start else 200)
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("ETag", f'"{hub.stated or hashlib.sha256(data).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(data[start:stop])
        if stop < len(data):
            self.wfile.flush()
            self.close_connection = True
            hub.broken.set()

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        if path == "/api/validate-yaml":
            assert json.loads(body)["content"].startswith("---\n")
            self._send(200)
        elif not self.known:
            self._send(401, {"error": "Invalid username or password."})
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] != "lab":
                self._send(403, {"error": "You don't have the rights to create a model under this namespace"})
            elif name in self.server.repos:
                self._send(409, {"error": "You already created this model repo", "url": f"{self.server.url}/{name}"})
            else:
                private = asked.get("private") or asked.get("visibility") == "private"
                self.server.repos[name] = Repo(bool(private))
                self._send(200, {"url": f"{self.server.url}/{name}"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            if self._repo(found[1]) is not None:
                names = [file["path"] for file in json.loads(body)["files"]]
                modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
                files = [{"path": n, "uploadMode": m, "shouldIgnore": False, "oid": None} for n, m in modes.items()]
                self._send(200, {"files": files})
        elif re.fullmatch(r"/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = [
                {**asked, "actions": {"upload": {"href": f"{self.server.url}/lfs/{asked['oid']}", "header": {}}}}
                for asked in json.loads(body)["objects"]
            ]
            self._send(200, {"transfer": "basic", "objects": objects})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            repo = self._repo(found[1])
            if repo is not None:
                self._commit(repo, found[1], body)
        else:
            self._send(404)

    def _commit(self, repo: Repo, name: str, body: bytes) -> None:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.server.uploaded[value["oid"]]
        url = f"{self.server.url}/{name}/commit/{repo.commit}"
        self._send(200, {"commitUrl": url, "commitOid": repo.commit})

    def do_PUT(self) -> None:
        data = self._body()
        assert self.path == f"/lfs/{hashlib.sha256(data).hexdigest()}"
        self.server.uploaded[self.path.removeprefix("/lfs/")] = data
        self._send(200)


def _oid(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()
