"""The hostile inputs: which command gets which file, and what it should answer."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from tests.hostile import files
from tests.hostile.files import Make, good_clicks, good_mask, good_pet
from tests.hostile.harness import Input
from tests.support.synthetic_dicom import write_enhanced, write_rtstruct, write_series

Words = Callable[[Path], tuple[object, ...]]
KEEP = "earlier result, which must survive"


def evaluation(folder: Path, scores: Path, *options: object) -> tuple[object, ...]:
    return ("evaluate", "--pred", good_mask(folder), "--gt", good_mask(folder), "--out", scores, *options)


def out(folder: Path, name: str) -> Path:
    """An output that exists already: a command that fails must leave it as it is."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(KEEP)
    return path


def predict(folder: Path, *more: object, pet: Path | None = None, clicks: Path | None = None, checkpoint: Any = "mini"):
    """A prediction on good files but for those given."""
    image = pet or good_pet(folder)
    given = ("--image", image, "--clicks", clicks or good_clicks(folder), "--checkpoint", checkpoint)
    return ("predict", *given, "--out", out(folder, "out.nii.gz"), *more)


def manifest_of(folder: Path, cases: list[dict[str, Any]]) -> Path:
    path = folder / "manifest.json"
    path.write_text(json.dumps({"version": 1, "cases": cases}))
    return path


def case(folder: Path, name: str = "a", split: str = "test", **changes: Any) -> dict[str, Any]:
    images, label = {"PT": str(good_pet(folder))}, str(good_mask(folder))
    return {"id": name, "images": images, "label": label, "split": split, "group": None} | changes


# One hostile image, at every place that takes an image.
def _image_commands() -> dict[str, Callable[[Path, Path], tuple[object, ...]]]:
    return {
        "predict": lambda folder, bad: predict(folder, pet=bad),
        "propose": lambda folder, bad: ("prompts", "propose", bad, "--out", out(folder, "p.json")),
        "make": lambda folder, bad: ("prompts", "make", bad, "--out", out(folder, "c.json")),
        "start": lambda folder, bad: predict(folder, "--start", bad),
        "convert": lambda folder, bad: (
            "prompts",
            "convert",
            good_clicks(folder),
            out(folder, "c.json"),
            "--image",
            bad,
            "--to",
            "voxel",
        ),
        "check": lambda folder, bad: ("check", manifest_of(folder, [case(folder, images={"PT": str(bad)})])),
        "evaluate": lambda folder, bad: (
            "evaluate",
            "--pred",
            bad,
            "--gt",
            good_mask(folder),
            "--out",
            folder / "scores",
            "--no-figures",
        ),
        "view": lambda folder, bad: ("view", bad, "--no-browser", "--out", folder / "view"),
        "export-seg": lambda folder, bad: _export(folder, bad),
    }


def _export(folder: Path, bad: Path) -> tuple[object, ...]:
    write_series(folder / "dicom")
    return ("export-seg", bad, "--source", folder / "dicom", "--out", out(folder, "seg.dcm"))


# These read headers only, so damage behind them is not theirs to find; `view` would serve such a scan.
_IN_VOXELS = {
    "cut_before_checksum.nii.gz",
    "wrong_checksum.nii.gz",
    "flipped_bit.nii.gz",
    "cut_in_voxels.nii.gz",
    "bomb_behind.nii.gz",
    "nan.nii.gz",
    "infinite.nii.gz",
    "gzip_of_noise.nrrd",
    "bomb.nrrd",
    "slope_of_infinity.nii",
    "offset_of_nan.nii",
    "negative_offset.nii",
    "elsewhere.nrrd",
    "bomb_in_header.nii.gz",
}


def image_inputs() -> Iterator[Input]:
    commands = _image_commands()
    turn = itertools.cycle(commands)
    for name, make in files.IMAGES.items():
        chosen = {"predict", next(turn), next(turn)}
        for command in sorted(chosen):
            if command in ("convert", "view") and name in _IN_VOXELS:
                command = "make" if "make" not in chosen else "propose"
                if command in chosen:
                    continue
            says = {"check": "manifest.json: 1 errors", "evaluate": name[:8] + "|failed"}
            yield Input(
                f"{command}: {name}",
                "image",
                lambda folder, make=make, command=command: commands[command](folder, make(folder)),  # type: ignore[misc]
                code=(2, 3) if command == "evaluate" else 2,
                says=says.get(command, "error: .*" + ("x" * 50 if name == "long name" else name[:8])),
            )


def click_inputs() -> Iterator[Input]:
    for number, (name, make) in enumerate(files.CLICKS.items()):

        def words(folder: Path, make: Make = make, number: int = number) -> tuple[object, ...]:
            bad = make(folder)
            if number % 3 == 0:
                return ("prompts", "convert", bad, out(folder, "o.json"), "--image", good_pet(folder))
            if number % 3 == 1:
                return ("prompts", "select", bad, out(folder, "o.json"), "--lesions", "1", "--image", good_pet(folder))
            return predict(folder, clicks=bad)

        yield Input(f"clicks: {name}", "click file", words, says=f"error: .*{name[:8]}")
    yield Input(
        "30,000 clicks and an empty one",
        "click file",
        lambda folder: predict(
            folder, clicks=files.content("many.json", files._ours([files._POINT] * 30_000 + [{}]))(folder)
        ),
        says="many.json: point 30001",
    )


def checkpoint_inputs() -> Iterator[Input]:
    for number, (name, make) in enumerate(files.CHECKPOINTS.items()):

        def words(folder: Path, make: Make = make, number: int = number) -> tuple[object, ...]:
            bad = make(folder)
            if number % 3 == 1 and "adapter" not in bad.name and "nan" not in bad.name:
                return ("weights", "inspect", bad)
            if number % 3 == 2 and "adapter" not in bad.name:
                return ("weights", "convert", bad, folder / "o.safetensors")
            return predict(folder, *(["--base", "mini"] if "adapter" in bad.name else []), checkpoint=bad)

        says = "error: .*(" + name.replace(" ", "_")[:7] + ")"
        code = 0 if number % 3 == 1 and name.startswith(("half", "unfit")) else 2
        yield Input(f"checkpoint: {name}", "checkpoint", words, code=code, says=says)
    refused = files.CHECKPOINTS["code.pth"]
    yield Input(
        "checkpoint: code in a cohort",
        "checkpoint",
        lambda folder: (
            "predict-cohort",
            manifest_of(folder, [case(folder)]),
            "--clicks",
            folder,
            "--checkpoint",
            refused(folder),
            "--out",
            folder / "cohort",
        ),
        says="code.pth was rejected without running any of its code",
    )


def manifest_inputs() -> Iterator[Input]:
    texts = {
        "empty": "",
        "null": "null",
        "list": "[]",
        "bytes": b"\xff\xfe\x00",
        "deep": "[" * 100_000,
        "no cases": '{"version": 1}',
        "cases of text": '{"version": 1, "cases": "all"}',
        "version": '{"version": 99, "cases": []}',
        "cut": '{"version": 1, "cases": [',
        "entry of null": '{"version": 1, "cases": [null]}',
        "id of number": '{"version": 1, "cases": [{"id": 4}]}',
        "no images": '{"version": 1, "cases": [{"id": "a"}]}',
        "images of list": '{"version": 1, "cases": [{"id": "a", "images": []}]}',
        "modality": '{"version": 1, "cases": [{"id": "a", "images": {"MR": "x"}}]}',
        "path of number": '{"version": 1, "cases": [{"id": "a", "images": {"PT": 3}}]}',
        "path of null byte": '{"version": 1, "cases": [{"id": "a", "images": {"PT": "\\u0000.nii"}, "split": "test"}]}',
        "label of list": '{"version": 1, "cases": [{"id": "a", "images": {"PT": "x"}, "label": []}]}',
        "unknown field": '{"version": 1, "cases": [{"id": "a", "images": {"PT": "x"}, "mask": "y"}]}',
        "no case at all": '{"version": 1, "cases": []}',
        "long number": '{"version": ' + "9" * 10_000 + "}",
    }
    commands = itertools.cycle(["check", "predict-cohort", "evaluate", "view", "train"])
    for name, text in texts.items():

        def words(folder: Path, text: Any = text, command: str = next(commands)) -> tuple[object, ...]:
            bad = files.content("manifest.json", text)(folder)
            return _manifest_command(folder, bad, command)

        yield Input(f"manifest: {name}", "manifest", words, says="error: .*manifest.json|a .*no images")

    def entries(
        name: str, says: str, cases: Callable[[Path], list[dict[str, Any]]], command: str = "check", code: int = 2
    ):
        return Input(
            f"manifest: {name}",
            "manifest",
            lambda folder: _manifest_command(folder, manifest_of(folder, cases(folder)), command),
            code,
            says,
            ("cohort/*", "cohort/*/*", "scores/*", "scores/*/*"),
        )

    yield entries("id with a path", "must not contain", lambda folder: [case(folder, "../../x")])
    yield entries(
        "id with a path, predicted", "must not contain", lambda folder: [case(folder, "../x")], "predict-cohort", 2
    )
    yield entries("id twice", "errors", lambda folder: [case(folder), case(folder)])
    yield entries(
        "patient in two splits",
        "error",
        lambda folder: [case(folder, "a", "train", group="p"), case(folder, "b", "test", group="p")],
    )
    yield entries("unknown split", "1 error", lambda folder: [case(folder, split="training")])
    yield entries("image is the label", "error", lambda folder: [case(folder, images={"PT": str(good_mask(folder))})])
    yield entries("files missing", "error", lambda folder: [case(folder, images={"PT": "gone.nii"}, label="gone2.nii")])
    yield entries("unknown split asked", "no cases? (of|in) split", lambda folder: [], "predict-cohort")
    yield entries(
        "10,000 cases without files",
        "20000 errors, 10000 cases",
        lambda folder: [
            {"id": f"c{n}", "images": {"PT": f"{n}.nii.gz"}, "label": f"{n}_label.nii.gz", "split": "train"}
            for n in range(10_000)
        ],
    )
    yield entries(
        "10,000 cases without clicks",
        "10000 failed",
        lambda folder: [{"id": f"c{n}", "images": {"PT": f"{n}.nii.gz"}, "split": "test"} for n in range(10_000)],
        "predict-cohort",
        3,
    )
    yield entries("10,000 wrong entries", r"10000 wrong entries: entry 0.*and 9980 more", lambda folder: [{}] * 10_000)  # type: ignore[list-item]
    yield entries(
        "10,000 cases in training",
        "20000 errors|10000",
        lambda folder: [
            {"id": f"c{n}", "images": {"PT": f"{n}.nii.gz"}, "label": f"{n}_l.nii.gz", "split": "train"}
            for n in range(10_000)
        ],
        "train",
    )

    builds: dict[str, Callable[[Path], tuple[object, ...]]] = {
        "nothing there": lambda folder: (folder / "gone",),
        "a file": lambda folder: (good_pet(folder),),
        "empty folder": lambda folder: (files.directory("empty")(folder),),
        "datalist of null": lambda folder: (files.content("d.json", "null")(folder),),
        "datalist of numbers": lambda folder: (files.content("d.json", '{"training": [1, 2]}')(folder),),
        "datalist with odd channels": lambda folder: (
            files.content("d.json", '{"training": ["x"], "modality": {"a": "CT"}}')(folder),
        ),
        "datalist with null channels": lambda folder: (
            files.content("d.json", '{"training": ["x"], "modality": {"0": null}}')(folder),
        ),
        "table of bytes": lambda folder: (files.content("d.csv", b"\xff\xfe\x00id,PT")(folder),),
        "table with null bytes": lambda folder: (files.content("d.csv", "id,PT\na,\0\n")(folder),),
        "empty table": lambda folder: (files.content("d.csv", "")(folder),),
        "table of one cell": lambda folder: (files.content("d.csv", "id,PT\n" + "x" * 200_000 + ",y\n")(folder),),
        "ragged table": lambda folder: (files.content("d.csv", "id,PT,label\na\nb,c,d,e,f\n")(folder),),
        "odd pattern": lambda folder: (good_pet(folder).parent, "--pattern", "{x}/a.nii"),
        "pattern without id": lambda folder: (good_pet(folder).parent, "--pattern", "*.nii.gz"),
        "broken group pattern": lambda folder: (
            good_pet(folder).parent,
            "--pattern",
            "{id}.nii.gz",
            "--group-pattern",
            "((",
        ),
        "splits of null": lambda folder: (
            good_pet(folder).parent,
            "--pattern",
            "{id}.nii.gz",
            "--splits",
            files.content("s.json", "null")(folder),
        ),
        "splits of numbers": lambda folder: (
            good_pet(folder).parent,
            "--pattern",
            "{id}.nii.gz",
            "--splits",
            files.content("s.json", "[1]")(folder),
            "--fold",
            0,
        ),
        "fractions of nan": lambda folder: (
            good_pet(folder).parent,
            "--pattern",
            "{id}.nii.gz",
            "--val-fraction",
            "nan",
        ),
        "negative seed": lambda folder: (
            good_pet(folder).parent,
            "--pattern",
            "{id}_pet.nii.gz",
            "--label",
            "{id}_mask.nii.gz",
            "--seed",
            "-1",
            "--val-fraction",
            "0.1",
            "--test-fraction",
            "0",
        ),
        "format": lambda folder: (good_pet(folder), "--form", "bids"),
    }
    for name, given in builds.items():
        yield Input(
            f"build: {name}",
            "manifest",
            lambda folder, given=given: ("manifest", "build", *given(folder), "--out", out(folder, "m.json")),  # type: ignore[misc]
            says="error: ",
        )

    def cyclic(folder: Path) -> tuple[object, ...]:
        (folder / "data").mkdir()
        (folder / "data" / "again").symlink_to(folder / "data")
        return ("manifest", "build", folder / "data", "--pattern", "{id}/PET.nii.gz", "--out", out(folder, "m.json"))

    yield Input("build: folder that contains itself", "links", cyclic, says="no file matches")


def _manifest_command(folder: Path, manifest: Path, command: str) -> tuple[object, ...]:
    if command == "check":
        return ("check", manifest)
    if command == "view":
        return ("view", "--manifest", manifest, "--no-browser", "--out", folder / "view")
    if command == "evaluate":
        return ("evaluate", "--pred", folder, "--gt", manifest, "--out", folder / "scores")
    if command == "train":
        return (
            "finetune.py",
            "--config",
            "configs/mini.yaml",
            f"data.manifest={manifest}",
            f"run.dir={folder / 'run'}",
        )
    asked = ("--split", "nightly") if not json_cases(manifest) else ()
    return ("predict-cohort", manifest, "--clicks", folder, "--checkpoint", "mini", "--out", folder / "cohort", *asked)


def json_cases(manifest: Path) -> bool:
    try:
        return bool(json.loads(manifest.read_text())["cases"])
    except Exception:
        return True


def replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data, old
    return data.replace(old, new)


def dicom_inputs() -> Iterator[Input]:
    def changed(edit: Callable[[int, Dataset], object], says: str, **attributes: Any) -> tuple[Words, str]:
        def words(folder: Path) -> tuple[object, ...]:
            write_series(folder / "dicom", change=lambda number, one: edit(number, one) and None, **attributes)
            return _import(folder)

        return words, says

    def patched(edit: Callable[[bytes], bytes], says: str, all_of_them: bool = False) -> tuple[Words, str]:
        def words(folder: Path) -> tuple[object, ...]:
            write_series(folder / "dicom")
            for path in sorted((folder / "dicom").iterdir())[: None if all_of_them else 1]:
                path.write_bytes(edit(path.read_bytes()))
            return _import(folder)

        return words, says

    def setting(keyword: str, value: object) -> Callable[[int, Dataset], None]:
        return lambda _, one: setattr(one, keyword, value)

    def region(contour: list[float], says: str) -> tuple[Words, str]:
        def words(folder: Path) -> tuple[object, ...]:
            write_series(folder / "dicom")
            write_rtstruct(folder / "dicom" / "rt.dcm", {"GTV": [np.array(contour, float).reshape(-1, 3)]})
            return (*_import(folder), "--roi", "GTV")

        return words, says

    def enhanced(
        edit: Callable[[Dataset, list[Dataset]], object] | None, says: str, **attributes: Any
    ) -> tuple[Words, str]:
        def words(folder: Path) -> tuple[object, ...]:
            change = None if edit is None else (lambda one, frames: edit(one, frames) and None)
            write_enhanced(folder / "dicom" / "pet.dcm", change=change, **attributes)
            return _import(folder)

        return words, says

    def only(make: Make, says: str) -> tuple[Words, str]:
        def words(folder: Path) -> tuple[object, ...]:
            (folder / "dicom").mkdir()
            make(folder / "dicom")
            return _import(folder)

        return words, says

    half = bytes(128) + b"DICM"
    cases: dict[str, tuple[Words, str]] = {
        "empty folder": only(lambda folder: folder, "contains no DICOM files"),
        "other files": only(files.content("a.dcm", "text"), r"contains no DICOM files \(1 others\)"),
        "header only": only(files.content("a.dcm", half), "dicom"),
        "noise after the header": only(
            files.content("a.dcm", half + bytes(range(256)) * 9), "a.dcm|no DICOM files|series"
        ),
        "zeros after the header": only(files.content("a.dcm", half + bytes(5000)), "a.dcm|no DICOM files|series"),
        "cyclic link": only(files.linked("a.dcm", "a.dcm"), "contains no DICOM files"),
        "endless file": only(files.linked("a.dcm", "/dev/zero"), "contains no DICOM files"),
        "cut in the header": patched(lambda data: data[:400], "cannot be read|different|no DICOM|series"),
        "cut in the pixels": patched(lambda data: data[:-7], "pixels stored as"),
        "no pixels": changed(lambda _, one: delattr(one, "PixelData"), "pixels stored as"),
        "compressed in name only": patched(
            lambda data: replaced(data, b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"),
            "RLE Lossless cannot be read",
            True,
        ),
        "unknown transfer syntax": patched(
            lambda data: replaced(data, b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0"), "cannot be read", True
        ),
        "unknown VR": patched(
            lambda data: replaced(data, b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00??"), "cannot be read|Rows"
        ),
        "vast rows": patched(
            lambda data: replaced(data, b"\x28\x00\x10\x00US\x02\x00\x04\x00", b"\x28\x00\x10\x00US\x02\x00\xff\xff"),
            "do not match|cannot be read",
            True,
        ),
        "rows of zero": changed(setting("Rows", 0), "contains no voxels"),
        "spacing of nan": patched(lambda data: replaced(data, b"4.0\\2.0 ", b"nan\\nan "), "PixelSpacing"),
        "spacing of zero": changed(setting("PixelSpacing", [0, 0]), "must be above 0"),
        "negative spacing": changed(setting("PixelSpacing", [-4, -2]), "must be above 0"),
        "orientation of zeros": changed(setting("ImageOrientationPatient", [0] * 6), "perpendicular"),
        "position of two numbers": changed(setting("ImagePositionPatient", [0, 0]), "ImagePositionPatient"),
        "positions far away": changed(
            lambda number, one: setattr(one, "ImagePositionPatient", [0, 0, 1e30 * number]), "away|apart|GiB"
        ),
        "all in one place": changed(setting("ImagePositionPatient", [0, 0, 0]), "same position"),
        "one slice": changed(setting("InstanceNumber", 1), "a single slice", stored=np.zeros((1, 4, 5), np.int16)),
        "colours": changed(setting("SamplesPerPixel", 3), "colour"),
        "slope of zero bytes": changed(setting("RescaleSlope", ""), "Rescale Slope"),
        "slope of infinity": patched(
            lambda data: replaced(data, b"\x28\x00\x53\x10DS\x04\x001.0 ", b"\x28\x00\x53\x10DS\x04\x00inf "),
            "Slope|infinite",
        ),
        "dose of nan": changed(setting("PatientWeight", None), "Weight is missing"),
        "dose of text": changed(
            lambda _, one: one.RadiopharmaceuticalInformationSequence.clear(), "no radiopharmaceutical information"
        ),
        "half-life of zero": changed(setting("Units", "BQML"), "Half Life is missing", RadionuclideHalfLife=0),
        "half-life of ages": changed(
            setting("Units", "BQML"), "day open|is wrong|Start DateTime is needed", RadionuclideHalfLife=1e30
        ),
        "half-life of a moment": changed(setting("Units", "BQML"), "half-life is wrong", RadionuclideHalfLife=1e-30),
        "infinite weight": changed(setting("Units", "BQML"), "not a plausible weight", PatientWeight=1e20),
        "units of noise": changed(setting("Units", "XYZ"), "values are in XYZ"),
        "date of text": patched(
            lambda data: replaced(data, b"20200102", b"yesterda"), "cannot be read as a date|missing", True
        ),
        "contour of one point": region([0, 0, 36], "fewer than three"),
        "contour at infinity": region([1e300, 0, 36, 0, 1, 36, 1, 1, 36], "without a place"),
        "contour elsewhere": region([500, 500, 36, 501, 500, 36, 500, 501, 36], "contains no voxel centre"),
        "contour of 400 digits": region([9e99, 0, 36, 0, 9e99, 36, 1, 1, 36], "without a place"),
        "region not there": (lambda folder: (*_import_good(folder), "--roi", "heart"), "--roi heart not found"),
        "series not there": (lambda folder: (*_import_good(folder), "--series", "1.2.3"), "--series 1.2.3 not found"),
        "enhanced without frames": enhanced(None, "describes 0", PerFrameFunctionalGroupsSequence=[]),
        "enhanced of a million frames": enhanced(None, "states 1000000 frames", NumberOfFrames=1_000_000),
        "enhanced without places": enhanced(
            lambda _, frames: [delattr(one, "PlanePositionSequence") for one in frames], "ImagePositionPatient"
        ),
        "enhanced without units": enhanced(
            lambda _, frames: [delattr(one, "RealWorldValueMappingSequence") for one in frames], "no stated units"
        ),
        "the same file twice": (lambda folder: _twice(folder), "is the same DICOM object"),
    }
    for name, (words, says) in cases.items():
        yield Input(f"dicom: {name}", "DICOM", words, says=says)


def _import(folder: Path) -> tuple[object, ...]:
    return ("import", folder / "dicom", "--out", folder / "imported")


def _import_good(folder: Path) -> tuple[object, ...]:
    write_series(folder / "dicom")
    return _import(folder)


def _twice(folder: Path) -> tuple[object, ...]:
    write_series(folder / "dicom")
    first = next((folder / "dicom").iterdir())
    pydicom.dcmread(first).save_as(folder / "dicom" / "copy.dcm")
    return _import(folder)


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

        def words(folder: Path, text: Any = text) -> tuple[object, ...]:
            return ("finetune.py", "--config", files.content("c.yaml", text)(folder))

        yield Input(f"config: {name}", "config", words, says="error: .*c.yaml")
        if name in ("empty", "list", "bytes", "tabs", "deep", "code", "null sections", "laughs"):
            yield Input(
                f"benchmark: {name}",
                "config",
                lambda folder, text=text: ("benchmark", files.content("b.yaml", text)(folder)),  # type: ignore[misc]
                says="error: .*b.yaml",
            )
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
        yield Input(
            f"override: {name}",
            "config",
            lambda folder, override=override: (  # type: ignore[misc]
                "finetune.py",
                "--config",
                "configs/mini.yaml",
                f"data.manifest={folder / 'm.json'}",
                f"run.dir={folder / 'run'}",
                override,
            ),
            says="error: ",
        )
    for name, path in (("missing", "gone.yaml"), ("folder", "."), ("endless", "/dev/zero"), ("null byte", "a\0b")):
        yield Input(
            f"config: {name}",
            "config",
            lambda _, path=path: ("finetune.py", "--config", path),
            says="error: ",  # type: ignore[misc]
        )


def argument_inputs() -> Iterator[Input]:
    def make(*words: object) -> Words:
        return lambda folder: ("prompts", "make", good_mask(folder), "--out", out(folder, "c.json"), *words)

    def propose(*words: object) -> Words:
        return lambda folder: ("prompts", "propose", good_pet(folder), "--out", out(folder, "p.json"), *words)

    def phantom(*words: object) -> Words:
        return lambda folder: ("phantom", "--out", folder / "phantoms", "--cases", 1, "--val", 0, "--test", 0, *words)

    def compare(text: Any) -> Words:
        def words(folder: Path) -> tuple[object, ...]:
            for name in ("one", "two"):
                files.content(f"{name}/summary.json", text)(folder)
                files.content(f"{name}/cases.csv", "case,dice\na,0.5\n")(folder)
            return ("compare", folder / "one", folder / "two", "--out", folder / "compared")

        return words

    def evaluate(*words: object) -> Words:
        return lambda folder: evaluation(folder, folder / "scores", *words)

    def fetch(*words: object) -> Words:
        return lambda folder: ("weights", "fetch", "--out", folder / "w.pth", *words)

    cases: dict[str, Words] = {
        "strategy": make("--strategy", "psychic"),
        "connectivity": make("--connectivity", 5),
        "negative clicks": make("--clicks-per-lesion", -1),
        "no clicks": make("--clicks-per-lesion", 0),
        "negative negatives": make("--negatives", -5),
        "seed of autopet": make("--seed", 1 << 40, "--strategy", "autopet", "--pet", "good_pet.nii.gz"),
        "format": make("--to", "docx"),
        "autopet without PET": make("--strategy", "autopet"),
        "negative strategy": make("--negatives", 1, "--negative-strategy", "magic"),
        "SUV of nan": propose("--suv", "nan"),
        "SUV of infinity": propose("--suv", "inf"),
        "negative SUV": propose("--suv", -4),
        "minimum of nan": propose("--min-ml", "nan"),
        "maximum below minimum": propose("--max-ml", 0.001),
        "separation of nan": propose("--separation-mm", "nan"),
        "negative separation": propose("--separation-mm", -1),
        "grid of zero": propose("--grid-mm", 0),
        "grid of nan": propose("--grid-mm", "nan"),
        "grid of a hair": propose("--grid-mm", 1e-300),
        "spacing of zero": lambda folder: predict(folder, "--spacing-mm", 0),
        "spacing of nan": lambda folder: predict(folder, "--spacing-mm", "nan"),
        "spacing of a hair": lambda folder: predict(folder, "--spacing-mm", 1e-9),
        "spacing of ages": lambda folder: predict(folder, "--spacing-mm", 1e9),
        "device": lambda folder: predict(folder, "--device", "quantum"),
        "device number": lambda folder: predict(folder, "--device", "cuda:99"),
        "out format": lambda folder: predict(folder, "--instances", folder / "i.docx"),
        "out is a folder": lambda folder: predict(folder, "--table", files.directory("table.csv")(folder)),
        "probability format": lambda folder: predict(folder, "--probability", folder / "p.png"),
        "base without adapter": lambda folder: predict(folder, "--base", "mini"),
        "CT for a PET model": lambda folder: predict(folder, "--ct", good_pet(folder)),
        "no cases": phantom("--cases", 0),
        "negative cases": phantom("--cases", -3),
        "tracer": phantom("--tracer", "water"),
        "field": phantom("--field", "moon"),
        "scanner": phantom("--scanner", "eye"),
        "volume of nan": phantom("--lesion-ml", "nan"),
        "volume of zero": phantom("--lesion-ml", 0),
        "volume of infinity": phantom("--lesion-ml", "inf"),
        "outline": phantom("--outline", "200%"),
        "outline of nan": phantom("--outline", "nan%"),
        "negative phantom seed": phantom("--seed", -1),
        "foreground": evaluate("--foreground", "-1"),
        "foreground of superscript": evaluate("--foreground", "\u00b2"),
        "scoring rule": evaluate("--compat", "mine"),
        "evaluation connectivity": evaluate("--connectivity", 7),
        "split without manifest": evaluate("--split", "test"),
        "PET missing": evaluate("--pet", "gone.nii.gz"),
        "comparison of null": compare("null"),
        "comparison of noise": compare(b"\xff\xfe"),
        "comparison of half": compare('{"configuration": {}}'),
        "comparison of lists": compare('{"cases": [], "metrics": []}'),
        "comparison with itself": lambda folder: ("compare", folder, "--out", folder / "compared"),
        "repository": fetch("--repo", "../../etc"),
        "repository of nothing": fetch("--repo", ""),
        "made": lambda folder: (*_export(folder, good_mask(folder)), "--made", "BY_MAGIC"),
        "view nothing": lambda _: ("view", "--no-browser"),
        "view both": lambda folder: ("view", good_pet(folder), "--manifest", folder / "m.json", "--no-browser"),
        "select nothing": lambda folder: (
            "prompts",
            "select",
            good_clicks(folder),
            out(folder, "o.json"),
            "--lesions",
            " , ",
        ),
        "select the unknown": lambda folder: (
            "prompts",
            "select",
            good_clicks(folder),
            out(folder, "o.json"),
            "--lesions",
            "\u0662,99",
        ),
    }
    for name, words in cases.items():
        yield Input(f"argument: {name}", "argument", words, says="error: ", writes=("scores/.lock",))


# The file system.
@contextlib.contextmanager
def full_disk(_: Path, size: int = 600) -> Iterator[None]:
    """No file can grow beyond some bytes, which answers a write as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


@contextlib.contextmanager
def without_permission(folder: Path) -> Iterator[None]:
    """Another user, who may read the folder but for `secret*`, and write nothing in `closed`."""
    for path in folder.rglob("secret*"):
        path.chmod(0)
    for path in folder.rglob("closed"):
        path.chmod(0o555)
    opened = [parent for parent in folder.parents if parent.owner() == "root" and not parent.stat().st_mode & 0o001]
    modes = {parent: parent.stat().st_mode for parent in opened}
    folder.chmod(0o755)
    for parent in opened:
        parent.chmod(parent.stat().st_mode | 0o055)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)
        for parent, mode in modes.items():
            parent.chmod(mode)
        for path in folder.rglob("secret*"):
            path.chmod(0o755 if path.is_dir() else 0o644)


def _moved(make: Make, name: str) -> Make:
    return lambda folder: make(folder).rename(folder / name)


def disk_inputs() -> Iterator[Input]:
    def dicom_import(folder: Path) -> tuple[object, ...]:
        write_series(folder / "dicom")
        return _import(folder)

    full: dict[str, Words] = {
        "predict": lambda folder: predict(folder),
        "import": dicom_import,
        "export-seg": lambda folder: _export(folder, _seg_mask(folder)),
        "make": lambda folder: (
            "prompts",
            "make",
            good_mask(folder),
            "--out",
            out(folder, "c.json"),
            "--clicks-per-lesion",
            40,
            "--strategy",
            "uniform",
        ),
        "convert weights": lambda folder: ("weights", "convert", "mini", folder / "w.safetensors"),
        "evaluate": lambda folder: evaluation(folder, folder / "s", "--no-figures"),
        "manifest": lambda folder: (
            "manifest",
            "build",
            many_files(folder),
            "--pattern",
            "{id}.nii.gz",
            "--out",
            out(folder, "m.json"),
        ),
        "phantom": lambda folder: (
            "phantom",
            "--out",
            folder / "p",
            "--cases",
            1,
            "--val",
            0,
            "--test",
            0,
            "--field",
            "pelvis",
        ),
        "figure": lambda folder: predict(folder, "--figure", out(folder, "f.png")),
        "table": lambda folder: predict(folder, "--table", out(folder, "t.csv")),
    }
    for name, words in full.items():
        yield Input(
            f"full disk: {name}",
            "disk",
            words,
            says="cannot be written|File too large|No space",
            around=full_disk,
            code=(2, 3) if name == "evaluate" else 2,
            # Files that were complete before the disk was full stay.
            writes=("out.nii.gz", "t.csv", "p/*", "p/*/*", "imported/*", "s/*", "s/*/*"),
        )

    def secret_dicom(folder: Path) -> tuple[object, ...]:
        write_series(folder / "secret")
        return ("import", folder / "secret", "--out", folder / "imported")

    secret: dict[str, Words] = {
        "image": lambda folder: predict(folder, pet=_moved(good_pet, "secret.nii.gz")(folder)),
        "clicks": lambda folder: predict(folder, clicks=_moved(good_clicks, "secret.json")(folder)),
        "checkpoint": lambda folder: predict(
            folder, checkpoint=files.content("secret.safetensors", files._MINI)(folder)
        ),
        "manifest": lambda folder: ("check", files.content("secret.json", "{}")(folder)),
        "config": lambda folder: ("finetune.py", "--config", files.content("secret.yaml", "run: {}")(folder)),
        "benchmark": lambda folder: ("benchmark", files.content("secret.yaml", "rows: {}")(folder)),
        "DICOM": secret_dicom,
        "table": lambda folder: (
            "manifest",
            "build",
            files.content("secret.csv", "id,PT")(folder),
            "--out",
            folder / "m.json",
        ),
        "image in a cohort": lambda folder: (
            "check",
            manifest_of(folder, [case(folder, images={"PT": str(_moved(good_pet, "secret.nii.gz")(folder))})]),
        ),
    }
    for name, words in secret.items():
        says = "manifest.json: 1 error" if "cohort" in name else "secret"
        yield Input(f"no permission to read: {name}", "permission", words, says=says, around=without_permission)

    def closed(folder: Path) -> Path:
        (folder / "closed").mkdir(exist_ok=True)
        return folder / "closed"

    unwritable: dict[str, Words] = {
        "make": lambda folder: ("prompts", "make", good_mask(folder), "--out", closed(folder) / "c.json"),
        "predict": lambda folder: (
            "predict",
            "--image",
            good_pet(folder),
            "--clicks",
            good_clicks(folder),
            "--checkpoint",
            "mini",
            "--out",
            closed(folder) / "m.nii.gz",
        ),
        "import": lambda folder: (*dicom_import(folder)[:2], "--out", closed(folder) / "in"),
        "evaluate": lambda folder: evaluation(folder, closed(folder) / "s"),
        "view": lambda folder: ("view", good_pet(folder), "--no-browser", "--out", closed(folder) / "v"),
        "convert weights": lambda folder: ("weights", "convert", "mini", closed(folder) / "w.safetensors"),
        "phantom": lambda folder: ("phantom", "--out", closed(folder) / "p", "--cases", 1, "--val", 0, "--test", 0),
        "train": lambda folder: (
            "finetune.py",
            "--config",
            "configs/mini.yaml",
            f"run.dir={closed(folder) / 'run'}",
            f"data.manifest={manifest_of(folder, [case(folder, split='train'), _second_case(folder)])}",
        ),
    }
    for name, words in unwritable.items():
        yield Input(f"no permission to write: {name}", "permission", words, says="closed", around=without_permission)


def _second_case(folder: Path) -> dict[str, Any]:
    pet, label = files.save_nifti(folder / "b.nii.gz", files.SUV), files.save_nifti(folder / "b_l.nii.gz", files.MASK)
    return {"id": "b", "images": {"PT": str(pet)}, "label": str(label), "split": "val"}


def _seg_mask(folder: Path) -> Path:
    mask = np.zeros((5, 4, 6), np.uint8)
    mask[1:3, 1:3, 2] = 1
    return files.save_nifti(
        folder / "m.nii.gz", mask, np.array([[-2, 0, 0, 10], [0, -4, 0, 20], [0, 0, 3, 30], [0, 0, 0, 1.0]])
    )


def many_files(folder: Path) -> Path:
    (folder / "many").mkdir()
    for number in range(20):
        (folder / "many" / f"case_{number}.nii.gz").touch()
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

        def good(folder: Path, text: str = text) -> tuple[object, ...]:
            place = folder / text
            place.mkdir()
            return ("prompts", "make", _moved_into(good_mask(folder), place), "--out", place / f"{text[:60]}.json")

        def bad(folder: Path, text: str = text) -> tuple[object, ...]:
            return ("prompts", "make", folder / text / "gone.nii.gz", "--out", folder / "o.json")

        yield Input(f"name: {name}", "name", good, code=0)
        yield Input(f"name of a missing file: {name}", "name", bad, says="no such file")
    text = "\u60a3 [b] %s"
    yield Input(
        "name: of a case, predicted", "name", lambda folder: _named_case(folder, text, "predict-cohort"), code=0
    )
    yield Input("name: of a case, checked", "name", lambda folder: _named_case(folder, text, "check"), code=0)
    yield Input("name: of a case, not text", "name", lambda folder: _named_case(folder, "a\udcffb", "check"), code=0)


def _moved_into(path: Path, folder: Path) -> Path:
    return path.rename(folder / path.name)


def _named_case(folder: Path, name: str, command: str) -> tuple[object, ...]:
    good_clicks(folder).rename(folder / f"{name}.json")
    return _manifest_command(folder, manifest_of(folder, [case(folder, name)]), command)


def all_inputs() -> list[Input]:
    sources = (
        image_inputs,
        click_inputs,
        checkpoint_inputs,
        manifest_inputs,
        dicom_inputs,
        config_inputs,
        argument_inputs,
        disk_inputs,
        name_inputs,
    )
    return [given for source in sources for given in source()]
