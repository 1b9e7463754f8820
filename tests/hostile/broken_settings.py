"""Broken configs and arguments, odd names, and disks that are full or closed."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tests.hostile import files
from tests.hostile.command_lines import (
    BUILD,
    COHORT,
    EVALUATE,
    EXPORT,
    IMPORT,
    MAKE,
    PHANTOM,
    PREDICT,
    PROPOSE,
    TRAIN,
    Words,
    case,
    dicom,
    line,
    manifest_of,
    pet_case,
)
from tests.hostile.files import Make, content, directory, good_clicks, good_mask, good_pet
from tests.hostile.harness import Input


def config_inputs() -> Iterator[Input]:
    texts: dict[str, Any] = {
        "empty": "",
        "list": "[1]",
        "number": "3",
        "tabs": "run:\n\t- a",
        "bytes": b"\xff\xfe\x00",
        "control characters": "run: \x01",
        "cut": "run: {dir: ",
        "anchors": "a: &a [*a]\nrun: *a",
        "deep": "[" * 20_000,
        "laughs": "a: &a [x,x,x,x,x,x,x,x,x]\n"
        + "".join(f"{chr(98 + n)}: &{chr(98 + n)} [{','.join([f'*{chr(97 + n)}'] * 9)}]\n" for n in range(8)),
        "code": "run: !!python/object/apply:os.system ['touch /tmp/hostile_yaml_ran']",
        "twice": "run: {dir: a}\nrun: {dir: b}",
        "number as key": "1: 2",
        "null sections": "run:\ndata:\nmodel:",
        "date": "run: {dir: 2020-01-01}\ndata: {manifest: 2020-01-01}",
    }
    for name, text in texts.items():
        words = line("finetune.py --config @config", config=content("c.yaml", text))
        yield Input(f"config: {name}", "config", words, says="error: .*c.yaml")
        if name in ("empty", "list", "bytes", "tabs", "deep", "code", "null sections", "laughs"):
            words = line("benchmark @config", config=content("b.yaml", text))
            yield Input(f"benchmark: {name}", "config", words, says="error: .*b.yaml")
    overrides = {
        "epochs of nan": "optim.epochs=.nan",
        "negative epochs": "optim.epochs=-1",
        "epochs of text": "optim.epochs=many",
        "huge epochs": "optim.epochs=1e400",
        "batch of zero": "optim.batch_size=0",
        "rate of infinity": "optim.lr_decoder=.inf",
        "negative rate": "optim.lr_decoder=-1",
        "rate of nan": "optim.lr_decoder=.nan",
        "unknown key": "optim.epoch=3",
        "unknown section": "optimiser.epochs=3",
        "section as value": "optim=3",
        "path through a value": "run.dir.x=3",
        "no value": "optim.epochs",
        "no key": "=3",
        "bad value": "optim.epochs={",
        "rounds of zero": "clicks.rounds=0",
        "method": "tune.method=magic",
        "negative spacing": "model.spacing_mm=-1",
        "spacing of nan": "model.spacing_mm=.nan",
        "modality": "data.modalities=[MR]",
        "manifest of list": "data.manifest=[1]",
        "seed of text": "run.seed=x",
        "workers": "data.workers=-3",
        "variant": "model.variant=sam3",
        "connectivity": "data.connectivity=7",
    }
    for name, override in overrides.items():
        words = line(f"{TRAIN} {override}", manifest=lambda folder: folder / "m.json")
        yield Input(f"override: {name}", "config", words, says="error: ")
    for name, path in (("missing", "gone.yaml"), ("folder", "."), ("endless", "/dev/zero"), ("null byte", "a\0b")):
        yield Input(f"config: {name}", "config", line(f"finetune.py --config {path}"), says="error: ")


def argument_inputs() -> Iterator[Input]:
    def compare(text: Any) -> Words:
        def results(name: str) -> Make:
            def make(folder: Path) -> Path:
                content(f"{name}/cases.csv", "case,dice\na,0.5\n")(folder)
                return content(f"{name}/summary.json", text)(folder).parent

            return make

        return line("compare @one @two --out ./compared", one=results("one"), two=results("two"))

    cases: dict[str, str | Words] = {
        "strategy": MAKE + " --strategy psychic",
        "connectivity": MAKE + " --connectivity 5",
        "negative clicks": MAKE + " --clicks-per-lesion -1",
        "no clicks": MAKE + " --clicks-per-lesion 0",
        "negative negatives": MAKE + " --negatives -5",
        "seed of autopet": MAKE + " --seed 1099511627776 --strategy autopet --pet good_pet.nii.gz",
        "format": MAKE + " --to docx",
        "autopet without PET": MAKE + " --strategy autopet",
        "negative strategy": MAKE + " --negatives 1 --negative-strategy magic",
        "SUV of nan": PROPOSE + " --suv nan",
        "SUV of infinity": PROPOSE + " --suv inf",
        "negative SUV": PROPOSE + " --suv -4",
        "minimum of nan": PROPOSE + " --min-ml nan",
        "maximum below minimum": PROPOSE + " --max-ml 0.001",
        "separation of nan": PROPOSE + " --separation-mm nan",
        "negative separation": PROPOSE + " --separation-mm -1",
        "grid of zero": PROPOSE + " --grid-mm 0",
        "grid of nan": PROPOSE + " --grid-mm nan",
        "grid of a hair": PROPOSE + " --grid-mm 1e-300",
        "spacing of zero": PREDICT + " --spacing-mm 0",
        "spacing of nan": PREDICT + " --spacing-mm nan",
        "spacing of a hair": PREDICT + " --spacing-mm 1e-9",
        "spacing of ages": PREDICT + " --spacing-mm 1e9",
        "device": PREDICT + " --device quantum",
        "device number": PREDICT + " --device cuda:99",
        "out format": PREDICT + " --instances ./i.docx",
        "out is a folder": line(PREDICT + " --table @table", table=directory("table.csv")),
        "probability format": PREDICT + " --probability ./p.png",
        "base without adapter": PREDICT + " --base mini",
        "CT for a PET model": PREDICT + " --ct @pet",
        "no cases": PHANTOM + " ./phantoms --cases 0",
        "negative cases": PHANTOM + " ./phantoms --cases -3",
        "tracer": PHANTOM + " ./phantoms --tracer water",
        "field": PHANTOM + " ./phantoms --field moon",
        "scanner": PHANTOM + " ./phantoms --scanner eye",
        "volume of nan": PHANTOM + " ./phantoms --lesion-ml nan",
        "volume of zero": PHANTOM + " ./phantoms --lesion-ml 0",
        "volume of infinity": PHANTOM + " ./phantoms --lesion-ml inf",
        "outline": PHANTOM + " ./phantoms --outline 200%",
        "outline of nan": PHANTOM + " ./phantoms --outline nan%",
        "negative phantom seed": PHANTOM + " ./phantoms --seed -1",
        "foreground": EVALUATE + " ./scores --foreground -1",
        "foreground of superscript": EVALUATE + " ./scores --foreground \u00b2",
        "scoring rule": EVALUATE + " ./scores --compat mine",
        "evaluation connectivity": EVALUATE + " ./scores --connectivity 7",
        "split without manifest": EVALUATE + " ./scores --split test",
        "PET missing": EVALUATE + " ./scores --pet gone.nii.gz",
        "comparison of null": compare("null"),
        "comparison of noise": compare(b"\xff\xfe"),
        "comparison of half": compare('{"configuration": {}}'),
        "comparison of lists": compare('{"cases": [], "metrics": []}'),
        "comparison with itself": "compare ./ --out ./compared",
        "repository": "weights fetch --out ./w.pth --repo ../../etc",
        "repository of nothing": "weights fetch --out ./w.pth --repo ''",
        "push nothing": "weights push gone.safetensors owner/name",
        "push a pickle": line("weights push @given owner/name", given=content("w.pth", b"x")),
        "push to nowhere": line("weights push @given ../name", given=content("w.safetensors", files.MINI)),
        "made": EXPORT + " --made BY_MAGIC",
        "view nothing": "view --no-browser",
        "view both": "view @pet --manifest ./m.json --no-browser",
        "select nothing": "prompts select @clicks keep:o.json --lesions ' , '",
        "select the unknown": "prompts select @clicks keep:o.json --lesions \u0662,99",
    }
    for name, words in cases.items():
        words = line(words) if isinstance(words, str) else words
        yield Input(f"argument: {name}", "argument", words, says="error: ", writes=("scores/.lock",))


@contextlib.contextmanager
def _full_disk(_: Path, size: int = 600) -> Iterator[None]:
    """No file can grow beyond some bytes, which answers a write as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@contextlib.contextmanager
def _without_permission(folder: Path) -> Iterator[None]:
    """Another user, who may read the folder but for `secret*`, and write nothing in `closed`."""
    for path in folder.rglob("secret*"):
        path.chmod(0)
    for path in folder.rglob("closed"):
        path.chmod(0o555)
    # Not closed again, because another process may be using them; pytest closes them when it starts.
    for parent in folder.parents:
        if parent.owner() == "root" and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o055)
    folder.chmod(0o755)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for path in folder.rglob("secret*"):
            path.chmod(0o755 if path.is_dir() else 0o644)


def _moved(make: Make, name: str) -> Make:
    return lambda folder: make(folder).rename(folder / name)


_UNREADABLE = {
    "image": (PREDICT.replace("@pet", "@bad"), "bad.nii.gz"),
    "plain image": (PREDICT.replace("@pet", "@bad"), "bad.nii"),
    "NRRD": (MAKE.replace("@mask", "@bad"), "bad.nrrd"),
    "clicks": (PREDICT.replace("@clicks", "@bad"), "bad.json"),
    "checkpoint": (PREDICT.replace("@checkpoint", "@bad"), "bad.safetensors"),
    "pickled checkpoint": ("weights inspect @bad", "bad.pth"),
    "manifest": ("check @bad", "bad.json"),
    "image in a cohort": ("check @manifest", "bad.nii.gz"),
    "config": ("finetune.py --config @bad", "bad.yaml"),
    "benchmark": ("benchmark @bad", "bad.yaml"),
    "evaluated mask": ("evaluate --pred @bad --gt @mask --out ./scores --no-figures", "bad.nii.gz"),
}


def disk_inputs() -> Iterator[Input]:
    full = {
        "predict": PREDICT,
        "import": IMPORT,
        "export-seg": EXPORT,
        "make": MAKE + " --clicks-per-lesion 40 --strategy uniform",
        "convert weights": "weights convert mini ./w.safetensors",
        "evaluate": EVALUATE + " ./s --no-figures",
        "manifest": BUILD.format("@many --pattern {id}.nii.gz"),
        "phantom": PHANTOM + " ./p --field pelvis",
        "figure": PREDICT + " --figure keep:f.png",
        "table": PREDICT + " --table keep:t.csv",
        "cohort": COHORT,
        "convert clicks": "prompts convert @many_clicks keep:c.json --image @pet --to voxel",
        "select clicks": "prompts select @many_clicks keep:c.json --lesions 1",
    }
    for name, text in full.items():
        yield Input(
            f"full disk: {name}",
            "disk",
            line(
                text,
                many=_many_files,
                many_clicks=content("many.json", files.click_text([files.POINT] * 50)),
                mask=_seg_mask if name == "export-seg" else good_mask,
                manifest=manifest_of(_clicked_case),
            ),
            says="cannot be written|File too large|No space",
            around=_full_disk,
            code=(2, 3) if name in ("evaluate", "cohort") else 2,
            # Files that were complete before the disk was full stay.
            writes=("out.nii.gz", "t.csv", "p/*", "p/*/*", "imported/*", "s/*", "s/*/*", "cohort/*", "cohort/*/*"),
        )

    for name, (text, file) in _UNREADABLE.items():
        # Reading this file is an input/output error (EIO), as on a failing disk.
        bad = files.linked(file, "/proc/self/mem")
        manifest = manifest_of(lambda folder, bad=bad: [pet_case(folder, bad(folder))])
        code = (2, 3) if name == "evaluated mask" else 2
        words = line(text, bad=bad, manifest=manifest)
        yield Input(f"failing disk: {name}", "disk", words, code, "bad|1 error", writes=("scores/*", "scores/*/*"))

    pet = _moved(good_pet, "secret.nii.gz")
    secret: dict[str, Words] = {
        "image": line(PREDICT, pet=pet),
        "clicks": line(PREDICT, clicks=_moved(good_clicks, "secret.json")),
        "checkpoint": line(PREDICT, checkpoint=content("secret.safetensors", files.MINI)),
        "manifest": line("check @manifest", manifest=content("secret.json", "{}")),
        "config": line("finetune.py --config @config", config=content("secret.yaml", "run: {}")),
        "benchmark": line("benchmark @config", config=content("secret.yaml", "rows: {}")),
        "DICOM": line(IMPORT, dicom=lambda folder: dicom(folder, "secret")),
        "table": line("manifest build @table --out ./m.json", table=content("secret.csv", "id,PT")),
        "image in a cohort": line(
            "check @manifest", manifest=manifest_of(lambda folder: [pet_case(folder, pet(folder))])
        ),
    }
    for name, words in secret.items():
        says = "manifest.json: 1 error" if "cohort" in name else "secret"
        yield Input(f"no permission to read: {name}", "permission", words, says=says, around=_without_permission)

    unwritable = {
        "make": "prompts make @mask --out @closed/c.json",
        "predict": "predict --image @pet --clicks @clicks --checkpoint mini --out @closed/m.nii.gz",
        "import": "import @dicom --out @closed/in",
        "evaluate": EVALUATE + " @closed/s",
        "view": "view @pet --no-browser --out @closed/v",
        "convert weights": "weights convert mini @closed/w.safetensors",
        "phantom": PHANTOM + " @closed/p",
        "train": TRAIN.replace("./run", "@closed/run"),
    }
    manifest = manifest_of(lambda folder: [case(folder, split="train"), _second_case(folder)])
    for name, text in unwritable.items():
        words = line(text, manifest=manifest)
        yield Input(f"no permission to write: {name}", "permission", words, says="closed", around=_without_permission)


def _clicked_case(folder: Path) -> list[dict[str, Any]]:
    good_clicks(folder).rename(folder / "a.json")
    return [case(folder)]


def _second_case(folder: Path) -> dict[str, Any]:
    pet, label = files.save_nifti(folder / "b.nii.gz", files.SUV), files.save_nifti(folder / "b_l.nii.gz", files.MASK)
    return {"id": "b", "images": {"PT": str(pet)}, "label": str(label), "split": "val"}


def _seg_mask(folder: Path) -> Path:
    mask = np.zeros((5, 4, 6), np.uint8)
    mask[1:3, 1:3, 2] = 1
    return files.save_nifti(
        folder / "m.nii.gz", mask, np.array([[-2, 0, 0, 10], [0, -4, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1.0]])
    )


def _many_files(folder: Path) -> Path:
    for number in range(20):
        content(f"many/case_{number}.nii.gz", "")(folder)
    return folder / "many"


def name_inputs() -> Iterator[Input]:
    """Names that are odd but allowed: everything works."""
    names = {
        "Chinese": "\u60a3\u8005 1",
        "Arabic": "\u0645\u0631\u064a\u0636",
        "emoji": "\U0001f9ea",
        "combining": "e\u0301a\u0308",
        "spaces": " a  b ",
        "markup": "[red]x[bold]",
        "percent": "%s %d %(a)s",
        "braces": "{id} {0}",
        "quotes": "a'b\"c",
        "not text": os.fsdecode(b"scan\xff\xfe"),
        "line break": "a\nb",
        "dash": "-x",
        "long": "n" * 150,
        "tab": "a\tb",
    }
    for name, text in names.items():

        def image(folder: Path, text: str = text) -> Path:
            (folder / text).mkdir()
            return good_mask(folder).rename(folder / text / "good_mask.nii.gz")

        def clicks(folder: Path, text: str = text) -> Path:
            return folder / text / f"{text[:60]}.json"

        made = line("prompts make @image --out @clicks", image=image, clicks=clicks)
        gone = line("prompts make @place/gone.nii.gz --out ./o.json", place=lambda folder, text=text: folder / text)
        yield Input(f"name: {name}", "name", made, code=0)
        yield Input(f"name of a missing file: {name}", "name", gone, says="no such file")
    for name, text, command in (
        ("predicted", "\u60a3 [b] %s", COHORT),
        ("checked", "\u60a3 [b] %s", "check @manifest"),
        ("not text", "a\udcffb", "check @manifest"),
    ):

        def named(folder: Path, text: str = text) -> list[dict[str, Any]]:
            good_clicks(folder).rename(folder / f"{text}.json")
            return [case(folder, text)]

        yield Input(f"name: of a case, {name}", "name", line(command, manifest=manifest_of(named)), code=0)
