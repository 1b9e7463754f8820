"""`sammed3d-ft weights`: fetch published weights, push an export, inspect a checkpoint, convert to safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    help="Weights: download published ones, upload yours, inspect or convert a file.", no_args_is_help=True
)


@app.command()
def fetch(
    name: Annotated[
        str | None,
        typer.Argument(
            help="sam_med3d_turbo (the default), seganypet_v1, seganypet_v2 or seganypet_lesion.", show_default=False
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="File to write (default: weights/FILE).")] = None,
    repo: Annotated[str | None, typer.Option(help="Repository on the Hugging Face hub, instead of a name.")] = None,
    file: Annotated[str | None, typer.Option(help="File in the repository.")] = None,
    revision: Annotated[str, typer.Option(help="Branch, tag or commit.")] = "main",
    sha256: Annotated[str | None, typer.Option(help="Expected SHA-256; a mismatch is an error.")] = None,
) -> None:
    """Download weights from the Hugging Face hub and print their SHA-256. Source and licence are printed first.

    The name is then accepted where a weights file is expected: predict --checkpoint, model.weights in a config, a
    benchmark's checkpoint. Clipping, crop spacing and clicks are then as in the training of the weights.

    Run the command again to resume an interrupted download. An existing file is only verified. HF_ENDPOINT and
    HF_TOKEN are respected.
    """
    from sammed3d_ft.errors import InputError
    from sammed3d_ft.model.download import fetch as download
    from sammed3d_ft.model.published import PUBLISHED

    if name is not None and (repo is not None or file is not None):
        raise InputError(f"give either the name {name} or --repo and --file")
    if name is not None and name not in PUBLISHED:
        raise InputError(f"unknown weights {name!r}: expected {', '.join(PUBLISHED)}; or give --repo and --file")
    weights = PUBLISHED[name or "sam_med3d_turbo"]
    named = repo is None and file is None
    repo, file = repo or weights.repo, file or weights.file
    out = out or Path("weights") / Path(file).name
    typer.echo(f"source: https://huggingface.co/{repo}, {file}, revision {revision}")
    typer.echo(f"licence: {weights.licence if named else 'see there'}")
    if named:
        typer.echo(f"trained on: {weights.trained_on}")
    if named and out.name != file:
        typer.echo(f"{out.name}: rename it to {file}, so that it is recognised and its presets are applied")
    present = out.is_file()
    digest = download(out, repo, file, revision, sha256)
    typer.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB){' already exists' if present else ''}")
    typer.echo(f"SHA-256 {digest}{' as expected' if sha256 else ''}")


@app.command()
def push(
    path: Annotated[
        Path,
        typer.Argument(metavar="EXPORT", help="A run's export/model.safetensors, or the folder export/adapter."),
    ],
    repo: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the Hugging Face hub.")],
    private: Annotated[
        bool | None,
        typer.Option("--private/--public", help="Visibility of a new repository (default: the owner's)."),
    ] = None,
) -> None:
    """Upload an export or a LoRA adapter to the Hugging Face hub, with a model card if there is none.

    Its metadata are uploaded as well (`weights inspect` shows them). Then use it as --checkpoint hub:OWNER/NAME. Needs
    a write token: HF_TOKEN or `hf auth login`. HF_ENDPOINT is respected.
    """
    from sammed3d_ft.model.push import push_to_hub

    typer.echo(f"{push_to_hub(path, repo, private)}\nuse it as hub:{repo}")


@app.command()
def inspect(
    file: Annotated[Path, typer.Argument(help="Checkpoint, state dict, safetensors file, export folder, or a name.")],
) -> None:
    """Show the contents of a weights file: kind, variant, tensors, parameters by part. No code in it is run."""
    from collections import Counter

    from rich.console import Console
    from rich.table import Table

    from sammed3d_ft.model.weight_fit import PATCH_WEIGHT, recognise_variant
    from sammed3d_ft.model.weights import published_weights, read_state_dict
    from sammed3d_ft.provenance import file_hash, state_hash

    found = read_state_dict(file)
    parameters: Counter[str] = Counter()
    for name, tensor in found.state.items():
        parameters[name.split(".")[0]] += tensor.numel()
    types = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in found.state.values())
    variant = recognise_variant(found.state)

    table = Table(title=file.name, show_header=False, title_justify="left")
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    table.add_row("kind", found.kind)
    table.add_row("variant", variant or "unknown")
    published = published_weights(file)
    if published is not None and published.variant == variant:
        table.add_row("published as", f"{published.name}, {published.source}")
        table.add_row("licence", published.licence)
    if variant is not None:
        table.add_row("input channels", str(found.state[PATCH_WEIGHT].shape[1]))
    table.add_row("tensors", f"{len(found.state)} ({', '.join(f'{n} {t}' for t, n in types.most_common())})")
    table.add_row("parameters", f"{parameters.total():,}")
    # A foreign file may have one part per layer: list only the largest.
    for part, count in parameters.most_common(8):
        table.add_row(f"  {part}", f"{count:,}")
    for key, value in found.metadata.items():
        table.add_row(f"metadata {key}", value)
    if found.extra_keys:
        table.add_row("other keys", ", ".join(found.extra_keys))
    Console().print(table)
    # Printed outside the table, so that a narrow terminal does not wrap them.
    typer.echo(f"hash of tensors {state_hash(found.state)}")
    if file.is_file():
        typer.echo(f"SHA-256 of file {file_hash(file)}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Checkpoint, state dict or safetensors file.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="File to write.")],
    half: Annotated[bool, typer.Option(help="Store as float16: half the size, rounded to 3 digits.")] = False,
) -> None:
    """Write only the tensors of SAM-Med3D weights as safetensors."""
    from sammed3d_ft.errors import InputError
    from sammed3d_ft.model.weights import origin, read_whole_model, save_safetensors, weights_file
    from sammed3d_ft.prompted.pretrained import preset_metadata
    from sammed3d_ft.provenance import file_hash

    if out.suffix != ".safetensors":
        raise InputError(f"{out}: the output file must end in .safetensors")
    if out.exists():
        raise InputError(f"{out} already exists: remove it or choose another file")
    variant, found = read_whole_model(source)
    metadata = {"variant": variant, **origin(source), **preset_metadata(source, variant), **found.metadata}
    read = weights_file(source)
    metadata |= {"converted_from": read.name, "converted_from_sha256": file_hash(read)}
    state = {name: tensor.half() if half else tensor for name, tensor in found.state.items()}
    save_safetensors(out, state, metadata)
    typer.echo(f"{out}: {len(found.state)} tensors of {variant}, SHA-256 {file_hash(out)}")
