"""Feed mutated files to the readers, and report what they do not answer with an `InputError`.

python scripts/fuzz_readers.py [--seconds 600] [--reader nifti ...] [--seed 0] [--out fuzz]

Readers: nifti, itk (NRRD and MetaImage), dicom (series, SUV, RTSTRUCT, SEG), clicks (every click file format) and
checkpoint (torch.save, safetensors, LoRA adapter). Each runs in a process of its own, for the given time. A crash is
any exception other than `InputError`, a process that dies, one that answers nothing for a minute, or one that needs
2 GiB more memory than it had at its start. Crashes with the same origin count once; an input of each is kept in
OUT/READER, with the traceback. Exit code 1 if there are any.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import logging
import multiprocessing
import random
import re
import resource
import runpy
import shutil
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sammed3d_ft.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
_MEMORY = 2 << 30
_SILENCE_S = 60.0
_ABSURD_BYTES = [
    bytes(8), b"\xff" * 8,
    b"\xff\xff\xff\x7f" * 2, b"\x00\x00\x00\x80" * 2, b"\x01" + bytes(7), b"\x00\x00\xc0\x7f" * 2,
    b"\x00\x00\x80\x7f" * 2, b"\xff\x7f" * 4, b"    " * 2, b"\\\\\\\\" * 2, b'"{}[],:"',
    b"\xed\xa0\x80\xff\xfe\xc3\x28\n",
]  # fmt: skip
_ABSURD_TEXT = [
    b"nan", b"inf", b"-inf", b"-1", b"0", b"1e308", b"-0.0", b"1e-320", b"2147483648", b"99999999999999999999", b"",
    b"true", b"null", b"[]", b"{}", b'"x"', b"1_0", b"\xc2\xb2", b"--1", b"1 2",
]  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:e-?\d+)?")


def mutated(seed: bytes, dice: random.Random) -> bytes:
    """One to six random changes, most of them near the start, where headers are."""
    data = bytearray(seed)
    for _ in range(dice.choice([1, 1, 1, 2, 3, 6])):
        if not data:
            break
        at = dice.randrange(min(len(data), 1024) if dice.random() < 0.6 else len(data))
        size = dice.choice([1, 2, 4, 8])
        match dice.randrange(9):
            case 0:
                data[at] ^= 1 << dice.randrange(8)
            case 1:
                data[at] = dice.randrange(256)
            case 2 | 3:
                data[at : at + size] = dice.choice(_ABSURD_BYTES)[:size]
            case 4:
                del data[at:]
            case 5:
                del data[at : at + dice.choice([1, 2, 8, 64])]
            case 6:
                data[at:at] = data[at : at + dice.choice([1, 2, 8, 64, 512])]
            case 7 | 8:
                numbers = list(_NUMBER.finditer(data[:65536]))
                if numbers:
                    found, new = dice.choice(numbers), dice.choice(_ABSURD_TEXT)
                    if dice.random() < 0.5:  # of the same length: the fields after it stay in place
                        new = new[: len(found[0])].ljust(len(found[0]))
                    data[slice(*found.span())] = new
    return bytes(data)


class Nifti:
    """Image and label readers on NIfTI-1 and NIfTI-2, plain and compressed."""

    def __init__(self, folder: Path) -> None:
        import nibabel as nib

        affine = np.array([[-2.0, 0, 0, 9], [0, 0, 2.0, 5], [0, 2.0, 0, 1], [0, 0, 0, 1]])
        values = np.arange(60).reshape(3, 4, 5)
        images: list[tuple[Any, Any]] = [
            (nib.Nifti1Image, values.astype(np.float32)),
            (nib.Nifti1Image, values.astype(np.int16)),
            (nib.Nifti2Image, values.astype(np.uint8)),
        ]
        self.seeds = [kind(array, affine).to_bytes() for kind, array in images]
        self.folder = folder

    def make(self, dice: random.Random) -> list[Path]:
        seed = dice.choice(self.seeds)
        form = dice.randrange(3)
        if form == 0:
            return [_written(self.folder / "x.nii", mutated(seed, dice))]
        data = gzip.compress(mutated(seed, dice)) if form == 1 else mutated(gzip.compress(seed), dice)
        return [_written(self.folder / "x.nii.gz", data)]

    def read(self, paths: list[Path]) -> None:
        _read_image(paths[0])


class Itk:
    """Image and label readers on NRRD and MetaImage."""

    def __init__(self, folder: Path) -> None:
        import SimpleITK as sitk

        image = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
        image.SetSpacing([2.0, 2.0, 3.0])
        self.seeds: list[tuple[str, bytes]] = []
        for suffix in (".nrrd", ".mha"):
            for compressed in (False, True):
                sitk.WriteImage(image, str(folder / f"seed{suffix}"), compressed)
                self.seeds.append((suffix, (folder / f"seed{suffix}").read_bytes()))
        self.folder = folder

    def make(self, dice: random.Random) -> list[Path]:
        suffix, seed = dice.choice(self.seeds)
        return [_written(self.folder / f"x{suffix}", mutated(seed, dice))]

    def read(self, paths: list[Path]) -> None:
        _read_image(paths[0])


class Dicom:
    """A PET series, classic or enhanced, with an RTSTRUCT and a SEG; one file is mutated."""

    def __init__(self, folder: Path) -> None:
        from sammed3d_ft.images.images import from_array
        from sammed3d_ft.recipes.import_dicom import find_series, write_seg

        warnings.simplefilter("ignore")
        logging.getLogger("pydicom").setLevel(logging.CRITICAL)
        self.folder = folder / "dicom"
        self.folder.mkdir(parents=True, exist_ok=True)
        volume = from_array(np.random.default_rng(0).gamma(2.0, 1.0, (4, 5, 3)), np.diag([4.0, 4.0, 3.0, 1.0]))
        slices = runpy.run_path(str(ROOT / "scripts" / "phantom_dicom.py"))["pet_series"](volume)
        for one in slices:
            one.save_as(self.folder / f"{one.InstanceNumber}.dcm", enforce_file_format=True)
        labels = np.zeros((4, 5, 3), np.uint8)
        labels[1:3, 1:3, 1], labels[3, 4, 2] = 1, 2
        write_seg(self.folder / "seg.dcm", labels, volume, find_series(self.folder, volume, folder))
        _rtstruct(slices[1]).save_as(self.folder / "rtstruct.dcm", enforce_file_format=True)
        self.seeds = {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}
        self.enhanced = io.BytesIO()
        _enhanced(slices).save_as(self.enhanced, enforce_file_format=True)

    def make(self, dice: random.Random) -> list[Path]:
        name = dice.choice(["1.dcm", "rtstruct.dcm", "seg.dcm", "enhanced.dcm"])
        for path in self.folder.iterdir():
            path.unlink()
        for other, content in self.seeds.items():
            if name != "enhanced.dcm" or not other[0].isdigit():
                _written(self.folder / other, content)
        seed = self.seeds.get(name, self.enhanced.getvalue())
        data = _changed_element(seed, dice) if dice.random() < 0.4 else mutated(seed, dice)
        return [_written(self.folder / name, data)]

    def read(self, paths: list[Path]) -> None:
        from sammed3d_ft.dicom import rtstruct, seg
        from sammed3d_ft.dicom.folder import choose_series, scan_folder
        from sammed3d_ft.dicom.series import order_slices, read_values
        from sammed3d_ft.dicom.suv import suv_scale
        from sammed3d_ft.images.images import from_array

        contents = scan_folder(self.folder)
        series = order_slices(choose_series(contents, "PT"))
        errors = []
        for file in contents.regions:
            reader = rtstruct if file.text("Modality") == "RTSTRUCT" else seg
            for name in reader.region_names(file, series.frame_of_reference):
                try:
                    reader.read_region(file, name, series)
                except InputError as error:
                    errors.append(error)
        scale = suv_scale(series.headers, "series")
        from_array(read_values(series, scale.factor), series.affine)
        if errors:
            raise errors[0]


class Clicks:
    """Every click file format."""

    def __init__(self, folder: Path) -> None:
        from prompts import Click, write_clicks
        from prompts.click_files import FORMS

        clicks = [Click((1.0, 2.0, 3.0), 1, 3), Click((2.5, 1.0, 2.0), 0, "left femur"), Click((0.0, 1.0, 2.0), 1)]
        self.image = {"affine": np.eye(4), "shape": (8, 8, 8)}
        self.seeds: list[tuple[str, bytes]] = []
        for form in FORMS:
            path = folder / ("x.fcsv" if form == "slicer-fcsv" else "x.json")
            write_clicks(path, clicks, form=form, **self.image)
            self.seeds.append((path.name, path.read_bytes()))
        self.folder = folder

    def make(self, dice: random.Random) -> list[Path]:
        name, seed = dice.choice(self.seeds)
        return [_written(self.folder / name, mutated(seed, dice))]

    def read(self, paths: list[Path]) -> None:
        from prompts import read_clicks, write_clicks

        clicks = read_clicks(paths[0], affine=self.image["affine"], shape=self.image["shape"])
        write_clicks(self.folder / "out.json", clicks, form="voxel", **self.image)


class Checkpoint:
    """What `predict` and `weights inspect` open: a pickled checkpoint, an export, a LoRA adapter."""

    def __init__(self, folder: Path) -> None:
        import torch
        from safetensors.torch import load_file

        from sammed3d_ft.model.adapters import configure_tuning, save_adapter
        from sammed3d_ft.model.build import build_model
        from sammed3d_ft.model.weights import SHIPPED, save_safetensors

        state = load_file(SHIPPED["mini"])
        small = {name: tensor for name, tensor in state.items() if tensor.numel() < 200}
        self.seeds: list[tuple[str, bytes]] = [("x.safetensors", SHIPPED["mini"].read_bytes())]
        for content in (small, {"model_state_dict": small, "epoch": 3, "args": argparse.Namespace(lr=1e-4)}):
            for zipped in (True, False):
                file = io.BytesIO()
                torch.save(content, file, _use_new_zipfile_serialization=zipped)
                self.seeds.append(("x.pth", file.getvalue()))
        save_safetensors(folder / "small.safetensors", small, {"variant": "mini", "preprocessing": "{}"})
        self.seeds.append(("x.safetensors", (folder / "small.safetensors").read_bytes()))
        self.adapter = folder / "adapter"
        model = build_model("mini", "mini")
        save_adapter(configure_tuning(model, "lora", lora_rank=1), model, self.adapter, {"base_hash": "0" * 16})
        self.adapter_files = {path.name: path.read_bytes() for path in self.adapter.iterdir()}
        self.folder = folder

    def make(self, dice: random.Random) -> list[Path]:
        if dice.random() < 0.1:
            for name, content in self.adapter_files.items():
                _written(self.adapter / name, content)
            name = dice.choice(sorted(self.adapter_files))
            return [_written(self.adapter / name, mutated(self.adapter_files[name], dice)).parent]
        # The complete model is large: seldom.
        name, seed = self.seeds[0] if dice.random() < 0.05 else dice.choice(self.seeds[1:])
        if seed.startswith(b"PK") and dice.random() < 0.7:
            return [_written(self.folder / name, _mutated_zip(seed, dice))]
        return [_written(self.folder / name, mutated(seed, dice))]

    def read(self, paths: list[Path]) -> None:
        from sammed3d_ft.model.weight_fit import recognise_variant
        from sammed3d_ft.model.weights import read_metadata, read_state_dict
        from sammed3d_ft.prompted.pretrained import open_pretrained
        from sammed3d_ft.provenance import state_hash

        (path,) = paths
        read_metadata(path)
        if path.is_file():
            found = read_state_dict(path)
            recognise_variant(found.state)
            state_hash(found.state)
            open_pretrained(path)
        else:
            open_pretrained(path, "mini")


READERS: dict[str, Callable[[Path], Any]] = {
    "nifti": Nifti, "itk": Itk, "dicom": Dicom, "clicks": Clicks, "checkpoint": Checkpoint
}  # fmt: skip


def _written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _read_image(path: Path) -> None:
    """All three readers; the last error counts, so that one refusal does not hide another reader's crash."""
    from sammed3d_ft.images.images import read_grid, read_image, read_label

    refused = None
    for read in (read_grid, read_image, read_label):
        try:
            read(path)
        except InputError as error:
            refused = error
    if refused is not None:
        raise refused


def _mutated_zip(seed: bytes, dice: random.Random) -> bytes:
    """An archive with one mutated member and right checksums."""
    with zipfile.ZipFile(io.BytesIO(seed)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    name = dice.choice([one for one in members if one.endswith(".pkl")] if dice.random() < 0.7 else sorted(members))
    members[name] = mutated(members[name], dice)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for one, content in members.items():
            archive.writestr(one, content)
    return file.getvalue()


def _changed_element(seed: bytes, dice: random.Random) -> bytes:
    """A file with one element, perhaps inside a sequence, removed, emptied, or given another type of value."""
    import pydicom
    from pydicom.dataelem import DataElement
    from pydicom.dataset import Dataset

    pydicom.config.settings.writing_validation_mode = pydicom.config.IGNORE
    dataset = pydicom.dcmread(io.BytesIO(seed))
    places: list[tuple[Dataset, Any]] = []

    def walk(one: Dataset) -> None:
        for element in one:
            places.append((one, element))
            for item in element.value if element.VR == "SQ" else ():
                walk(item)

    walk(dataset)
    owner, element = dice.choice(places)
    file = io.BytesIO()
    try:
        match dice.randrange(4):
            case 0:
                del owner[element.tag]
            case 1:
                element.value = [] if element.VR == "SQ" else None
            case 2:
                owner[element.tag] = DataElement(element.tag, "LO", dice.choice(["x", "-1", "nan", "1\\2", "9" * 20]))
            case 3:
                owner[element.tag] = DataElement(element.tag, "OB", dice.choice(_ABSURD_BYTES))
        dataset.save_as(file)
    except Exception:  # pydicom cannot write every nonsense
        return mutated(seed, dice)
    return file.getvalue()


def _enhanced(slices: list[Any]) -> Any:
    """The slices as one legacy converted file."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import LegacyConvertedEnhancedPETImageStorage, generate_uid

    dataset, shared, frames = Dataset(), Dataset(), []
    dataset.update(slices[0])
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = slices[0].file_meta.TransferSyntaxUID
    dataset.SOPClassUID, dataset.SOPInstanceUID = LegacyConvertedEnhancedPETImageStorage, generate_uid()
    for one in slices:
        frame = Dataset()
        for group, keywords in (
            ("PlanePositionSequence", ["ImagePositionPatient"]),
            ("PixelValueTransformationSequence", ["RescaleSlope", "RescaleIntercept"]),
        ):
            item = Dataset()
            item.update({one[keyword].tag: one[keyword] for keyword in keywords})
            setattr(frame, group, [item])
        frames.append(frame)
    measures, orientation = Dataset(), Dataset()
    measures.PixelSpacing, orientation.ImageOrientationPatient = slices[0].PixelSpacing, [1, 0, 0, 0, 1, 0]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    for keyword in ("ImagePositionPatient", "RescaleSlope", "RescaleIntercept", "PixelSpacing"):
        delattr(dataset, keyword)
    dataset.SharedFunctionalGroupsSequence, dataset.PerFrameFunctionalGroupsSequence = [shared], frames
    dataset.NumberOfFrames, dataset.PixelData = len(slices), b"".join(one.PixelData for one in slices)
    return dataset


def _rtstruct(like: Any) -> Any:
    """One region of one square contour in the plane of a slice."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, RTStructureSetStorage, generate_uid

    dataset, region, drawn, contour = Dataset(), Dataset(), Dataset(), Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID, dataset.Modality = RTStructureSetStorage, generate_uid(), "RTSTRUCT"
    x, y, z = (float(value) for value in like.ImagePositionPatient)
    corners = [(x, y, z), (x + 8, y, z), (x + 8, y + 8, z), (x, y + 8, z)]
    contour.ContourGeometricType, contour.NumberOfContourPoints = "CLOSED_PLANAR", len(corners)
    contour.ContourData = [value for corner in corners for value in corner]
    region.ROINumber, region.ROIName, region.ReferencedFrameOfReferenceUID = 1, "lesion", like.FrameOfReferenceUID
    drawn.ReferencedROINumber, drawn.ContourSequence = 1, [contour]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [region], [drawn]
    return dataset


def origin(error: BaseException) -> str:
    """Type of the exception, and the last lines of this project and of any library that it passed through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename != __file__]
    ours = [frame for frame in frames if frame.filename.startswith((f"{ROOT}/sammed3d_ft", f"{ROOT}/prompts"))]
    named = dict.fromkeys(f"{Path(f.filename).name}:{f.lineno}" for f in (*ours[-1:], *frames[-1:]))
    return f"{type(error).__name__} at {' < '.join(named)}"


def _work(name: str, seed: int, first: int, folder: Path, report: Any) -> None:
    """Read mutated files until killed. Reports each input before it is read, and what came of it."""
    reader = READERS[name](folder)
    status = Path("/proc/self/status")
    if status.exists():
        size = int(re.search(r"VmSize:\s*(\d+)", status.read_text())[1]) * 1024  # type: ignore[index]
        resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, size + _MEMORY))
    report.send(("ready", first, ""))
    number = first
    while True:
        paths = reader.make(random.Random(f"{seed} {name} {number}"))
        outcome, detail = "read", ""
        try:
            reader.read(paths)
        except InputError as error:
            outcome = "refused" if "\n" not in str(error) else "crash"
            detail = "" if outcome == "refused" else f"message of several lines\n{error}"
        except Exception as error:
            outcome, detail = "crash", f"{origin(error)}\n{traceback.format_exc()}"
        number += 1
        if outcome == "crash":
            kept = folder / f"crash_{number}"
            for path in paths:
                (shutil.copytree if path.is_dir() else shutil.copyfile)(path, f"{kept}_{path.name}")
        report.send((outcome, number, detail))


def _events(name: str, seconds: float, seed: int, folder: Path) -> Iterator[tuple[str, int, str]]:
    """What came of each input; a worker that dies or hangs is replaced, and its input counts as a crash."""
    context = multiprocessing.get_context("spawn")
    number, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        receiver, sender = context.Pipe(duplex=False)
        worker = context.Process(target=_work, args=(name, seed, number, folder, sender), daemon=True)
        worker.start()
        sender.close()
        ready = False
        try:
            while time.monotonic() < end:
                if not receiver.poll(_SILENCE_S):
                    yield "crash", number + 1, f"no answer in {_SILENCE_S:g} s\n"
                    break
                outcome, number, detail = receiver.recv()
                if outcome == "ready":
                    ready, end = True, end if number else time.monotonic() + seconds
                else:
                    yield outcome, number, detail
        except EOFError:
            worker.join()
            if not ready:
                raise SystemExit(f"{name}: the reader could not be set up") from None
            yield "crash", number + 1, f"the process died (exit code {worker.exitcode})\n"
        worker.kill()
        worker.join()
        number += 1


def fuzz(name: str, seconds: float, seed: int, out: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Fuzz one reader; returns counts of outcomes, and of crashes by origin."""
    outcomes = {"read": 0, "refused": 0, "crash": 0}
    crashes: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for outcome, number, detail in _events(name, seconds, seed, folder):
            outcomes[outcome] += 1
            if outcome == "crash":
                where = detail.splitlines()[0]
                if where not in crashes:
                    kept = out / name / f"{len(crashes)}"
                    kept.mkdir(parents=True, exist_ok=True)
                    (kept / "traceback.txt").write_text(detail)
                    # A worker that died or hangs has left its input in place.
                    found = list(folder.glob(f"crash_{number}_*")) or [*folder.glob("x.*"), *folder.glob("dicom")]
                    for path in found:
                        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, kept / path.name)
                crashes[where] = crashes.get(where, 0) + 1
            for path in folder.glob(f"crash_{number}_*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    return outcomes, crashes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=600.0, help="time per reader (default: 600)")
    parser.add_argument("--reader", action="append", choices=READERS, help="repeatable; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("fuzz"), help="folder for inputs that crash")
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for name in given.reader or READERS:
        outcomes, crashes = fuzz(name, given.seconds, given.seed, given.out)
        found[name] = {"executions": sum(outcomes.values()), **outcomes, "origins": crashes}
        print(
            f"{name}: {sum(outcomes.values())} executions in {given.seconds:g} s, {outcomes['read']} read, "
            f"{outcomes['refused']} refused, {outcomes['crash']} crashes of {len(crashes)} origins",
            flush=True,
        )
        for where, count in crashes.items():
            print(f"  {count} x {where}", flush=True)
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "summary.json").write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(any(one["crash"] for one in found.values()))


if __name__ == "__main__":
    main()
