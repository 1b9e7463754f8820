"""Mutated files for each reader of scripts/fuzz_readers.py, and what reads them."""

from __future__ import annotations

import argparse
import gzip
import io
import logging
import random
import re
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sammed3d_ft.errors import InputError
from tests.support.synthetic_dicom import SHAPE, by_highdicom, write_enhanced, write_rtstruct, write_series

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
    """A PET series (classic, enhanced, or legacy converted) with an RTSTRUCT and a SEG; one file is mutated."""

    def __init__(self, folder: Path) -> None:
        from sammed3d_ft.dicom.folder import scan_folder
        from sammed3d_ft.dicom.series import order_slices

        warnings.simplefilter("ignore")
        logging.getLogger("pydicom").setLevel(logging.CRITICAL)
        self.folder = folder / "dicom"
        first = write_series(self.folder)[0]
        for number, path in enumerate(sorted(self.folder.iterdir())):
            path.rename(self.folder / f"{number}.dcm")
        masks = np.zeros(SHAPE, np.uint8)
        masks[1:3, 1:3, 1:3], masks[4, 3, 4] = 1, 2
        series = order_slices(scan_folder(self.folder).series[0])
        by_highdicom(self.folder / "seg.dcm", series, masks, ["one", "two"])
        square = np.add(first.ImagePositionPatient, [(0, 0, 3), (8, 0, 3), (8, 8, 3), (0, 8, 3)])
        write_rtstruct(self.folder / "rtstruct.dcm", {"lesion": [square]})
        write_enhanced(self.folder / "enhanced.dcm")
        write_enhanced(self.folder / "legacy.dcm", legacy=True)
        self.seeds = {path.name: path.read_bytes() for path in sorted(self.folder.iterdir())}

    def make(self, dice: random.Random) -> list[Path]:
        name = dice.choice(["1.dcm", "rtstruct.dcm", "seg.dcm", "enhanced.dcm", "legacy.dcm"])
        for path in self.folder.iterdir():
            path.unlink()
        multi_frame = {"enhanced.dcm", "legacy.dcm"}
        for other, content in self.seeds.items():
            if other not in multi_frame and (name not in multi_frame or not other[0].isdigit()):
                _written(self.folder / other, content)
        data = _changed_element(self.seeds[name], dice) if dice.random() < 0.4 else mutated(self.seeds[name], dice)
        return [_written(self.folder / name, data)]

    def read(self, paths: list[Path]) -> None:
        from sammed3d_ft.dicom import rtstruct, seg
        from sammed3d_ft.dicom.folder import choose_series, scan_folder
        from sammed3d_ft.dicom.series import order_slices, read_values
        from sammed3d_ft.dicom.suv import suv_scale
        from sammed3d_ft.images.grids import from_array

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


READERS: dict[str, Callable[[Path], Any]] = {
    "nifti": Nifti, "itk": Itk, "dicom": Dicom, "clicks": Clicks, "checkpoint": Checkpoint
}  # fmt: skip
