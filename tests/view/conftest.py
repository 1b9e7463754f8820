"""The browser that the page's tests drive: Debian's chromium, or the one named by SAMMED3D_TEST_BROWSER."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="session")
def chromium():
    path = Path(os.environ.get("SAMMED3D_TEST_BROWSER", "/usr/bin/chromium"))
    if not path.is_file():
        reason = f"NO BROWSER: the viewer's page is not tested, {path} is absent (SAMMED3D_TEST_BROWSER names another)"
        warnings.warn(reason, stacklevel=1)
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def page(chromium):
    """One page for all tests; each opens its own link in it. Errors in the page's scripts fail the test run."""
    page = chromium.new_page(viewport={"width": 1280, "height": 800})
    page.on("dialog", lambda dialog: dialog.accept())
    yield page
    page.close()
