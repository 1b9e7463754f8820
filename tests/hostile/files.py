"""Hostile files, by name: each function or table writes one into a folder and returns its path."""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from safetensors.torch import save

from prompts import Click, write_clicks
from sammed3d_ft.model.weights import SHIPPED

SHAPE = (24, 20, 16)
AFFINE = np.array([[-4.0, 0, 0, 40], [0, 4.0, 0, -50], [0, 0, 3.0, 200], [0, 0, 0, 1]])
SUV = np.random.default_rng(0).gamma(2.0, 1.0, SHAPE).astype(np.float32)
MASK = np.zeros(SHAPE, np.uint8)
MASK[10:14, 8:12, 6:10] = 1
Make = Callable[[Path], Path]


def save_nifti(path: Path, values: np.ndarray, affine: np.ndarray = AFFINE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(values, affine), path)
    return path


def good_pet(folder: Path) -> Path:
    return save_nifti(folder / "good_pet.nii.gz", SUV)


def good_mask(folder: Path) -> Path:
    return save_nifti(folder / "good_mask.nii.gz", MASK)


def good_clicks(folder: Path) -> Path:
    place = AFFINE[:3, :3] @ (12, 10, 8) + AFFINE[:3, 3]
    write_clicks(folder / "good_clicks.json", [Click(tuple(place.tolist()), 1, 1)])
    return folder / "good_clicks.json"


def content(name: str, data: bytes | str) -> Make:
    def make(folder: Path) -> Path:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data.encode() if isinstance(data, str) else data)
        return path

    return make


def contents(data: dict[str, bytes | str]) -> dict[str, Make]:
    """A file of each name, spaces as underscores."""
    names = {name: name.replace(" ", "_") for name in data}
    return {names[name]: content(names[name], data[name]) for name in data}


def linked(name: str, target: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).symlink_to(target)
        return folder / name

    return make


def pipe(folder: Path) -> Path:
    os.mkfifo(folder / "pipe.nii.gz")
    return folder / "pipe.nii.gz"


def directory(name: str) -> Make:
    def make(folder: Path) -> Path:
        (folder / name).mkdir()
        return folder / name

    return make


# Images. The values are both a PET in SUV and a valid mask, so that the damage alone is what is wrong.
_VALUES = (SUV > 4).astype(np.float32)
_VALUES[0, 0, 0] = 0
NIFTI = nib.Nifti1Image(_VALUES, AFFINE).to_bytes()
NRRD = (
    "NRRD0004\ntype: float\ndimension: 3\nsizes: 24 20 16\nspace: left-posterior-superior\nendian: little\n"
    "encoding: {encoding}\nspace directions: (4,0,0) (0,-4,0) (0,0,3)\nspace origin: (-40,50,200)\n\n"
)
MHA = (
    "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
    "TransformMatrix = 1 0 0 0 -1 0 0 0 1\nOffset = -40 50 200\nElementSpacing = 4 4 3\nDimSize = 24 20 16\n"
    "ElementType = MET_FLOAT\nElementDataFile = LOCAL\n"
)
_RAW = _VALUES.tobytes()


def patched(offset: int, form: str, *values: float) -> bytes:
    return NIFTI[:offset] + struct.pack(form, *values) + NIFTI[offset + struct.calcsize(form) :]


def with_voxel(value: float) -> bytes:
    values = _VALUES.copy()
    values[3, 4, 5] = value
    return nib.Nifti1Image(values, AFFINE).to_bytes()


def _gz(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def _nrrd(old: str = "", new: str = "", encoding: str = "raw", voxels: bytes = _RAW) -> bytes:
    return NRRD.format(encoding=encoding).replace(old, new).encode() + voxels


def _mha(old: str = "", new: str = "") -> bytes:
    return MHA.replace(old, new).encode() + _RAW


IMAGES = contents(
    {
        "empty.nii.gz": b"",
        "empty.nii": b"",
        "one byte.nii": b"\x5c",
        "text.nii.gz": "this is not an image\n",
        "page.nii": "<!doctype html><html>404</html>",
        "json.nii.gz": "{}",
        "zip.nii.gz": b"PK\x03\x04" + bytes(400),
        "gzip twice.nii.gz": _gz(_gz(NIFTI)),
        "not packed.nii.gz": NIFTI,
        "packed.nii": _gz(NIFTI),
        "cut in header.nii": NIFTI[:200],
        "cut in header.nii.gz": _gz(NIFTI)[:60],
        "cut in voxels.nii": NIFTI[:-1000],
        "cut in voxels.nii.gz": _gz(NIFTI)[:-1000],
        "cut before checksum.nii.gz": _gz(NIFTI)[:-8],
        "wrong checksum.nii.gz": _gz(NIFTI)[:-8] + b"\0\0\0\0" + _gz(NIFTI)[-4:],
        "flipped bit.nii.gz": _gz(NIFTI)[:300] + bytes([_gz(NIFTI)[300] ^ 4]) + _gz(NIFTI)[301:],
        "bomb behind.nii.gz": _gz(NIFTI + bytes(1 << 28)),
        "bomb in header.nii.gz": _gz(patched(40, "<4h", 3, 20000, 20000, 20) + bytes(1 << 20)),
        "zero dimension.nii.gz": _gz(patched(40, "<4h", 3, 24, 0, 16)),
        "negative dimension.nii.gz": _gz(patched(40, "<4h", 3, -24, -20, 16)),
        "vast.nii": patched(40, "<4h", 3, 32767, 32767, 32767),
        "two dimensions.nii": patched(40, "<4h", 2, 480, 16, 1),
        "no dimensions.nii": patched(40, "<h", 0),
        "nine dimensions.nii": patched(40, "<h", 9),
        "frames.nii": patched(40, "<5h", 4, 12, 20, 16, 2),
        "unknown type.nii": patched(70, "<h", 3333),
        "complex.nii": patched(70, "<2h", 32, 64),
        "colours.nii": patched(70, "<2h", 128, 24),
        "type of one bit.nii": patched(70, "<2h", 1, 1),
        "offset of nan.nii": patched(108, "<f", float("nan")),
        "offset behind the end.nii": patched(108, "<f", 1e9),
        "negative offset.nii": patched(108, "<f", -1e5),
        "slope of infinity.nii": patched(112, "<f", float("inf")),
        "affine of nan.nii": patched(280, "<f", float("nan")),
        "affine of zeros.nii": patched(280, "<12f", *[0] * 12),
        "affine far away.nii": patched(280, "<f", 1e30),
        "nan.nii.gz": _gz(with_voxel(np.nan)),
        "infinite.nii.gz": _gz(with_voxel(np.inf)),
        "picture.png": b"\x89PNG\r\n\x1a\n",
        "nothing.nrrd": b"",
        "cut.nrrd": _nrrd(voxels=_RAW[:-4]),
        "text.nrrd": "hello\n",
        "zeros.nrrd": bytes(5000),
        "endless line.nrrd": b"NRRD0004\n" + b"x" * (1 << 22),
        "axes.nrrd": _nrrd("dimension: 3", "dimension: 999"),
        "vast.nrrd": _nrrd("24 20 16", "99999 99999 99999"),
        "negative.nrrd": _nrrd("24 20 16", "24 -20 16"),
        "encoding.nrrd": _nrrd(encoding="zstd"),
        "gzip of noise.nrrd": _nrrd(encoding="gzip", voxels=b"\x1f\x8b\x08\0" + _RAW),
        "bomb.nrrd": _nrrd("24 20 16", "9000 9000 16", "gzip", _gz(bytes(1 << 20))),
        "directions of nan.nrrd": _nrrd("(4,0,0)", "(nan,0,0)"),
        "flat.nrrd": _nrrd("(0,0,3)", "(0,4,0)"),
        "elsewhere.nrrd": _nrrd("encoding: raw\n", "encoding: raw\ndata file: /dev/zero\n"),
        "cut.mha": _mha()[:-4],
        "no header.mha": bytes(500),
        "axes.mha": _mha("NDims = 3", "NDims = 4000000000"),
        "vast.mha": _mha("24 20 16", "99999 99999 99999"),
        "missing voxels.mhd": _mha("LOCAL", "gone.raw"),
        "itself.mhd": _mha("LOCAL", "/dev/zero"),
        "type.mha": _mha("MET_FLOAT", "MET_NOTHING"),
        "spacing.mha": _mha("4 4 3", "4 4"),
    }
)
IMAGES |= {
    "missing.nii.gz": lambda folder: folder / "missing.nii.gz",
    "folder.nii.gz": directory("folder.nii.gz"),
    "cyclic.nii.gz": linked("cyclic.nii.gz", "cyclic.nii.gz"),
    "dangling.nii.gz": linked("dangling.nii.gz", "nowhere"),
    "endless.nii": linked("endless.nii", "/dev/zero"),
    "pipe.nii.gz": pipe,
    "long name": lambda folder: folder / ("x" * 300 + ".nii.gz"),
}

_OURS: dict[str, Any] = {"version": 1, "coordinate_system": "world", "orientation": "RAS", "units": "mm"}
POINT = {"position": [-8.0, -10.0, 224.0], "label": 1, "lesion": 1}


def click_text(points: Any = None, **changes: Any) -> str:
    return json.dumps({**_OURS, **changes, "points": [POINT] if points is None else points})


CLICKS = contents(
    {
        "empty.json": "",
        "spaces.json": "  \n ",
        "bytes.json": b"\xff\xfe\x00\x01" * 50,
        "cut.json": click_text()[:-9],
        "number.json": "3",
        "null.json": "null",
        "list.json": "[]",
        "object.json": "{}",
        "deep.json": "[" * 100_000,
        "deep objects.json": '{"a":' * 50_000,
        "long number.json": '{"tumor": [[' + "9" * 10_000 + ", 1, 1]]}",
        "version.json": click_text(version=99),
        "version of text.json": click_text(version="1"),
        "frame.json": click_text(coordinate_system="scanner"),
        "orientation.json": click_text(orientation="RPI"),
        "units.json": click_text(units="cm"),
        "no points.json": click_text([]),
        "points of text.json": click_text("many"),
        "point of null.json": click_text([None]),
        "two coordinates.json": click_text([{"position": [1, 2], "label": 1}]),
        "text coordinate.json": click_text([{"position": ["1", 2, 3], "label": 1}]),
        "nan.json": '{"tumor": [[NaN, 1, 1]], "background": []}',
        "infinite.json": '{"tumor": [[1e999, 1, 1]], "background": []}',
        "huge.json": click_text([{"position": [1e300, 1e300, 1e300], "label": 1}]),
        "outside.json": click_text([{"position": [0, 0, 1000], "label": 1}]),
        "label.json": click_text([{"position": [0, 0, 224], "label": 7}]),
        "label of list.json": click_text([{"position": [0, 0, 224], "label": [1]}]),
        "lesion of list.json": click_text([{**POINT, "lesion": [1]}]),
        "image.json": click_text(image={"shape": [0, 0, 0], "affine": []}),
        "image of text.json": click_text(image="scan.nii.gz"),
        "singular image.json": click_text(image={"shape": [24, 20, 16], "affine": [[0] * 4] * 4}),
        "unknown key.json": '{"tumor": [], "tumour": [[1, 1, 1]]}',
        "autopet of numbers.json": '{"tumor": 5}',
        "challenge without points.json": '{"type": "Multiple points", "points": [{"name": "tumor"}]}',
        "challenge with names.json": '{"type": "Multiple points", "points": [{"name": 4, "point": [1, 1, 1]}]}',
        "curve.mrk.json": '{"markups": [{"type": "Curve"}]}',
        "markups.mrk.json": '{"markups": [1]}',
        "frameless.mrk.json": '{"markups": [{"type": "Fiducial", "coordinateSystem": "?", "controlPoints": []}]}',
        "no frame.fcsv": "# Markups fiducial file version = 4.11\n1,0,0,224,0,0,0,1,1,1,0,F-1,,\n",
        "words.fcsv": "# CoordinateSystem = LPS\na,b,c,d\n",
        "quotes.fcsv": '# CoordinateSystem = LPS\n"1,2,3\n',
        "empty.fcsv": "",
    }
)
CLICKS |= {
    "missing.json": lambda folder: folder / "missing.json",
    "folder.json": directory("folder.json"),
    "cyclic.json": linked("cyclic.json", "cyclic.json"),
}

# Checkpoints.
_SMALL = {"image_encoder.weight": torch.ones(3), "mask_decoder.weight": torch.ones(2, 2)}


def _pickled(value: Any, zipped: bool = True) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zipped)
    return file.getvalue()


class _Runs:
    """Pickles as a call of os.system."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch /tmp/hostile_pickle_ran",)


def _header(header: Any, voxels: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + voxels


def _zip_of(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/"), data)
    return file.getvalue()


MINI = SHIPPED["mini"].read_bytes()


def _nan_weights(folder: Path) -> Path:
    from safetensors.torch import load

    state = {name: torch.full_like(tensor, float("nan")) for name, tensor in load(MINI).items()}
    path = folder / "nan_weights.safetensors"
    path.write_bytes(save(state))
    return path


def _adapter(config: bytes, lora: bytes = b"", decoder: bytes = b"") -> Make:
    def make(folder: Path) -> Path:
        adapter = folder / "adapter"
        adapter.mkdir()
        (adapter / "adapter_config.json").write_bytes(config)
        if lora:
            (adapter / "adapter_model.safetensors").write_bytes(lora)
            (adapter / "decoder.safetensors").write_bytes(decoder)
        return adapter

    return make


CHECKPOINTS = contents(
    {
        "empty.pth": b"",
        "text.pth": "weights\n",
        "page.pth": "<!DOCTYPE html>",
        "pointer.pth": "version https://git-lfs.github.com/spec/v1\n",
        "json.safetensors": "{}",
        "gzip.pth": _gz(_pickled(_SMALL)),
        "cut.pth": _pickled(_SMALL)[:400],
        "cut.safetensors": MINI[: len(MINI) // 2],
        "cut in header.safetensors": MINI[:1000],
        "header of 2 to the 62.safetensors": struct.pack("<Q", 1 << 62) + b"{" + bytes(50),
        "header of noise.safetensors": _header(b"{" + bytes(range(40, 90))),
        "header of null.safetensors": _header(b"{null}"),
        "overlapping.safetensors": _header(
            {name: {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]} for name in "ab"}, bytes(16)
        ),
        "beyond the end.safetensors": _header(
            {"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}, bytes(16)
        ),
        "unknown type.safetensors": _header({"a": {"dtype": "F3", "shape": [1], "data_offsets": [0, 4]}}, bytes(4)),
        "metadata of noise.safetensors": save({"a": torch.ones(1)}, {"sammed3d_ft": "{not json"}),
        "metadata of list.safetensors": save({"a": torch.ones(1)}, {"sammed3d_ft": "[1, 2]"}),
        "metadata of numbers.safetensors": save({"a": torch.ones(1)}, {"sammed3d_ft": '{"variant": 4}'}),
        "plain pickle.pth": pickle.dumps({"a": 1}, protocol=2),
        "code.pth": _pickled({"model_state_dict": _SMALL, "extra": _Runs()}),
        "code in old form.pth": _pickled({"extra": _Runs()}, zipped=False),
        "flipped.pth": _zip_of(archive__data=b"x"),
        "pickle of noise.pth": _zip_of(archive__data_pkl=b"noise").replace(b"data_pkl", b"data.pkl"),
        "bomb.pth": _zip_of(archive__version=b"3\n", archive__data_pkl=bytes(1 << 27)).replace(
            b"data_pkl", b"data.pkl"
        ),
        "list.pth": _pickled([1, 2, 3]),
        "number.pth": _pickled(3),
        "no tensors.pth": _pickled({"epoch": 3, "args": argparse.Namespace(lr=1e-4)}),
        "empty mapping.pth": _pickled({}),
        "half of it.pth": _pickled({"model_state_dict": _SMALL, "epoch": 3}),
        "repeated number.pth": _pickled({"a": torch.ones(1).expand(1 << 40)}),
        "name with a line break.pth": _pickled({"a\nb": torch.ones(1)}),
        "sparse.pth": _pickled({"a": torch.eye(3).to_sparse()}),
    }
)
CHECKPOINTS |= {
    "nan weights.safetensors": _nan_weights,
    "missing.pth": lambda folder: folder / "missing.pth",
    "empty folder": directory("empty_folder"),
    "cyclic.pth": linked("cyclic.pth", "cyclic.pth"),
    "endless.pth": linked("endless.pth", "/dev/zero"),
    "adapter without files": _adapter(b"{}"),
    "adapter of noise": _adapter(b"{}", bytes(100), bytes(100)),
    "adapter without metadata": _adapter(b"{}", save(_SMALL), save(_SMALL)),
    "adapter of text": _adapter(b"not json", save(_SMALL), save(_SMALL, {"sammed3d_ft": "{}"})),
}
