"""A self-contained HTML page: headings, paragraphs, tables and figures in one file."""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sammed3d_ft.files import write_whole

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1b1b1b; background: #fff; max-width: 72rem; margin: 2rem auto;
       padding: 0 1.5rem; }
h1 { font-size: 1.7rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
p { max-width: 60rem; }
nav { columns: 2; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #555; padding-bottom: .4rem; }
th, td { padding: .25rem .8rem; text-align: left; vertical-align: top; border-bottom: 1px solid #e4e4e4; }
th { border-bottom: 1px solid #888; }
td.number { text-align: right; white-space: nowrap; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; } figcaption { color: #555; }
"""
_NUMBER = re.compile(r"[-+−]?\d[\d.,]*(e[-+]?\d+)?( ?%)?|n/a|")


class Page:
    """A report in one HTML file: figures are embedded, all text is escaped, and no script is needed.

    Sections appear in the order of the calls; the headings form a table of contents at the top.
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self._headings: list[str] = []
        self._body: list[str] = []

    def heading(self, text: str) -> None:
        """Start a section."""
        self._headings.append(text)
        self._body.append(f'<h2 id="section-{len(self._headings)}">{_escaped(text)}</h2>')

    def paragraph(self, text: str) -> None:
        self._body.append(f"<p>{_escaped(text)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]], caption: str = "") -> None:
        """A table; None and NaN are shown as n/a, numbers are right-aligned, floats have four significant digits.

        Raises:
            ValueError: a row whose number of cells differs from the number of columns.
        """
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"a row of {len(row)} cells for {len(columns)} columns: {row!r}")
        head = "".join(f"<th>{_escaped(name)}</th>" for name in columns)
        body = "\n".join(f"<tr>{''.join(_cell(value) for value in row)}</tr>" for row in rows)
        title = f"<caption>{_escaped(caption)}</caption>" if caption else ""
        self._body.append(
            f'<div class="scroll"><table>{title}<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
        )

    def figure(self, figure: bytes | Figure, caption: str) -> None:
        """A figure, as PNG bytes or a matplotlib figure; the caption is also its alternative text."""
        png = figure if isinstance(figure, bytes) else png_of(figure)
        data = base64.b64encode(png).decode("ascii")
        text = _escaped(caption)
        self._body.append(
            f'<figure><img src="data:image/png;base64,{data}" alt="{text}"><figcaption>{text}</figcaption></figure>'
        )

    def write(self, path: Path) -> None:
        """Write the page atomically.

        Raises:
            InputError: the file cannot be written.
        """
        contents = ""
        if len(self._headings) > 1:
            items = (
                f'<li><a href="#section-{number}">{_escaped(text)}</a></li>'
                for number, text in enumerate(self._headings, start=1)
            )
            contents = f"<nav><ul>{''.join(items)}</ul></nav>\n"
        title = _escaped(self._title)
        text = (
            '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f"<title>{title}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
            + contents
            + "\n".join(self._body)
            + "\n</body>\n</html>\n"
        )
        write_whole(path, text)


def png_of(figure: Figure, dpi: int = 110) -> bytes:
    """The figure as the bytes of a PNG."""
    file = io.BytesIO()
    figure.savefig(file, dpi=dpi, format="png")
    return file.getvalue()


def _escaped(text: str) -> str:
    return html.escape(text, quote=True)


def _cell(value: object) -> str:
    if value is None or value != value:
        text = "n/a"
    elif isinstance(value, float):
        text = f"{value:.4g}"
    else:
        text = str(value)
    return f'<td class="number">{text}</td>' if _NUMBER.fullmatch(text) else f"<td>{_escaped(text)}</td>"
