"""The command `sammed3d-ft` in this process."""

from __future__ import annotations

from typer.testing import CliRunner

from sammed3d_ft.cli.main import app


def command(*words: object, code: int = 0, columns: int = 80) -> str:
    """What a command prints to a terminal of this width; it must end with this exit code, or raises its InputError."""
    environment = {"COLUMNS": str(columns)}
    ended = CliRunner().invoke(app, [str(word) for word in words], env=environment, catch_exceptions=False)
    assert ended.exit_code == code, ended.output
    return ended.output
