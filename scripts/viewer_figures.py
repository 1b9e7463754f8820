"""Take the viewer's screenshots for the documentation, with the shipped model on a phantom.

sammed3d-ft phantom --out phantoms --cases 1 --val 0 --test 0 --seed 5
python scripts/viewer_figures.py phantoms pictures

Writes viewer_{empty,fused,projection,help,error,narrow}.png, reduced to a colour palette to keep them small.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from sammed3d_ft.recipes.predict import load_model
from sammed3d_ft.view.cases import single_case
from sammed3d_ft.view.server import RunningServer, Viewer

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
# In the phantom above: three lesions, and the bladder, which the third one touches.
CLICKS = [((91, 46, 110), 1, 1), ((81, 43, 110), 1, 2), ((75, 53, 83), 1, 3), ((75, 57, 97), 0, 3)]

SIGN_COLOURS = ["e6007e", "00a0e9", "2fb344", "8f5bff", "0a7d32", "c01830", "e8a33d", "1e2329", "14171b"]  # of the page


def opened(page: Page, case, act: Callable[[Page, RunningServer], None]) -> None:
    """Serve a case, open it in the browser, and call ``act``."""
    server = RunningServer(lambda failed: Viewer([case], lambda: load_model(Path("mini")), None, failed))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    page.goto(server.link)
    act(page, server)
    page.goto("about:blank")
    server.stop()
    thread.join()


def shoot(page: Page, path: Path) -> None:
    page.wait_for_timeout(400)
    page.screenshot(path=path)
    _reduced(Image.open(path).convert("RGB")).save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} KB")


def _reduced(image: Image.Image) -> Image.Image:
    """With 32 greys and 64 colours, chosen apart: the few coloured pixels are the ones that matter."""
    pixels = np.asarray(image).reshape(-1, 3)
    coloured = pixels[np.ptp(pixels.astype(int), axis=1) > 24]
    colours = Image.fromarray(coloured[np.newaxis]).quantize(64, Image.Quantize.MEDIANCUT).getpalette() or []
    greys = np.repeat(np.linspace(0, 255, 32).round().astype(int), 3).tolist()
    palette = Image.new("P", (1, 1))
    signs = [value for colour in SIGN_COLOURS for value in bytes.fromhex(colour)]
    palette.putpalette(greys + signs + colours[: 64 * 3])
    return image.quantize(palette=palette, dither=Image.Dither.NONE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phantoms", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--browser", default="/usr/bin/chromium")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    pet = sorted((options.phantoms / "imagesTr").glob("*_0001.nii.gz"))[0]
    ct = pet.with_name(pet.name.replace("_0001.nii", "_0000.nii"))

    def tour(page: Page, server: RunningServer) -> None:
        page.wait_for_selector("#layers button[data-layer=fused][aria-checked=true]", timeout=60_000)
        page.keyboard.press("v")
        shoot(page, options.out / "viewer_empty.png")
        page.keyboard.press("v")
        page.keyboard.press("v")
        session = server.viewer.session
        for voxel, label, lesion in CLICKS:
            session.click(voxel, label, lesion, False)
        page.locator("#lesions tbody tr").nth(2).wait_for(timeout=60_000)
        page.locator("#lesions tfoot td", has_text="3 in total").wait_for()
        page.wait_for_timeout(2500)
        page.locator("#lesions tbody tr").nth(0).click()
        for _ in range(4):
            page.keyboard.press("+")
        shoot(page, options.out / "viewer_fused.png")
        page.keyboard.press("0")
        page.keyboard.press("v")
        page.keyboard.press("g")
        page.wait_for_selector("#proposals li.now")
        for _ in range(3):
            page.locator("#projection").press("ArrowLeft")
        page.locator("#axial").focus()
        shoot(page, options.out / "viewer_projection.png")
        page.keyboard.press("?")
        shoot(page, options.out / "viewer_help.png")
        page.keyboard.press("Escape")
        page.set_viewport_size({"width": 760, "height": 1000})
        page.keyboard.press("v")
        page.keyboard.press("v")
        shoot(page, options.out / "viewer_narrow.png")
        page.set_viewport_size({"width": 1160, "height": 720})

    def error(page: Page, server: RunningServer) -> None:
        page.wait_for_selector("#failure:not([hidden])")
        shoot(page, options.out / "viewer_error.png")

    with tempfile.TemporaryDirectory() as name, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=options.browser, args=FLAGS)
        page = browser.new_page(viewport={"width": 1160, "height": 720})
        page.on("dialog", lambda dialog: dialog.accept())
        opened(page, single_case(pet, Path(name) / "work", ct), tour)
        cut = Path(name) / "pet_cut_short.nii.gz"
        cut.write_bytes(pet.read_bytes()[:200_000])
        opened(page, single_case(cut, Path(name) / "cut"), error)
        browser.close()


if __name__ == "__main__":
    main()
