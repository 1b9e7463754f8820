"""Command lines as text, and the functions that make the files they name."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.hostile.files import Make, content, good_clicks, good_mask, good_pet
from tests.support.synthetic_dicom import write_series

Words = Callable[[Path], tuple[object, ...]]
Cases = Callable[[Path], list[dict[str, Any]]]

PREDICT = "predict --image @pet --clicks @clicks --checkpoint @checkpoint --out keep:out.nii.gz"
MAKE = "prompts make @mask --out keep:c.json"
PROPOSE = "prompts propose @pet --out keep:p.json"
EVALUATE = "evaluate --pred @pred --gt @mask --out"
PHANTOM = "phantom --cases 1 --val 0 --test 0 --out"
EXPORT = "export-seg @mask --source @dicom --out keep:seg.dcm"
IMPORT = "import @dicom --out ./imported"
BUILD = "manifest build {} --out keep:m.json"
TRAIN = "finetune.py --config configs/mini.yaml data.manifest=@manifest run.dir=./run"
COHORT = "predict-cohort @manifest --clicks ./ --checkpoint @checkpoint --out ./cohort"
VIEW = "view --manifest @manifest --no-browser --out ./view"


def keep(folder: Path, name: str) -> Path:
    """An output that exists already: a command that fails must leave it as it is."""
    return content(name, "earlier result, which must survive")(folder)


def dicom(folder: Path, name: str = "dicom") -> Path:
    write_series(folder / name)
    return folder / name


def closed(folder: Path) -> Path:
    (folder / "closed").mkdir(exist_ok=True)
    return folder / "closed"


def scans(folder: Path) -> Path:
    return good_pet(folder).parent


GOOD: dict[str, Callable[[Path], object]] = {
    "pet": good_pet,
    "mask": good_mask,
    "pred": good_mask,
    "clicks": good_clicks,
    "checkpoint": lambda _: "mini",
    "dicom": dicom,
    "closed": closed,
    "scans": scans,
}


def line(text: str, **made: Callable[[Path], object]) -> Words:
    """The words of a command line, its files made in the folder of the test.

    ``./NAME`` is a path in that folder, ``keep:NAME`` an output that exists already, ``@NAME`` a file made by the
    function of that name, good unless given here. All may follow a ``key=``.
    """

    def words(folder: Path) -> tuple[object, ...]:
        def filled(found: re.Match[str]) -> str:
            key, kind, name, rest = found.groups()
            if kind == "@":
                return f"{key}{(made.get(name) or GOOD[name])(folder)}{rest}"
            return f"{key}{keep(folder, name + rest) if kind == 'keep:' else folder / (name + rest)}"

        return tuple(re.sub(r"^([\w.]+=|)(@|keep:|\./)(\w*)(.*)", filled, word) for word in shlex.split(text))

    return words


def manifest_of(cases: Cases) -> Make:
    return lambda folder: content("manifest.json", json.dumps({"version": 1, "cases": cases(folder)}))(folder)


def case(folder: Path, name: str = "a", split: str = "test", **changes: Any) -> dict[str, Any]:
    images, label = {"PT": str(good_pet(folder))}, str(good_mask(folder))
    return {"id": name, "images": images, "label": label, "split": split, "group": None} | changes


def pet_case(folder: Path, pet: Path | str, **changes: Any) -> dict[str, Any]:
    return case(folder, images={"PT": str(pet)}, **changes)
