"""Shared by tests of the viewer: scans, a fast model, a running server, and requests to it."""

from __future__ import annotations

import http.client
import json
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch

from sammed3d_ft.recipes.predict import LoadedModel
from sammed3d_ft.view.cases import ViewedCase
from sammed3d_ft.view.server import RunningServer, Viewer
from tests.support.stand_ins import Threshold, predictor

BLOBS_VOX = ((12, 14, 10), (28, 30, 22))
SHAPE = (40, 44, 32)


class Bright(Threshold):
    """Segments what is clearly brighter than the crop's mean; deterministic."""

    def decode(self, embedding, coords_vox, labels, previous=None):
        return embedding[:, :1] - 1.5, torch.full((1, 1), 0.5)


def quick_model() -> LoadedModel:
    """A predictor without weights."""
    return LoadedModel(predictor(Bright(), 3.0), {"checkpoint": "stand-in"})


def blobs() -> np.ndarray:
    """Two spheres of SUV 8 with soft edges, in noise of SUV 1."""
    index = np.stack(np.indices(SHAPE), -1)
    distance = np.min([np.linalg.norm(index - at, axis=-1) for at in BLOBS_VOX], axis=0)
    noise = np.random.default_rng(0).uniform(0.5, 1.5, SHAPE)
    return (noise + 7 * np.clip(1.5 - distance / 4, 0, 1)).astype(np.float32)


def write_pet(path: Path, values: np.ndarray | None = None, affine: np.ndarray | None = None) -> Path:
    array = blobs() if values is None else values
    nib.save(nib.Nifti1Image(array, np.diag((3.0, 3, 4, 1)) if affine is None else affine), path)
    return path


class Client:
    """Requests of the page, by hand."""

    def __init__(self, port: int, token: str) -> None:
        self.port, self.token = port, token

    def raw(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes, http.client.HTTPMessage]:
        link = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            link.request(method, path, body, {"x-viewer-token": self.token} | (headers or {}))
            answer = link.getresponse()
            return answer.status, answer.read(), answer.headers
        finally:
            link.close()

    def get(self, path: str) -> Any:
        status, body, _ = self.raw("GET", path)
        assert status == 200, body
        return json.loads(body)

    def post(self, path: str, **asked: Any) -> dict[str, Any]:
        status, body, headers = self.raw("POST", path, json.dumps(asked).encode())
        assert status == 200, body
        if headers["content-type"] == "application/json":
            return json.loads(body)
        (length,) = struct.unpack("<I", body[:4])
        return json.loads(body[4 : 4 + length])

    def click(self, voxel: Sequence[int], lesion: int = 1, label: int = 1, anyway: bool = False) -> dict[str, Any]:
        return self.post("/click", voxel=list(voxel), label=label, lesion=lesion, anyway=anyway)

    def wait(self, ready: Callable[[dict[str, Any]], bool] = lambda state: state["phase"] == "ready") -> dict[str, Any]:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            state = self.get("/state")
            if ready(state):
                return state
            time.sleep(0.02)
        raise AssertionError(f"the viewer is not ready: {state}")


@contextmanager
def serving(
    *cases: ViewedCase, load: Callable[[], LoadedModel] = quick_model, annotated: Path | None = None
) -> Iterator[tuple[Client, RunningServer]]:
    """A viewer on its port, its scan read."""
    server = RunningServer(lambda failed: Viewer(cases, load, annotated, failed))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    client = Client(server.port, server.token)
    try:
        client.wait(lambda state: state["phase"] != "reading")
        yield client, server
    finally:
        server.stop()
        thread.join(20)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
