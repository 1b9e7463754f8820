"""Run a command in a pseudo-terminal and draw its output as an SVG, for the pages in docs/.

python scripts/terminal_picture.py docs/figures/guide_import.svg -- sammed3d-ft import DICOM --out patient1

The command is shown as given after ``--``; ``--last N`` keeps the last N lines. Progress bars are shown in their final
state.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import shlex
import subprocess
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

_COLUMNS = 110


def terminal_output(command: list[str]) -> tuple[str, int]:
    """The final terminal output, with ANSI colours, and the exit code."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(_COLUMNS), "LINES": "60", "TERM": "xterm-256color"}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=subprocess.DEVNULL, env=environment)
    os.close(theirs)
    chunks = []
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the process has closed its end
            break
        if not chunk:
            break
        chunks.append(chunk)
    text = b"".join(chunks).decode(errors="replace").replace("\r\n", "\n")
    # Of a line that is redrawn, such as a progress bar, keep the last state; removed bars leave an empty line.
    lines = [re.sub(r"\x1b\[[0-9]*[AK]", "", line.rsplit("\r", 1)[-1]) for line in text.split("\n")]
    return "\n".join(line for line in lines if line.strip()), process.wait()


def draw(command: list[str], output: str, path: Path) -> None:
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=_COLUMNS, file=nowhere, force_terminal=True)
        console.print(Text("$ " + shlex.join(command), style="bold"), soft_wrap=False)
        console.print(Text.from_ansi(output))
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = console.export_svg(title="", unique_id=path.stem)
    path.write_text(re.sub(r"@font-face \{.*?\}\n", "", picture, flags=re.DOTALL))  # avoids loading fonts from the web


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("svg", type=Path)
    parser.add_argument("--last", type=int, help="show only the last N lines")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args()
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    output, code = terminal_output(command)
    if given.last is not None:
        output = "\n".join(output.splitlines()[-given.last :])
    draw(command, output, given.svg)
    sys.exit(code)


if __name__ == "__main__":
    main()
