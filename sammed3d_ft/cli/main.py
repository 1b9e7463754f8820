"""The `sammed3d-ft` command: its sub-commands and exit codes.

Exit codes: 0 success, 2 invalid input (one line on stderr), 3 a cohort finished with some cases failed,
130 interrupted. Commands import their dependencies when they run, so that --help is fast.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from sammed3d_ft.cli import (
    benchmark,
    compare,
    dicom,
    evaluate,
    phantom,
    predict,
    predict_cohort,
    prompts,
    view,
    weights,
)
from sammed3d_ft.cli import (
    dataset as data,
)
from sammed3d_ft.errors import InputError

app = typer.Typer(
    name="sammed3d-ft",
    help="Fine-tune SAM-Med3D for lesions in PET/CT: data, clicks, masks, scores. Not for clinical use.",
    epilog="Training: accelerate launch finetune.py --config FILE key.path=value ...",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # bugs show a plain traceback
)
app.add_typer(data.manifest_app, name="manifest")
app.command("check")(data.check)
app.command("import")(dicom.import_dicom)
app.command("export-seg")(dicom.export_seg)
app.command("phantom")(phantom.phantom)
app.add_typer(prompts.app, name="prompts")
app.add_typer(weights.app, name="weights")
app.command("predict")(predict.predict)
app.command("predict-cohort")(predict_cohort.predict_cohort)
app.command("segment", hidden=True)(predict.predict)  # its name before automatic networks joined `predict`
app.command("view")(view.view)
app.command("evaluate")(evaluate.evaluate)
app.command("compare")(compare.compare)
app.command("benchmark")(benchmark.benchmark)


def _print_version(wanted: bool) -> None:
    if wanted:
        from sammed3d_ft import __version__

        typer.echo(f"sammed3d-ft {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the sub-command."""


def main() -> None:
    """Entry point of the console script: run the command and exit with its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may hold bytes that are not text
    try:
        app()
    except InputError as error:
        _fail(str(error))
    except OSError as error:  # such as a full disk, or a folder without permission
        _fail(f"{'' if error.filename is None else f'{error.filename}: '}{error.strerror or error}")
    except MemoryError as error:
        _fail(f"not enough memory ({error or 'no details'}); use smaller images or a machine with more memory")


def _fail(message: str) -> None:
    """Print the error on one line, although a file name may hold line breaks, and exit with code 2."""
    from sammed3d_ft.training.stopping import leave

    typer.echo(f"error: {' '.join(message.splitlines())}", err=True)
    leave(2)


if __name__ == "__main__":
    main()
