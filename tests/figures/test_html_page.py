"""The HTML page: one whole file, everything escaped."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sammed3d_ft.figures import Page
from sammed3d_ft.figures.html_page import png_of
from tests.support.parsed_page import parsed


def test_page_is_one_file_and_text_stays_text(tmp_path: Path) -> None:
    page = Page("A < B & <script>alert(1)</script>")
    page.heading("First")
    page.paragraph('3 < 4 & "quotes" | <b>not bold</b>')
    page.heading("Second")
    page.table(["name", "<i>"], [["a<b", 0.123456], ["none", None], ["nan", float("nan")], [True, 3]], "caption & co")
    page.figure(b"\x89PNG not really", 'figure "1" <')
    figure = Figure()
    figure.subplots().plot([0, 1])
    page.figure(figure, "drawn")
    page.write(tmp_path / "folder" / "page.html")

    text = (tmp_path / "folder" / "page.html").read_text(encoding="utf-8")
    parser = parsed(tmp_path / "folder" / "page.html")
    assert "<script" not in text
    assert "<b>" not in text
    assert "<title>A &lt; B &amp; &lt;script&gt;" in text
    assert '<td class="number">0.1235</td>' in text
    assert text.count('<td class="number">n/a</td>') == 2
    assert '<td class="number">3</td>' in text
    assert "<td>True</td>" in text
    assert 'alt="figure &quot;1&quot; &lt;"' in text
    assert parser.addresses[:2] == ["#section-1", "#section-2"]
    assert all(address.startswith("data:image/png;base64,") for address in parser.addresses[2:])
    pngs = [base64.b64decode(address.split(",")[1]) for address in parser.addresses[2:]]
    assert pngs[0] == b"\x89PNG not really"
    assert pngs[1].startswith(b"\x89PNG\r\n")
    assert not re.search(r"https?://", text)


def test_table_with_a_short_row_is_refused() -> None:
    with pytest.raises(ValueError, match="1 cells for 2 columns"):
        Page("t").table(["a", "b"], [["only one"]])


def test_png_of_a_figure_has_its_size() -> None:
    png = png_of(Figure(figsize=(2, 1)), dpi=100)
    assert png.startswith(b"\x89PNG")
    assert (int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) == (200, 100)
