"""Measure the viewer in headless Chromium: start, redraw, click to drawn mask, memory of the page.

python scripts/bench_view.py [--browser /usr/bin/chromium]

Makes a PET of 200 x 200 x 400 and a CT of 512 x 512 x 326 voxels (.nii.gz) in a temporary folder. The start is measured
from launching the command to the first drawn image, the rest with the server in this process, so that the predictor's
own time is known. No GPU is used.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, cast

import nibabel as nib
import numpy as np
import psutil
from playwright.sync_api import Page, sync_playwright

from sammed3d_ft.inference import LesionPrediction, Predictor
from sammed3d_ft.recipes.predict import LoadedModel
from sammed3d_ft.view.cases import single_case
from sammed3d_ft.view.server import RunningServer, Viewer

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
HOT_VOX = [(100, 100, 200), (60, 110, 150), (140, 90, 250)]
AFTER_CHANGE = """async () => {
  const started = await new Promise(done =>
    addEventListener('pointerup', () => done(performance.now()), { once: true }));
  while (!(Number(document.body.dataset.changed) > started)) await new Promise(done => requestAnimationFrame(done));
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  return performance.now() - started;
}"""


class TimedPredictor(Predictor):
    """A predictor that records the duration of each call of `add_clicks` and `add_click`."""

    seconds: list[float]

    def add_clicks(self, *given: Any, **named: Any) -> LesionPrediction:
        started = time.perf_counter()
        try:
            return super().add_clicks(*given, **named)
        finally:
            self.seconds.append(time.perf_counter() - started)


def make_scan(folder: Path) -> tuple[Path, Path]:
    """A PET of noise with hot spheres, and a CT with a bright box, on different grids."""
    random = np.random.default_rng(0)
    pet = random.gamma(2.0, 0.4, (200, 200, 400)).astype(np.float32)
    for at in HOT_VOX:
        x, y, z = (slice(c - 6, c + 7) for c in at)
        distance = np.linalg.norm(np.indices((13, 13, 13)) - 6, axis=0)
        pet[x, y, z] += np.where(distance < 5, 12, 0)
    ct = random.normal(-700, 60, (512, 512, 326)).astype(np.int16)
    ct[120:400, 150:380] = random.normal(40, 30, (280, 230, 326)).astype(np.int16)
    paths = folder / "pet.nii.gz", folder / "ct.nii.gz"
    nib.save(nib.Nifti1Image(pet, np.diag((-4.07, -4.07, 3, 1))), paths[0])
    nib.save(nib.Nifti1Image(ct, np.diag((-1.52, -1.52, 3.6, 1))), paths[1])
    return paths


def start_seconds(browser, pet: Path, ct: Path, out: Path) -> float:
    """Seconds from launching the command to the first drawn image."""
    page = browser.new_page(viewport={"width": 1400, "height": 860})
    started = time.perf_counter()
    command = [sys.executable, "-m", "sammed3d_ft.cli.main", "view", str(pet), "--ct", str(ct), "--out", str(out)]
    process = subprocess.Popen([*command, "--no-browser"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    found = re.search(r"http\S+", process.stdout.readline())
    assert found is not None
    page.goto(found.group())
    page.wait_for_selector("body[data-first]", timeout=60_000)
    seconds = time.perf_counter() - started
    page.close(run_before_unload=False)
    process.terminate()
    process.wait()
    return seconds


def redraws_ms(page: Page, keys: str) -> list[float]:
    """Milliseconds that the page's script takes to draw all panes, after each of several keys."""
    found = []
    for key in keys:
        page.keyboard.press(key)
        page.evaluate("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        found.append(float(page.evaluate("() => document.body.dataset.drawMs")))
    return found


def clicks_ms(page: Page, predictor: TimedPredictor) -> list[float]:
    """Time from releasing the button to the drawn mask, without the predictor's time; the first click is excluded."""
    found = []
    box = page.locator("#axial").bounding_box()
    assert box is not None
    for number in range(8):
        predictor.seconds.clear()
        page.evaluate("() => { window.measured = null }")
        page.evaluate(f"() => {{ window.measured = ({AFTER_CHANGE})() }}")
        page.locator("#axial").click(
            position={"x": box["width"] / 2 + 2 * number, "y": box["height"] / 2},
            modifiers=["Shift"] if number % 2 else [],
        )
        found.append(page.evaluate("() => window.measured") - 1000 * sum(predictor.seconds))
        page.wait_for_timeout(400)
    return found[1:]


def page_megabytes() -> float:
    """Resident memory of the largest renderer process."""
    renderers = [p for p in psutil.Process().children(recursive=True) if "--type=renderer" in " ".join(p.cmdline())]
    return max(p.memory_info().rss for p in renderers) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        folder = Path(name)
        pet, ct = make_scan(folder)
        browser = playwright.chromium.launch(executable_path=options.browser, args=FLAGS)
        starts = [start_seconds(browser, pet, ct, folder / f"start{n}") for n in range(3)]
        print(f"start to first image: {statistics.median(starts):.2f} s (of {', '.join(f'{s:.2f}' for s in starts)})")

        predictor = cast(TimedPredictor, TimedPredictor.from_pretrained("mini"))
        predictor.seconds = []
        server = RunningServer(
            lambda failed: Viewer(
                [single_case(pet, folder / "out", ct)],
                lambda: LoadedModel(predictor, {"checkpoint": "mini"}),
                None,
                failed,
            )
        )
        threading.Thread(target=server.run, daemon=True).start()
        page = browser.new_page(viewport={"width": 1400, "height": 860})
        page.goto(server.link)
        page.wait_for_selector("#layers button[data-layer=fused][aria-checked=true]", timeout=60_000)
        redraws_ms(page, "12")
        for name, keys in (
            ("fused, window", "123451234512345"),
            ("fused, next slice", "." * 15),
            ("PET alone", "v12345"),
            ("CT alone", "v678678"),
        ):
            found = redraws_ms(page, keys)
            print(f"redraw, {name}: median {statistics.median(found):.1f} ms, largest {max(found):.1f} ms")
        page.keyboard.press("v")
        for _ in range(15):
            page.keyboard.press(",")
        found = clicks_ms(page, predictor)
        print(
            f"click to drawn mask beyond the predictor: median {statistics.median(found):.0f} ms, "
            f"largest {max(found):.0f} ms"
        )
        print(f"memory of the page: {page_megabytes():.0f} MB")
        server.stop()
        browser.close()


if __name__ == "__main__":
    main()
