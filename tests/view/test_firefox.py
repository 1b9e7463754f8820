"""The page in Firefox: a click on a known voxel, a correction, and the saved table."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sammed3d_ft.view.cases import single_case
from tests.support.marionette import Firefox
from tests.support.viewers import BLOBS_VOX, blobs, serving, write_pet


@pytest.fixture
def firefox(tmp_path):
    path = Path(os.environ.get("SAMMED3D_TEST_FIREFOX", "/usr/bin/firefox-esr"))
    if not path.is_file():
        reason = f"NO FIREFOX: the viewer is not tested in it, {path} is absent (SAMMED3D_TEST_FIREFOX names another)"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    (tmp_path / "profile").mkdir()
    browser = Firefox(path, tmp_path / "profile")
    yield browser
    browser.close()


def test_clicks_corrections_and_saving(firefox, tmp_path) -> None:
    values, out = np.minimum(blobs(), 4), tmp_path / "out"
    values[BLOBS_VOX[0]] = 40
    with serving(single_case(write_pet(tmp_path / "pet.nii.gz", values), out)) as (client, server):
        firefox.open(server.link)
        firefox.wait("document.body.dataset.first")
        assert server.token not in firefox.script("location.href")
        image = np.asarray(Image.open(io.BytesIO(firefox.canvas("#projection canvas"))).convert("RGB")).astype(int)
        rows, columns = np.nonzero(image.max(axis=2) < 80)
        firefox.click("#projection", (columns.mean() + 0.5, rows.mean() + 0.5))
        firefox.wait(
            f"document.getElementById('readout').textContent.includes('voxel {', '.join(map(str, BLOBS_VOX[0]))} ')"
        )
        firefox.script("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        image = np.asarray(Image.open(io.BytesIO(firefox.canvas("#axial canvas"))).convert("RGB")).astype(int)
        hot = values[:, :, BLOBS_VOX[0][2]] > 4
        assert hot.sum() == 1
        middle = firefox.script("(e => [e.clientWidth, e.clientHeight])(document.getElementById('axial'))")
        assert image.shape[:2] == (middle[1], middle[0])
        rows, columns = np.nonzero(image.max(axis=2) == 0)
        firefox.click("#axial", (columns.mean() + 0.5, rows.mean() + 0.5))
        state = client.wait(lambda state: len(state["clicks"]) == 1 and not state["busy"])
        assert state["clicks"][0]["voxel"] == list(BLOBS_VOX[0])
        firefox.wait("document.querySelector('#lesions tbody tr td:nth-child(8)')?.textContent === '1 + 0'")
        firefox.click("#axial", (columns.mean() + 30, rows.mean()), button=2)
        assert client.wait(lambda state: len(state["clicks"]) == 2)["clicks"][1]["label"] == 0
        firefox.wait("document.querySelector('#lesions tbody tr td:nth-child(8)')?.textContent === '1 + 1'")
        firefox.press("s")
        firefox.wait("document.getElementById('message').textContent.startsWith('Saved in')")
    assert {"mask.nii.gz", "lesions.csv", "clicks.json"} <= {path.name for path in out.iterdir()}
