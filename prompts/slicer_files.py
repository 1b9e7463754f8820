"""Point lists of 3D Slicer: `.mrk.json` and the older `.fcsv`.

Positions are world mm in the coordinate system stated in the file (RAS or LPS; 0 and 1 in old `.fcsv` files). Files are
written in LPS, as by Slicer. A point's name determines its label, because users see and edit the name in Slicer: names
containing background or negative (`label_of_name`) give label 0, all others, including Slicer's own `F-1`, label 1. The
lesion, if any, is stored in the point's description as `lesion=3` or `lesion="left femur"`; other descriptions are
ignored.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prompts.clicks import Click
from prompts.errors import InputError
from prompts.parsing import Point, label_of_name, mapping, parse_position, points_of

_SCHEMA = (
    "https://raw.githubusercontent.com/Slicer/Slicer/main/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_LESION = "lesion="
_COLUMNS = [
    "id",
    "x",
    "y",
    "z",
    "ow",
    "ox",
    "oy",
    "oz",
    "vis",
    "sel",
    "lock",
    "label",
    "desc",
    "associatedNodeID",
]
_FCSV_FRAMES = {"RAS": "RAS", "LPS": "LPS", "0": "RAS", "1": "LPS"}


def parse_json(path: Path, content: dict[str, Any]) -> tuple[str, list[Point]]:
    """Parse the frame and points of a `.mrk.json` file; points that were never placed are skipped.

    Lists in different frames are converted to the frame of the first list.

    Raises:
        InputError: a markup other than a point list, units other than mm, an unknown coordinate system, or a
            malformed point.
    """
    frames: list[str] = []
    points: list[Point] = []
    for _, markup in points_of(path, content, "markups"):
        markup = mapping(path, "list", markup)
        if markup.get("type") != "Fiducial":
            raise InputError(
                f"{path}: contains a markup of type {markup.get('type')!r}; clicks must be a point list ('Fiducial')"
            )
        # LPS and mm are the defaults of the file schema.
        frame = markup.get("coordinateSystem", "LPS")
        if frame not in ("RAS", "LPS"):
            raise InputError(f'{path}: coordinateSystem is {frame!r}; it must be "RAS" or "LPS"')
        units = markup.get("coordinateUnits", "mm")
        if units != "mm" and units != ["mm", "mm", "mm"]:
            raise InputError(f"{path}: coordinateUnits is {units!r}; positions must be in mm")
        frames.append(frame)
        for _, entry in points_of(path, markup, "controlPoints"):
            number = len(points) + 1
            entry = mapping(path, number, entry)
            if entry.get("positionStatus", "defined") != "defined":
                continue
            x, y, z = parse_position(path, number, entry.get("position"))
            if frame != frames[0]:
                x, y = -x, -y
            points.append(_point((x, y, z), str(entry.get("label", "")), str(entry.get("description", ""))))
    return (frames[0] if frames else "LPS"), points


def format_json(clicks: Sequence[Click]) -> dict[str, Any]:
    """The content of a `.mrk.json` file in LPS."""
    control_points = []
    for number, click in enumerate(clicks, start=1):
        control_points.append(
            {
                "id": str(number),
                "label": _name(click, number),
                "description": _description(click),
                "position": _lps(click),
                "positionStatus": "defined",
            }
        )
    markup = {
        "type": "Fiducial",
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "controlPoints": control_points,
    }
    return {"@schema": _SCHEMA, "markups": [markup]}


def parse_fcsv(path: Path, text: str) -> tuple[str, list[Point]]:
    """Parse the frame and points of a `.fcsv` file.

    Raises:
        InputError: a missing or unknown coordinate system in the header, or a malformed point.
    """
    stated, columns = None, _COLUMNS
    points: list[Point] = []
    for line in text.splitlines():
        if line.startswith("#"):
            key, _, value = line[1:].partition("=")
            if key.strip() == "CoordinateSystem":
                stated = value.strip()
            elif key.strip() == "columns":
                columns = [name.strip() for name in value.split(",")]
            continue
        if not line.strip():
            continue
        number = len(points) + 1
        try:
            fields = dict(zip(columns, next(csv.reader([line])), strict=False))
            position = [float(fields[axis]) for axis in "xyz"]
        except (KeyError, ValueError, csv.Error):
            raise InputError(f"{path}: point {number} is {line!r:.60}; it must give x, y and z as numbers") from None
        points.append(_point(parse_position(path, number, position), fields.get("label", ""), fields.get("desc", "")))
    if stated not in _FCSV_FRAMES:
        got = "is missing" if stated is None else f"is {stated!r}"
        raise InputError(
            f"{path}: CoordinateSystem in the header {got}; it must be RAS or LPS (0 or 1 in old files): add "
            "the line '# CoordinateSystem = LPS' or '# CoordinateSystem = RAS', whichever applies"
        )
    return _FCSV_FRAMES[stated], points


def format_fcsv(clicks: Sequence[Click]) -> str:
    """The text of a `.fcsv` file in LPS."""
    buffer = io.StringIO()
    buffer.write("# Markups fiducial file version = 4.11\n# CoordinateSystem = LPS\n")
    buffer.write(f"# columns = {','.join(_COLUMNS)}\n")
    writer = csv.writer(buffer, lineterminator="\n")
    for number, click in enumerate(clicks, start=1):
        position = [repr(c) for c in _lps(click)]
        writer.writerow([number, *position, 0, 0, 0, 1, 1, 1, 0, _name(click, number), _description(click), ""])
    return buffer.getvalue()


def _point(position: tuple[float, float, float], name: str, description: str) -> Point:
    return Point(position, label_of_name(name), _lesion_of(description))


def _lps(click: Click) -> list[float]:
    x, y, z = click.position_mm
    return [-x, -y, z]


def _name(click: Click, number: int) -> str:
    return f"{'tumor' if click.label else 'background'}-{number}"


def _description(click: Click) -> str:
    return "" if click.lesion is None else _LESION + json.dumps(click.lesion)


def _lesion_of(description: str) -> int | str | None:
    description = description.strip()
    if not description.startswith(_LESION):
        return None
    text = description.removeprefix(_LESION).strip()
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text or None
    return value if isinstance(value, int | str) and not isinstance(value, bool) else text
