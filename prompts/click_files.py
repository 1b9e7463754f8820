"""Read and write click files: this project's format, autoPET IV, Grand Challenge and 3D Slicer.

Formats, by the names that `write_clicks` takes:

- `world-ras`, `world-lps`, `voxel`: this project's JSON. `{"version": 1, "coordinate_system": "world",
  "orientation": "RAS", "units": "mm", "points": [{"position": [x, y, z], "label": 1, "lesion": 3}]}`.
  `orientation` and `units` appear only with `world`; `lesion` (whole number or text) only where known. World
  positions are written unrounded and read back bit for bit. Optional: `"image": {"shape": [X, Y, Z], "affine":
  [[...], ...]}`, the image on which the clicks were made (as stored; voxel to RAS mm). It is written whenever
  the image is known, and such a file is rejected for an image on another grid.
- `autopet`: `{"tumor": [[i, j, k], ...], "background": [...]}`, as published by the challenge.
- `grand-challenge`: "Multiple points", each point named `tumor` or `background`, as given by the challenge.
- `slicer-json`, `slicer-fcsv`: point lists of 3D Slicer (`.mrk.json`, `.fcsv`); see `slicer_files`.

`voxel`, `autopet` and `grand-challenge` hold voxel indices in the image file's own axis order (not reoriented;
verified on the challenge's example), so they need that file's affine. The two challenge formats hold whole
voxels without lesions: on writing, positions are rounded to the nearest voxel and lesion IDs are dropped.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from prompts import slicer_files
from prompts.clicks import Click, check_inside, clicks_to_vox, to_world_mm
from prompts.errors import InputError
from prompts.parsing import Point, label_of_name, mapping, parse_label, parse_lesion, parse_position, points_of

FORMS = ("world-ras", "world-lps", "voxel", "autopet", "grand-challenge", "slicer-json", "slicer-fcsv")
VOXEL_FORMS = ("voxel", "autopet", "grand-challenge")

_VERSION = 1
_KNOWN = "sammed3d-ft JSON, autoPET IV, Grand Challenge 'Multiple points', 3D Slicer .mrk.json or .fcsv"


def read_clicks(
    path: str | PathLike[str],
    *,
    affine: np.ndarray | None = None,
    shape: Sequence[int] | None = None,
) -> list[Click]:
    """Read a click file in any supported format; the format is recognised from the content.

    Args:
        path: the file.
        affine: (4, 4), voxel index to RAS mm of the image file as stored (`Volume.source.affine`, not the
            canonical one). Voxel formats need it unless the file records its image.
        shape: (X, Y, Z) of that image as stored. If both are given, every click must lie inside the image, and
            an image recorded in the file must have the same grid.

    Returns:
        The clicks, at least one, in file order (for `autopet`, tumour before background).

    Raises:
        InputError: a missing, empty, malformed or unknown file, no clicks, wrong units, voxel indices without an
            affine, clicks made on another image, or a point that is malformed or outside the volume. The
            message names the file and the point.
    """
    path = Path(path)
    frame, points, made_on = _parse(path, _text(path))
    if not points:
        raise InputError(f"{path}: contains no clicks; at least one is needed")
    positions = np.array([point.position for point in points], np.float64)
    if made_on is not None and affine is not None and shape is not None:
        difference = made_on.difference(NamedImage.of(shape, affine))
        if difference:
            raise InputError(
                f"{path}: the clicks were made on another image ({difference}); use clicks made on this image, or, "
                'if both images show the same patient in the same space, remove "image" from the file'
            )
    if frame == "LPS":
        positions = positions * (-1.0, -1.0, 1.0)
    elif frame == "voxel":
        affine_of_clicks = affine if made_on is None else made_on.affine
        if affine_of_clicks is None:
            raise InputError(
                f"{path}: the clicks are voxel indices, which need their image; "
                "provide it (--image, or the affine and shape of the file as stored)"
            )
        positions = to_world_mm(positions, affine_of_clicks)
    clicks = [
        Click((float(x), float(y), float(z)), point.label, point.lesion)
        for (x, y, z), point in zip(positions, points, strict=True)
    ]
    if affine is not None and shape is not None:
        check_inside(clicks, affine, shape, path)
    return clicks


def image_named_in(path: str | PathLike[str]) -> NamedImage | None:
    """The image recorded in a click file, or None if the file records none; raises like `read_clicks`."""
    path = Path(path)
    return _parse(path, _text(path))[2]


def write_clicks(
    path: str | PathLike[str],
    clicks: Sequence[Click],
    *,
    form: str | None = None,
    affine: np.ndarray | None = None,
    shape: Sequence[int] | None = None,
) -> None:
    """Write a click file atomically.

    Args:
        path: output file; an existing file is replaced.
        clicks: at least one.
        form: one of `FORMS`; None chooses by file name: `.fcsv`, `.mrk.json`, otherwise `world-ras`.
        affine: (4, 4), voxel index to RAS mm of the image file as stored; voxel formats need it.
        shape: (X, Y, Z) of that image as stored. If both are given, every click must lie inside the image, and
            this project's formats record the image.

    Raises:
        InputError: no clicks, an unknown format, a voxel format without an affine, a click outside the volume,
            or a file that cannot be written.
    """
    path = Path(path)
    form = form or _form_by_name(path)
    if form not in FORMS:
        raise InputError(f"unknown click file format {form!r}; choose one of {', '.join(FORMS)}")
    if not clicks:
        raise InputError(f"{path}: there are no clicks to write")
    made_on = None
    if affine is not None and shape is not None:
        check_inside(clicks, affine, shape, path)
        made_on = NamedImage.of(shape, affine)
    if form == "slicer-fcsv":
        text = slicer_files.format_fcsv(clicks)
    elif form == "slicer-json":
        text = _dumps(slicer_files.format_json(clicks))
    elif form in VOXEL_FORMS:
        if affine is None:
            raise InputError(
                f"{path}: the format {form!r} holds voxel indices; provide their image (--image, or its affine)"
            )
        text = _dumps(_format_voxels(form, clicks, clicks_to_vox(clicks, affine), made_on))
    else:
        text = _dumps(_format_world(clicks, form.removeprefix("world-").upper(), made_on))
    _write(path, text)


def _write(path: Path, text: str) -> None:
    """Write atomically: a killed process leaves the old file, or none."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.incomplete")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(text.encode())
        temporary.replace(path)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def _form_by_name(path: Path) -> str:
    name = path.name.lower()
    if name.endswith(".fcsv"):
        return "slicer-fcsv"
    return "slicer-json" if name.endswith(".mrk.json") else "world-ras"


def _text(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: no such click file") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file; supported click files: {_KNOWN}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not text.strip():
        raise InputError(f"{path}: the click file is empty")
    return text


def _parse(path: Path, text: str) -> tuple[str, list[Point], NamedImage | None]:
    """Parse a click file: its frame ("RAS" or "LPS" in mm, or "voxel"), its points, and its image if recorded."""
    if path.suffix.lower() == ".fcsv" or text.startswith("# Markups fiducial file"):
        return *slicer_files.parse_fcsv(path, text), None
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: malformed JSON at line {error.lineno}, column {error.colno}: {error.msg}") from None
    except (ValueError, RecursionError) as error:  # too many digits or nested brackets
        raise InputError(f"{path}: malformed JSON: {error}") from None
    if isinstance(content, dict):
        if "markups" in content:
            return *slicer_files.parse_json(path, content), None
        if "tumor" in content or "background" in content:
            return "voxel", _parse_autopet(path, content), None
        if content.get("type") == "Multiple points":
            return "voxel", _parse_grand_challenge(path, content), None
        if "coordinate_system" in content:
            made_on = NamedImage.from_json(path, content["image"]) if "image" in content else None
            return *_parse_ours(path, content), made_on
    raise InputError(f"{path}: not a click file in a known format; supported: {_KNOWN}")


def _parse_ours(path: Path, content: dict[str, Any]) -> tuple[str, list[Point]]:
    if content.get("version") != _VERSION:
        raise InputError(f"{path}: version is {content.get('version')!r}; this program reads version {_VERSION}")
    frame = content["coordinate_system"]
    if frame == "world":
        frame = content.get("orientation")
        if frame not in ("RAS", "LPS"):
            raise InputError(f'{path}: orientation is {frame!r}; world coordinates need "RAS" or "LPS"')
        if content.get("units") != "mm":
            raise InputError(f'{path}: units is {content.get("units")!r}; world coordinates must be in "mm"')
    elif frame != "voxel":
        raise InputError(f'{path}: coordinate_system is {frame!r}; it must be "voxel" or "world"')
    points = []
    for number, entry in points_of(path, content, "points"):
        entry = mapping(path, number, entry)
        points.append(
            Point(
                parse_position(path, number, entry.get("position")),
                parse_label(path, number, entry.get("label")),
                parse_lesion(path, number, entry.get("lesion")),
            )
        )
    return frame, points


def _parse_autopet(path: Path, content: dict[str, Any]) -> list[Point]:
    unknown = sorted(content.keys() - {"tumor", "background"})
    if unknown:
        raise InputError(f'{path}: unknown key {unknown[0]!r}; the autoPET format has "tumor" and "background"')
    points = []
    for kind, label in (("tumor", 1), ("background", 0)):
        for number, position in points_of(path, content, kind):
            points.append(Point(parse_position(path, f"{number} of {kind!r}", position), label, None))
    return points


def _parse_grand_challenge(path: Path, content: dict[str, Any]) -> list[Point]:
    points = []
    for number, entry in points_of(path, content, "points"):
        entry = mapping(path, number, entry)
        name = entry.get("name", "")
        if not isinstance(name, str):
            raise InputError(f'{path}: point {number}: name is {name!r}; it must be text such as "tumor"')
        # In task 2 of the challenge, a point's name is its lesion number.
        lesion = int(name) if name.isdecimal() else None
        points.append(Point(parse_position(path, number, entry.get("point")), label_of_name(name), lesion))
    return points


def _format_world(clicks: Sequence[Click], orientation: str, made_on: NamedImage | None) -> dict[str, Any]:
    sign = -1.0 if orientation == "LPS" else 1.0
    return {
        "version": _VERSION,
        "coordinate_system": "world",
        "orientation": orientation,
        "units": "mm",
        **_image(made_on),
        "points": [
            _entry(click, [sign * c for c in click.position_mm[:2]] + [click.position_mm[2]]) for click in clicks
        ],
    }


def _image(made_on: NamedImage | None) -> dict[str, Any]:
    return {} if made_on is None else {"image": made_on.to_json()}


def _format_voxels(
    form: str, clicks: Sequence[Click], coords_vox: np.ndarray, made_on: NamedImage | None
) -> dict[str, Any]:
    if form == "voxel":
        entries = [_entry(click, vox) for click, vox in zip(clicks, coords_vox.tolist(), strict=True)]
        return {"version": _VERSION, "coordinate_system": "voxel", **_image(made_on), "points": entries}
    indices = np.floor(coords_vox + 0.5).astype(int).tolist()
    if form == "autopet":
        return {
            kind: [index for click, index in zip(clicks, indices, strict=True) if click.label == label]
            for kind, label in (("tumor", 1), ("background", 0))
        }
    return {
        "version": {"major": 1, "minor": 0},
        "type": "Multiple points",
        "points": [
            {"point": index, "name": "tumor" if click.label else "background"}
            for click, index in zip(clicks, indices, strict=True)
        ],
    }


def _entry(click: Click, position: list[float]) -> dict[str, Any]:
    entry: dict[str, Any] = {"position": position, "label": click.label}
    return entry if click.lesion is None else {**entry, "lesion": click.lesion}


def _dumps(content: dict[str, Any]) -> str:
    """JSON with one point per line, so that files are easy to read and compare."""
    parts = []
    for key, value in content.items():
        if isinstance(value, list) and value:
            value_text = "[\n" + ",\n".join(f"    {json.dumps(item)}" for item in value) + "\n  ]"
        else:
            value_text = json.dumps(value)
        parts.append(f"  {json.dumps(key)}: {value_text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


# Two grids are the same if all corner voxels agree within this fraction of a voxel.
_TOLERANCE_VOX = 0.01
_MOST_MM = 1e9  # in the affine of an image


@dataclass(frozen=True, eq=False)
class NamedImage:
    """Shape (X, Y, Z) and affine (4, 4), voxel index to RAS mm, of an image file as stored."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """`{"shape": [X, Y, Z], "affine": [[...], ...]}`, unrounded."""
        return {"shape": list(self.shape), "affine": self.affine.tolist()}

    @classmethod
    def of(cls, shape: Sequence[int], affine: np.ndarray) -> NamedImage:
        """Create from the shape and affine of an image."""
        x, y, z = (int(n) for n in shape)
        return cls((x, y, z), np.asarray(affine, np.float64))

    @classmethod
    def from_json(cls, path: Path, content: Any) -> NamedImage:
        """Read what `to_json` wrote; raises InputError naming the click file if the content is invalid."""
        try:
            shape, affine = content["shape"], np.array(content["affine"], np.float64)
            whole = len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
            valid = whole and affine.shape == (4, 4) and (np.abs(affine) < _MOST_MM).all()
            if valid and abs(np.linalg.det(affine[:3, :3])) > 0 and (affine[3] == (0, 0, 0, 1)).all():
                return cls.of(shape, affine)
        except (KeyError, TypeError, ValueError):
            pass
        raise InputError(
            f'{path}: "image" is {content!s:.60}; it must give the shape of the image (3 whole numbers) and its '
            "affine (4 rows of 4 numbers, voxel to RAS mm)"
        )

    def difference(self, other: NamedImage) -> str | None:
        """Describe in one phrase how another image's grid differs; None if it is the same, in any axis order."""
        step_vox = np.linalg.solve(other.affine[:3, :3], self.affine[:3, :3])
        axes = np.abs(step_vox).argmax(axis=0)  # for each axis of this image, the matching axis of the other
        if tuple(np.array(other.shape)[axes]) != self.shape or len(set(axes)) < 3:
            turned = "" if self.shape != other.shape else " with different axis directions"
            return f"{_by(self.shape)} voxels against {_by(other.shape)}{turned}"
        last = np.array(other.shape) - 1
        corners_vox = np.array(np.meshgrid(*[(0, n - 1) for n in self.shape], indexing="ij"), float).reshape(3, 8).T
        offset_vox = np.linalg.solve(other.affine[:3, :3], self.affine[:3, 3] - other.affine[:3, 3])
        found_vox = corners_vox @ step_vox.T + offset_vox
        away_vox = np.abs(found_vox - np.where(found_vox > last / 2, last, 0)).max()
        if away_vox <= _TOLERANCE_VOX:
            return None
        place = ", ".join(f"{c:.1f}" for c in self.affine[:3, 3])
        other_place = ", ".join(f"{c:.1f}" for c in other.affine[:3, 3])
        return f"first voxel at RAS ({place}) against ({other_place}) mm, corners up to {away_vox:.2f} voxels apart"


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))
