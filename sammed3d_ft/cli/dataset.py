"""Commands for data sets: `manifest build` creates a manifest, `check` checks every file in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from sammed3d_ft.dataset.check import CheckReport
    from sammed3d_ft.dataset.manifest import Case

manifest_app = typer.Typer(help="Create manifests, which list the files and split of each case.", no_args_is_help=True)


@manifest_app.command("build")
def build(
    source: Annotated[Path, typer.Argument(help="nnU-Net raw folder, MONAI datalist, CSV table, or any folder.")],
    out: Annotated[Path, typer.Option(help="Manifest to write (.json).")],
    form: Annotated[str, typer.Option(help="Format: auto, nnunet, monai, csv or folders.")] = "auto",
    pattern: Annotated[
        str | None,
        typer.Option(help="folders: path of the PET, such as '{id}/PET.nii.gz' or '{group}/{id}/SUV.nii.gz'."),
    ] = None,
    label: Annotated[str | None, typer.Option(help="folders: path of the label, with the same placeholders.")] = None,
    ct: Annotated[
        str | None, typer.Option(help="folders: path of the CT, with the same placeholders; optional per case.")
    ] = None,
    channels: Annotated[
        str | None,
        typer.Option(help="nnunet, monai: modality of each channel, such as CT,PT; - skips a channel."),
    ] = None,
    group_pattern: Annotated[
        str | None,
        typer.Option(help="Regular expression for the case ID; its first group is the patient: '(.+)_.+'."),
    ] = None,
    splits: Annotated[
        Path | None, typer.Option(help="JSON file with splits, such as nnU-Net's splits_final.json.")
    ] = None,
    split_key: Annotated[str | None, typer.Option(help="Entry of the splits file to use.")] = None,
    fold: Annotated[int | None, typer.Option(help="Fold of the splits file or datalist to use as val.")] = None,
    val_fraction: Annotated[float, typer.Option(help="Without splits: fraction of cases for val.")] = 0.15,
    test_fraction: Annotated[
        float | None,
        typer.Option(help="Without splits: fraction for test (default: 0.15, or 0 if there is a test set)."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Without splits: seed of the random splits.")] = 0,
) -> None:
    """Create a manifest from a data set.

    Splits come from --splits, otherwise from the data set. If neither has splits, they are drawn at random, keeping
    each patient's cases together. Patients are read from autoPET's case IDs or with --group-pattern.
    """
    from sammed3d_ft.dataset.manifest import write_manifest
    from sammed3d_ft.dataset.splits import assign_splits, random_splits, read_splits

    cases = _cases(source, form, pattern, label, ct, channels, fold if splits is None else None, group_pattern)
    if splits is not None:
        cases = assign_splits(cases, read_splits(splits, split_key, fold))
    elif any(case.split is None for case in cases):
        if test_fraction is None:
            test_fraction = 0.0 if any(case.split == "test" for case in cases) else 0.15
        cases = random_splits(cases, seed, val_fraction, test_fraction)
    write_manifest(out, cases)
    _print_cases(out, cases)


def _cases(
    source: Path,
    form: str,
    pattern: str | None,
    label: str | None,
    ct: str | None,
    channels: str | None,
    fold: int | None,
    group_pattern: str | None,
) -> list[Case]:
    """The data set's cases; InputError for options that do not apply to its format."""
    from sammed3d_ft.dataset import builders
    from sammed3d_ft.errors import InputError

    form = builders.guess_form(source, pattern) if form == "auto" else form
    if form not in builders.FORMS:
        raise InputError(f"--form {form}: expected auto or one of {', '.join(builders.FORMS)}")
    unused = {
        "--pattern": pattern is not None and form != "folders",
        "--label": label is not None and form != "folders",
        "--ct": ct is not None and form != "folders",
        "--channels": channels is not None and form not in ("nnunet", "monai"),
        "--fold": fold is not None and form != "monai",
    }
    if any(unused.values()):
        names = ", ".join(name for name, given in unused.items() if given)
        raise InputError(f"{source}: {names} does not apply to the format {form}")
    modalities = channels.split(",") if channels is not None else None
    if form == "nnunet":
        cases = builders.from_nnunet(source, modalities)
    elif form == "monai":
        cases = builders.from_monai(source, modalities, fold)
    elif form == "csv":
        cases = builders.from_csv(source)
    else:
        if pattern is None:
            raise InputError(f"{source}: the format folders needs --pattern, such as '{{id}}/PET.nii.gz'")
        cases = builders.from_folders(source, pattern, label, ct)
    return builders.with_groups(cases, group_pattern)


def _print_cases(out: Path, cases: list[Case]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=str(out))
    for column in ("split", "cases", "patients", "PT", "CT", "labels"):
        table.add_column(column, justify="left" if column == "split" else "right")
    for split in ("train", "val", "test", None):
        chosen = [case for case in cases if case.split == split]
        if not chosen:
            continue
        patients = len({case.group or f"case {case.id}" for case in chosen})
        counts = [len(chosen), patients, *(sum(m in case.images for case in chosen) for m in ("PT", "CT"))]
        table.add_row(split or "not used", *map(str, counts), str(sum(case.label is not None for case in chosen)))
    Console().print(table)


def check(
    manifest: Annotated[Path, typer.Argument(help="Manifest to check.")],
    modality: Annotated[
        str, typer.Option(help="Required modalities, the one with the label's grid first: PT, CT or PT,CT.")
    ] = "PT",
    connectivity: Annotated[int, typer.Option(help="Connectivity of lesions: 6, 18 or 26.")] = 18,
) -> None:
    """Read every file of a manifest and list all problems. Exit code 2 if there are errors."""
    from sammed3d_ft.dataset.check import check_manifest
    from sammed3d_ft.dataset.manifest import read_manifest

    report = check_manifest(read_manifest(manifest), modality.split(","), connectivity=connectivity)
    _print_report(report)
    if report.errors:
        cases = len({error.case for error in report.errors if error.case})
        typer.echo(
            f"{manifest}: {len(report.errors)} errors, {cases} cases affected; correct or remove them",
            err=True,
        )
        raise typer.Exit(2)


def _print_report(report: CheckReport) -> None:
    import numpy as np
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console()
    if report.problems:
        table = Table(title="Findings")
        for column in ("case", "severity", "finding"):
            table.add_column(column, overflow="fold")
        for problem in (*report.errors, *report.warnings):
            colour = "red" if problem.severity == "error" else "yellow"
            table.add_row(escape(problem.case or "-"), f"[{colour}]{problem.severity}[/]", escape(problem.text))
        console.print(table)
    table = Table(title="Readable cases")
    for column in (
        "split",
        "cases",
        "without lesions",
        "lesions",
        "per case",
        "median ml",
        "voxel mm",
    ):
        table.add_column(column, justify="left" if column in ("split", "voxel mm") else "right")
    for split in ("train", "val", "test"):
        rows = [row for row in report.summaries if row.split == split]
        if not rows:
            continue
        counts = [row.lesions for row in rows if row.lesions is not None]
        volumes = [row.volume_ml for row in rows if row.volume_ml]
        spacing_mm = np.array([row.spacing_mm for row in rows])
        low, high = spacing_mm.min(0), spacing_mm.max(0)
        table.add_row(
            split,
            str(len(rows)),
            str(counts.count(0)),
            str(sum(counts)),
            f"{min(counts)} to {max(counts)}" if counts else "-",
            f"{np.median(volumes):.1f}" if volumes else "-",
            " x ".join(f"{a:.2f}" if b - a < 0.005 else f"{a:.2f}-{b:.2f}" for a, b in zip(low, high, strict=True)),
        )
    console.print(table)
    console.print(f"{len(report.errors)} errors, {len(report.warnings)} warnings")
