"""The `sammed3d-ft` command as a process: help, exit codes, and start-up time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from rich.text import Text

from sammed3d_ft import __version__
from sammed3d_ft.cli import main as command
from sammed3d_ft.errors import InputError

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {"check", "import", "phantom", "manifest", "prompts", "weights", "predict", "predict-cohort", "evaluate"}
COMMANDS |= {"benchmark", "compare", "export-seg", "view"}


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sammed3d_ft.cli.main", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "120"},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_help_names_every_command_and_version_prints() -> None:
    done = run("--help")
    assert done.returncode == 0
    words = set(done.stdout.split())
    assert words >= COMMANDS
    assert run("--version").stdout == f"sammed3d-ft {__version__}\n"


def test_help_is_shown_as_written() -> None:
    """Square brackets in a help text would be taken for markup and vanish, as a default in brackets did."""
    pending, texts = [typer.main.get_command(command.app)], []
    while pending:
        one = pending.pop()
        pending += getattr(one, "commands", {}).values()
        texts += [text for text in (one.help, *(getattr(option, "help", None) for option in one.params)) if text]
    assert len(texts) > 100
    assert [text for text in texts if Text.from_markup(text).plain != text] == []


def test_starting_imports_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "scipy", "monai", "nibabel", "cc3d", "matplotlib", "peft", "accelerate"}
    heavy |= {"pydicom", "highdicom"}
    code = f"import sys, sammed3d_ft.cli.main; print(sorted({heavy} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_wrong_input_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    done = run("check", str(tmp_path / "none.json"))
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == f"error: {tmp_path / 'none.json'}: no such file\n"


def test_a_wrong_option_is_exit_code_2() -> None:
    done = run("check", "--no-such-option")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("raised", "code"), [(typer.Exit(3), 3), (InputError("no"), 2), (KeyboardInterrupt(), 130), (None, 0)]
)
def test_exit_codes(raised: BaseException | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def one() -> None:
        if raised is not None:
            raise raised

    monkeypatch.setattr(command, "app", app)
    monkeypatch.setattr(sys, "argv", ["sammed3d-ft"])
    with pytest.raises(SystemExit) as end:
        command.main()
    assert (end.value.code or 0) == code


def test_a_fault_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def one() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(command, "app", app)
    monkeypatch.setattr(sys, "argv", ["sammed3d-ft"])
    with pytest.raises(ZeroDivisionError):
        command.main()
