"""Broken images, clicks, checkpoints, manifests and DICOM folders, and sound ones in the wrong place."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from prompts import Click, read_clicks, write_clicks
from tests.hostile import files
from tests.hostile.command_lines import (
    BUILD,
    COHORT,
    EXPORT,
    IMPORT,
    MAKE,
    PREDICT,
    PROPOSE,
    TRAIN,
    VIEW,
    Cases,
    Words,
    case,
    dicom,
    line,
    manifest_of,
    pet_case,
)
from tests.hostile.files import Make, content, directory, good_clicks, good_mask, good_pet
from tests.hostile.harness import Input
from tests.support.synthetic_dicom import write_enhanced, write_rtstruct, write_series

# One hostile image, at every place that takes an image.
_IMAGE_COMMANDS = {
    "predict": PREDICT.replace("@pet", "@bad"),
    "propose": PROPOSE.replace("@pet", "@bad"),
    "make": MAKE.replace("@mask", "@bad"),
    "start": PREDICT + " --start @bad",
    "convert": "prompts convert @clicks keep:c.json --image @bad --to voxel",
    "check": "check @manifest",
    "evaluate": "evaluate --pred @bad --gt @mask --out ./scores --no-figures",
    "view": "view @bad --no-browser --out ./view",
    "export-seg": EXPORT.replace("@mask", "@bad"),
}
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
    turn = itertools.cycle(_IMAGE_COMMANDS)
    for name, make in files.IMAGES.items():
        chosen = {"predict", next(turn), next(turn)}
        manifest = manifest_of(lambda folder, make=make: [pet_case(folder, make(folder))])
        for command in sorted(chosen):
            if command in ("convert", "view") and name in _IN_VOXELS:
                command = "make" if "make" not in chosen else "propose"
                if command in chosen:
                    continue
            says = {"check": "manifest.json: 1 errors", "evaluate": name[:8] + "|failed"}
            yield Input(
                f"{command}: {name}",
                "image",
                line(_IMAGE_COMMANDS[command], bad=make, manifest=manifest),
                code=(2, 3) if command == "evaluate" else 2,
                says=says.get(command, "error: .*" + ("x" * 50 if name == "long name" else name[:8])),
            )


def click_inputs() -> Iterator[Input]:
    commands = itertools.cycle(
        [
            "prompts convert @clicks keep:o.json --image @pet",
            "prompts select @clicks keep:o.json --lesions 1 --image @pet",
            PREDICT,
        ]
    )
    for name, make in files.CLICKS.items():
        yield Input(f"clicks: {name}", "click file", line(next(commands), clicks=make), says=f"error: .*{name[:8]}")
    many = content("many.json", files.click_text([files.POINT] * 30_000 + [{}]))
    name = "30,000 clicks and an empty one"
    yield Input(name, "click file", line(PREDICT, clicks=many), says="many.json: point 30001")


def checkpoint_inputs() -> Iterator[Input]:
    for number, (name, make) in enumerate(files.CHECKPOINTS.items()):
        words, code = PREDICT, 2
        if "adapter" in name:
            words += " --base mini"
        elif number % 3 == 1 and "nan" not in name:
            words, code = "weights inspect @checkpoint", 0 if name.startswith("half") else 2
        elif number % 3 == 2:
            words = "weights convert @checkpoint ./o.safetensors"
        says = "error: .*(" + name.replace(" ", "_")[:7] + ")"
        yield Input(f"checkpoint: {name}", "checkpoint", line(words, checkpoint=make), code=code, says=says)
    cohort = line(COHORT, manifest=manifest_of(lambda folder: [case(folder)]), checkpoint=files.CHECKPOINTS["code.pth"])
    says = "code.pth was rejected without running any of its code"
    yield Input("checkpoint: code in a cohort", "checkpoint", cohort, says=says)


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
    commands = itertools.cycle(
        ["check @manifest", COHORT, "evaluate --pred ./ --gt @manifest --out ./scores", VIEW, TRAIN]
    )
    for name, text in texts.items():
        words = line(next(commands), manifest=content("manifest.json", text))
        yield Input(f"manifest: {name}", "manifest", words, says="error: .*manifest.json|a .*no images")

    def missing(folder: Path) -> list[dict[str, Any]]:
        return [
            {"id": f"c{n}", "images": {"PT": f"{n}.nii.gz"}, "label": f"{n}_label.nii.gz", "split": "train"}
            for n in range(10_000)
        ]

    def without_clicks(folder: Path) -> list[dict[str, Any]]:
        return [{"id": f"c{n}", "images": {"PT": f"{n}.nii.gz"}, "split": "test"} for n in range(10_000)]

    entries: dict[str, tuple[str, str, Cases]] = {
        "id with a path": ("check", "must not contain", lambda folder: [case(folder, "../../x")]),
        "id with a path, predicted": (COHORT, "must not contain", lambda folder: [case(folder, "../x")]),
        "id twice": ("check", "errors", lambda folder: [case(folder), case(folder)]),
        "patient in two splits": (
            "check",
            "error",
            lambda folder: [case(folder, "a", "train", group="p"), case(folder, "b", "test", group="p")],
        ),
        "unknown split": ("check", "1 error", lambda folder: [case(folder, split="training")]),
        "image is the label": ("check", "error", lambda folder: [pet_case(folder, good_mask(folder))]),
        "files missing": ("check", "error", lambda folder: [pet_case(folder, "gone.nii", label="gone2.nii")]),
        "unknown split asked": (COHORT + " --split nightly", "no cases? (of|in) split", lambda _: []),
        "10,000 cases without files": ("check", "20000 errors, 10000 cases", missing),
        "10,000 cases without clicks": (COHORT, "10000 failed", without_clicks),
        "10,000 wrong entries": ("check", r"10000 wrong entries: entry 0.*and 9980 more", lambda _: [{}] * 10_000),
        "10,000 cases in training": (TRAIN, "20000 errors|10000", missing),
    }
    for name, (command, says, cases) in entries.items():
        yield Input(
            f"manifest: {name}",
            "manifest",
            line("check @manifest" if command == "check" else command, manifest=manifest_of(cases)),
            3 if "without clicks" in name else 2,
            says,
            ("cohort/*", "cohort/*/*", "scores/*", "scores/*/*"),
        )

    builds: dict[str, tuple[str, Make | None]] = {
        "nothing there": ("./gone", None),
        "a file": ("@pet", None),
        "empty folder": ("@given", directory("empty")),
        "datalist of null": ("@given", content("d.json", "null")),
        "datalist of numbers": ("@given", content("d.json", '{"training": [1, 2]}')),
        "datalist with odd channels": ("@given", content("d.json", '{"training": ["x"], "modality": {"a": "CT"}}')),
        "datalist with null channels": ("@given", content("d.json", '{"training": ["x"], "modality": {"0": null}}')),
        "table of bytes": ("@given", content("d.csv", b"\xff\xfe\x00id,PT")),
        "table with null bytes": ("@given", content("d.csv", "id,PT\na,\0\n")),
        "empty table": ("@given", content("d.csv", "")),
        "table of one cell": ("@given", content("d.csv", "id,PT\n" + "x" * 200_000 + ",y\n")),
        "ragged table": ("@given", content("d.csv", "id,PT,label\na\nb,c,d,e,f\n")),
        "odd pattern": ("@scans --pattern {x}/a.nii", None),
        "pattern without id": ("@scans --pattern *.nii.gz", None),
        "broken group pattern": ("@scans --pattern {id}.nii.gz --group-pattern ((", None),
        "splits of null": ("@scans --pattern {id}.nii.gz --splits @given", content("s.json", "null")),
        "splits of numbers": ("@scans --pattern {id}.nii.gz --splits @given --fold 0", content("s.json", "[1]")),
        "fractions of nan": ("@scans --pattern {id}.nii.gz --val-fraction nan", None),
        "negative seed": (
            "@scans --pattern {id}_pet.nii.gz --label {id}_mask.nii.gz --seed -1 --val-fraction 0.1 --test-fraction 0",
            None,
        ),
        "format": ("@pet --form bids", None),
    }
    for name, (text, given) in builds.items():
        words = line(BUILD.format(text), given=given or good_pet)
        yield Input(f"build: {name}", "manifest", words, says="error: ")

    def cyclic(folder: Path) -> Path:
        (folder / "data").mkdir()
        (folder / "data" / "again").symlink_to(folder / "data")
        return folder / "data"

    words = line(BUILD.format("@given --pattern {id}/PET.nii.gz"), given=cyclic)
    yield Input("build: folder that contains itself", "links", words, says="no file matches")


def _replaced(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data, old
    return data.replace(old, new)


def dicom_inputs() -> Iterator[Input]:
    def imported(make: Callable[[Path], object], says: str, more: str = "") -> tuple[Words, str]:
        """The import of a folder `dicom`, in which `make` writes."""

        def made(folder: Path) -> Path:
            make(folder / "dicom")
            return folder / "dicom"

        return line(IMPORT + more, dicom=made), says

    def changed(edit: Callable[[int, Dataset], object], says: str, **attributes: Any) -> tuple[Words, str]:
        return imported(lambda folder: write_series(folder, change=edit, **attributes), says)

    def patched(edit: Callable[[bytes], bytes], says: str, all_of_them: bool = False) -> tuple[Words, str]:
        def make(folder: Path) -> None:
            write_series(folder)
            for path in sorted(folder.iterdir())[: None if all_of_them else 1]:
                path.write_bytes(edit(path.read_bytes()))

        return imported(make, says)

    def setting(keyword: str, value: object) -> Callable[[int, Dataset], None]:
        return lambda _, one: setattr(one, keyword, value)

    def region(contour: list[float], says: str) -> tuple[Words, str]:
        def make(folder: Path) -> None:
            write_series(folder)
            write_rtstruct(folder / "rt.dcm", {"GTV": [np.array(contour, float).reshape(-1, 3)]})

        return imported(make, says, " --roi GTV")

    def enhanced(edit: Callable[[Dataset, list[Dataset]], object] | None, says: str, **more: Any) -> tuple[Words, str]:
        return imported(lambda folder: write_enhanced(folder / "pet.dcm", change=edit, **more), says)

    def only(make: Make, says: str) -> tuple[Words, str]:
        return imported(lambda folder: (folder.mkdir(), make(folder)), says)

    def twice(folder: Path) -> None:
        write_series(folder)
        pydicom.dcmread(next(folder.iterdir())).save_as(folder / "copy.dcm")

    def deflated_bomb(folder: Path) -> None:
        slices = write_series(folder)
        slices[0].file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
        path = next(folder.iterdir())
        slices[0].save_as(path, enforce_file_format=True)
        written = path.read_bytes()
        start = 144 + int.from_bytes(written[140:144], "little")  # of the deflated part: after the meta information
        packer = zlib.compressobj(9, wbits=-15)
        zeros = packer.compress(bytes(1 << 24)) + packer.flush(zlib.Z_FULL_FLUSH)
        path.write_bytes(written[:start] + zeros * 200)  # 3 GiB

    half = bytes(128) + b"DICM"
    cases: dict[str, tuple[Words, str]] = {
        "empty folder": only(lambda folder: folder, "contains no DICOM files"),
        "other files": only(content("a.dcm", "text"), r"contains no DICOM files \(1 others\)"),
        "header only": only(content("a.dcm", half), "dicom"),
        "noise after the header": only(content("a.dcm", half + bytes(range(256)) * 9), "a.dcm|no DICOM files|series"),
        "zeros after the header": only(content("a.dcm", half + bytes(5000)), "a.dcm|no DICOM files|series"),
        "cyclic link": only(files.linked("a.dcm", "a.dcm"), "contains no DICOM files"),
        "endless file": only(files.linked("a.dcm", "/dev/zero"), "contains no DICOM files"),
        "cut in the header": patched(lambda data: data[:400], "cannot be read|different|no DICOM|series"),
        "cut in the pixels": patched(lambda data: data[:-7], "pixels stored as"),
        "no pixels": changed(lambda _, one: delattr(one, "PixelData"), "pixels stored as"),
        "compressed in name only": patched(
            lambda data: _replaced(data, b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.5\0"),
            "RLE Lossless cannot be read",
            True,
        ),
        "unknown transfer syntax": patched(
            lambda data: _replaced(data, b"1.2.840.10008.1.2.1\0", b"1.2.840.99999.1.2.1\0"), "cannot be read", True
        ),
        "unknown VR": patched(
            lambda data: _replaced(data, b"\x28\x00\x10\x00US", b"\x28\x00\x10\x00??"), "cannot be read|Rows"
        ),
        "vast rows": patched(
            lambda data: _replaced(data, b"\x28\x00\x10\x00US\x02\x00\x04\x00", b"\x28\x00\x10\x00US\x02\x00\xff\xff"),
            "do not match|cannot be read",
            True,
        ),
        "rows of zero": changed(setting("Rows", 0), "contains no voxels"),
        "spacing of nan": patched(lambda data: _replaced(data, b"4.0\\2.0 ", b"nan\\nan "), "PixelSpacing"),
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
            lambda data: _replaced(data, b"\x28\x00\x53\x10DS\x04\x001.0 ", b"\x28\x00\x53\x10DS\x04\x00inf "),
            "Slope|infinite",
        ),
        "no weight": changed(setting("PatientWeight", None), "Weight is missing"),
        "no tracer": changed(
            lambda _, one: one.RadiopharmaceuticalInformationSequence.clear(), "no radiopharmaceutical information"
        ),
        "dose of nan": patched(lambda data: _replaced(data, b"200000000.0", b"nan        "), "Dose", True),
        "dose of text": patched(lambda data: _replaced(data, b"200000000.0", b"much       "), "Dose", True),
        "bomb": imported(deflated_bomb, "deflated DICOM of more than 1 MiB"),
        "half-life of zero": changed(setting("Units", "BQML"), "Half Life is missing", RadionuclideHalfLife=0),
        "half-life of ages": changed(
            setting("Units", "BQML"), "day open|is wrong|Start DateTime is needed", RadionuclideHalfLife=1e30
        ),
        "half-life of a moment": changed(setting("Units", "BQML"), "half-life is wrong", RadionuclideHalfLife=1e-30),
        "infinite weight": changed(setting("Units", "BQML"), "not a plausible weight", PatientWeight=1e20),
        "units of noise": changed(setting("Units", "XYZ"), "values are in XYZ"),
        "date of text": patched(
            lambda data: _replaced(data, b"20200102", b"yesterda"), "cannot be read as a date|missing", True
        ),
        "contour of one point": region([0, 0, 36], "fewer than three"),
        "contour at infinity": region([1e300, 0, 36, 0, 1, 36, 1, 1, 36], "without a place"),
        "contour elsewhere": region([500, 500, 36, 501, 500, 36, 500, 501, 36], "contains no voxel centre"),
        "contour of 400 digits": region([9e99, 0, 36, 0, 9e99, 36, 1, 1, 36], "without a place"),
        "region not there": imported(write_series, "--roi heart not found", " --roi heart"),
        "series not there": imported(write_series, "--series 1.2.3 not found", " --series 1.2.3"),
        "enhanced without frames": enhanced(None, "describes 0", PerFrameFunctionalGroupsSequence=[]),
        "enhanced of a million frames": enhanced(None, "states 1000000 frames", NumberOfFrames=1_000_000),
        "enhanced without places": enhanced(
            lambda _, frames: [delattr(one, "PlanePositionSequence") for one in frames], "ImagePositionPatient"
        ),
        "enhanced without units": enhanced(
            lambda _, frames: [delattr(one, "RealWorldValueMappingSequence") for one in frames], "no stated units"
        ),
        "the same file twice": imported(twice, "is the same DICOM object"),
    }
    for name, (words, says) in cases.items():
        yield Input(f"dicom: {name}", "DICOM", words, says=says)


def mixup_inputs() -> Iterator[Input]:
    """Sound files in the wrong place, as users mix them up."""

    def pet(name: str, values: np.ndarray) -> Make:
        return lambda folder: files.save_nifti(folder / name, values)

    def clicks(*places_vox: tuple[int, int, int]) -> Make:
        def make(folder: Path) -> Path:
            places_mm = np.array(places_vox) @ files.AFFINE[:3, :3].T + files.AFFINE[:3, 3]
            write_clicks(folder / "c.json", [Click(tuple(place), 1) for place in places_mm.tolist()])
            return folder / "c.json"

        return make

    def clicks_of_another_scan(folder: Path) -> Path:
        moved = files.AFFINE.copy()
        moved[2, 3] -= 12  # the click lies in both scans
        write_clicks(folder / "c.json", read_clicks(good_clicks(folder)), affine=moved, shape=files.SHAPE)
        return folder / "c.json"

    def series(count: int = 1, **attributes: Any) -> Make:
        def make(folder: Path) -> Path:
            for _ in range(count):
                write_series(folder / "dicom", **attributes)
            return folder / "dicom"

        return make

    def missing_slice(folder: Path) -> Path:
        next(dicom(folder).glob("*_3_*.dcm")).unlink()
        return folder / "dicom"

    hu = np.random.default_rng(1).uniform(-1000, 400, files.SHAPE).astype(np.int16)
    voxels_as_mm = files.click_text([{"position": [12, 10, 8], "label": 1}])
    not_suv = r"pet\.nii\.gz: does not look like PET in SUV "
    wrong: dict[str, tuple[Words, str]] = {
        "click outside": (
            line(PREDICT, clicks=clicks((12, 10, 8), (12, 10, 16))),
            r"c\.json: point 2 lies outside the image: voxel \(12, 10, 16\)",
        ),
        "clicks of another scan": (
            line(PREDICT, clicks=clicks_of_another_scan),
            r"c\.json: the clicks were made on another image \(first voxel .* remove \"image\"",
        ),
        "voxels called mm": (
            line(PREDICT, clicks=content("c.json", voxels_as_mm)),
            r"point 1 lies outside the image: .* in the units stated in their file",
        ),
        "becquerels": (
            line(PREDICT, pet=pet("pet.nii.gz", files.SUV * 4000)),
            not_suv + r"\(9\d% .* above 1000.* Bq/ml, .*`sammed3d-ft import`",
        ),
        "CT as PET": (
            line(PREDICT, pet=pet("pet.nii.gz", hu)),
            not_suv + r"\(7\d% of the voxels are below -1.* is it a CT\?",
        ),
        "PET of one value": (line(PREDICT, pet=pet("pet.nii.gz", files.SUV * 0)), "every voxel is 0"),
        "start mask on another grid": (
            line(PREDICT + " --start @start", start=pet("start.nii.gz", np.ones((24, 20, 17), np.uint8))),
            r"start\.nii\.gz: is not on the grid of .*pet\.nii\.gz \(shape 24x20x17",
        ),
        "SEG without its source": (line(PREDICT + " --seg ./m.dcm"), "needs both --seg FILE and --source DICOM_FOLDER"),
        "missing slice": (line(IMPORT, dicom=missing_slice), r"1 slice\(s\) missing between"),
        "two series": (line(IMPORT, dicom=series(2)), "contains 2 PET series; choose one with --series UID: "),
        "no tracer": (line(IMPORT, dicom=series(RadiopharmaceuticalInformationSequence=None)), "radiopharmaceutical"),
        "CT folder": (line(IMPORT, dicom=series(modality="CT")), r"contains no PET series \(found: 1 CT series\)"),
    }
    for name, (words, says) in wrong.items():
        yield Input(f"mix-up: {name}", "mix-up", words, says=says)
    # What the others differ from.
    yield Input("mix-up: none, predicted", "mix-up", line(PREDICT), code=0, writes=("out.nii.gz",))
    yield Input("mix-up: none, imported", "mix-up", line(IMPORT), code=0)
