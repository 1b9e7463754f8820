"""The wheel contains the page."""

from __future__ import annotations

from pathlib import Path

from hatchling.builders.wheel import WheelBuilder

ROOT = Path(__file__).resolve().parents[2]


def test_the_wheel_holds_every_file_of_the_page() -> None:
    held = {file.distribution_path for file in WheelBuilder(str(ROOT)).recurse_included_files()}
    page = {str(path.relative_to(ROOT)) for path in (ROOT / "sammed3d_ft" / "view" / "page").iterdir()}
    assert {"sammed3d_ft/view/page/index.html", "sammed3d_ft/view/page/main.js"} <= page
    assert page <= held
