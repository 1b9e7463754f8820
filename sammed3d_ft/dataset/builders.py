"""Find the cases of a data set: nnU-Net raw folder, MONAI datalist, CSV table, or a folder pattern.

Cases without a split in the data set get `split=None` here; `splits` assigns one later.
"""

from __future__ import annotations

import csv
import logging
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from sammed3d_ft.dataset.manifest import MODALITIES, SPLITS, Case, listing, read_json
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.images import image_stem

FORMS = ("nnunet", "monai", "csv", "folders")
_CHANNEL_NAMES = {"pt": "PT", "pet": "PT", "suv": "PT", "ct": "CT"}
_DATALIST_SPLITS = {"training": None, "validation": "val", "testing": "test", "test": "test"}
_AUTOPET_ID = re.compile(r"((?:fdg|psma)_[0-9a-f]+)_.+")
_log = logging.getLogger(__name__)


def guess_form(source: Path, pattern: str | None = None) -> str:
    """The format (one of `FORMS`) of a folder or file."""
    if not source.exists():
        raise InputError(f"{source}: no such file or folder")
    if pattern is not None:
        return "folders"
    if source.is_dir() and ((source / "imagesTr").is_dir() or (source / "imagesTs").is_dir()):
        return "nnunet"
    if source.suffix.lower() in (".csv", ".tsv"):
        return "csv"
    if source.suffix.lower() == ".json":
        return "monai"
    raise InputError(
        f"{source}: is not an nnU-Net folder (with imagesTr or imagesTs), a .json datalist or a .csv table; "
        'for other folders use --pattern "{id}/PET.nii.gz" --label "{id}/mask.nii.gz" with your own names'
    )


def from_nnunet(folder: Path, channels: Sequence[str] | None = None) -> list[Case]:
    """Cases of an nnU-Net raw folder: imagesTr (with labelsTr) without a split, imagesTs as test.

    Args:
        folder: contains `imagesTr/ID_0000.nii.gz` (or .nrrd, .mha) and so on.
        channels: modality of channel 0, 1, ...; `-` skips a channel. None uses the names in dataset.json, or, if
            there are none, CT and PT, as in autoPET's data.

    Raises:
        InputError: channels whose modality is unclear, or unpaired images and labels, all in one message.
    """
    names = _nnunet_channels(folder) if channels is None else list(channels)
    _check_channels(names, str(folder))
    cases, wrong = [], []
    for images_in, labels_in, split in (("imagesTr", "labelsTr", None), ("imagesTs", "labelsTs", "test")):
        labels = {_stem(file): file for file in _images(folder / labels_in)}
        found: dict[str, dict[str, Path]] = {}
        for file in _images(folder / images_in):
            match = re.fullmatch(r"(.+)_(\d{4})", _stem(file))
            if match is None:
                wrong.append(f"{images_in}/{file.name} has no channel number such as _0000")
            elif int(match[2]) >= len(names):
                wrong.append(f"{images_in}/{file.name} is channel {int(match[2])}, but the channels are {names}")
            elif names[int(match[2])] != "-":
                found.setdefault(match[1], {})[names[int(match[2])]] = file
        for place in (images_in, labels_in):
            stems = Counter(_stem(file) for file in _images(folder / place))
            wrong += [f"{place}/{name} exists {n} times, in different formats" for name, n in stems.items() if n > 1]
        wrong += [f"{labels_in}/{labels[name].name} has no image" for name in sorted(labels.keys() - found.keys())]
        for name, images in sorted(found.items()):
            if split is None and name not in labels:
                wrong.append(f"{images_in}/{name} has no label in {labels_in}")
            if "PT" in names and "PT" not in images:
                wrong.append(f"{images_in}/{name} has no PT (channel {names.index('PT')})")
            cases.append(Case(name, _in_order(images), labels.get(name), split))
    if wrong:
        raise InputError(f"{folder}: {listing(wrong, 'problem', 'problems')}")
    return _found(cases, folder)


def _nnunet_channels(folder: Path) -> list[str]:
    description = folder / "dataset.json"
    stated = read_json(description) if description.exists() else {}
    names = stated.get("channel_names", stated.get("modality")) if isinstance(stated, dict) else None
    return ["CT", "PT"] if names is None else _named_channels(names, description)


def _named_channels(names: Any, where: Path) -> list[str]:
    """Modalities from channel names as in nnU-Net or the Decathlon: `{"0": "CT", "1": "PET"}`."""
    numbered = isinstance(names, dict) and all(str(key).isascii() and str(key).isdigit() for key in names)
    stated = [str(names[key]) for key in sorted(names, key=int)] if numbered else []
    known = [_CHANNEL_NAMES.get(name.lower(), "") for name in stated]
    if not known or "" in known or len(set(known)) < len(known):
        raise InputError(
            f"{where}: the channel names {stated} do not show which is PET and which is CT; "
            "name them in order, such as --channels CT,PT (- skips a channel)"
        )
    return known


def _check_channels(names: Sequence[str], where: str) -> None:
    used = [name for name in names if name != "-"]
    if not used or not set(used) <= set(MODALITIES) or len(set(used)) < len(used):
        raise InputError(f"{where}: channels {list(names)}: expected each of {list(MODALITIES)} at most once, or -")


def from_monai(file: Path, channels: Sequence[str] | None = None, fold: int | None = None) -> list[Case]:
    """Cases of a MONAI datalist, or of a Medical Segmentation Decathlon dataset.json.

    A case without `id` is named after its image file, preceded by as many parent folders as make the name unique.
    Training cases get split `train` if the file also has a validation list, otherwise no split yet.

    Args:
        file: has lists under `training`, `validation`, `testing` or `test`; an entry is a path or an object with
            `image` (a path, or a list with one path per channel), `label`, and optionally `id`, `group`, `fold`.
        channels: modality of each image of an entry; `-` skips an image. None uses the file's `modality`, or PT for
            a single image.
        fold: training entries with this `fold` become val, the others train.

    Raises:
        InputError: not a datalist, unclear channels, malformed entries, or no entry with this fold.
    """
    content = read_json(file)
    if not isinstance(content, dict) or not any(isinstance(content.get(name), list) for name in _DATALIST_SPLITS):
        raise InputError(f"{file}: is not a datalist: expected lists under {', '.join(_DATALIST_SPLITS)}")
    if channels is None and "modality" in content:
        channels = _named_channels(content["modality"], file)
    if channels is not None:
        _check_channels(channels, str(file))
    cases: list[Case] = []
    wrong: list[str] = []
    for section, split in _DATALIST_SPLITS.items():
        for number, entry in enumerate(content.get(section) or []):
            try:
                case = _from_datalist_entry(entry, file.parent, channels)
            except InputError as error:
                wrong.append(f"{section}[{number}] {error}")
                continue
            if section == "training" and fold is not None:
                in_fold = isinstance(entry, dict) and entry.get("fold") == fold
                cases.append(replace(case, split="val" if in_fold else "train"))
            elif section == "training" and content.get("validation"):
                cases.append(replace(case, split="train"))
            else:
                cases.append(replace(case, split=split))
    if wrong:
        raise InputError(f"{file}: {listing(wrong, 'wrong entry', 'wrong entries')}")
    if fold is not None and not any(case.split == "val" for case in cases):
        raise InputError(f"{file}: no entry has fold {fold}")
    unnamed = [index for index, case in enumerate(cases) if not case.id]
    for index, name in zip(unnamed, _names([cases[i].images for i in unnamed]), strict=True):
        cases[index] = replace(cases[index], id=name)
    return _found(cases, file)


def _from_datalist_entry(entry: Any, folder: Path, channels: Sequence[str] | None) -> Case:
    item = {"image": entry} if isinstance(entry, str) else entry
    images = item.get("image") if isinstance(item, dict) else None
    paths = [images] if isinstance(images, str) else images
    if not isinstance(paths, list) or not paths or not all(isinstance(path, str) for path in paths):
        raise InputError("has no 'image' (a path or a list of paths)")
    if channels is None:
        if len(paths) > 1:
            raise InputError(f"has {len(paths)} images; name their modalities, such as --channels CT,PT")
        channels = ("PT",)
    if len(paths) != len(channels):
        raise InputError(f"has {len(paths)} images for the channels {','.join(channels)}")
    pairs = {name: folder / path for name, path in zip(channels, paths, strict=True) if name != "-"}
    label = folder / item["label"] if item.get("label") else None
    return Case(str(item.get("id") or ""), _in_order(pairs), label, None, item.get("group"))


def from_csv(file: Path) -> list[Case]:
    """Cases of a table with columns id, PT (or PET), CT, label, split, group; id and one image are required.

    Columns are separated by comma, semicolon or tab; paths are relative to the table's folder; an empty cell means
    none.

    Raises:
        InputError: an unreadable table, missing columns, or invalid rows.
    """
    try:
        with file.open(encoding="utf-8-sig", newline="") as text:
            header = text.readline()
            text.seek(0)
            rows = list(csv.DictReader(text, delimiter=max(",;\t", key=header.count)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{file}: cannot be read as a table ({error})") from error
    known = {"id": "id", "label": "label", "split": "split", "group": "group", **_CHANNEL_NAMES}
    columns = {name: known.get(name.strip().lower()) for name in (rows[0] if rows else {}) if name}
    fields = [field for field in columns.values() if field]
    if "id" not in fields or not set(fields) & set(MODALITIES) or len(set(fields)) < len(fields):
        raise InputError(f"{file}: columns {list(columns)}; expected id, PT and/or CT, optionally label, split, group")
    ignored = [name for name, field in columns.items() if field is None]
    if ignored:
        _log.warning("%s: columns not used: %s", file, ", ".join(ignored))
    cases, wrong = [], []
    for number, row in enumerate(rows, start=2):
        cell = {field: (row.get(name) or "").strip() for name, field in columns.items() if field}
        images = {name: file.parent / cell[name] for name in MODALITIES if cell.get(name)}
        if not cell["id"] or not images:
            wrong.append(f"line {number} has no id or no image")
            continue
        if cell.get("split") and cell["split"] not in SPLITS:
            wrong.append(f"line {number} has split {cell['split']!r}, expected one of {', '.join(SPLITS)}")
        label = file.parent / cell["label"] if cell.get("label") else None
        cases.append(Case(cell["id"], images, label, cell.get("split") or None, cell.get("group") or None))
    if wrong:
        raise InputError(f"{file}: {listing(wrong, 'wrong line', 'wrong lines')}")
    return _found(cases, file)


def from_folders(folder: Path, pattern: str, label: str | None = None, ct: str | None = None) -> list[Case]:
    """Cases found by a pattern for the path of the PET below a folder.

    Args:
        pattern: such as `{id}/PET_image.nii.gz` or `{group}/{id}/SUV.nii.gz`. `{group}` matches one folder name (the
            patient); `{id}` matches anything, and slashes in it become underscores in the case ID.
        label: the label's path, with the same placeholders; a missing label is an error.
        ct: the CT's path, with the same placeholders; cases without CT are allowed.

    Raises:
        InputError: an invalid pattern, no matching file, or missing labels.
    """
    finder = _compile(pattern)
    for template in (label, ct):
        if template is not None and set(re.findall(r"{(\w*)}", template)) - set(finder.groupindex):
            raise InputError(f"pattern {template!r} uses a placeholder that is not in {pattern!r}")
    cases, wrong = [], []
    for directory, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        for name in sorted(files):
            path = Path(directory, name)
            match = finder.fullmatch(path.relative_to(folder).as_posix())
            if match is None:
                continue
            parts = match.groupdict()
            images = {"PT": path}
            if ct is not None and (ct_path := folder / ct.format(**parts)).exists():
                images["CT"] = ct_path
            label_path = None if label is None else folder / label.format(**parts)
            if label_path is not None and not label_path.exists():
                wrong.append(str(label_path))
            case = parts["id"].replace("/", "_")
            cases.append(Case(case, images, label_path, None, parts.get("group")))
    if not cases:
        raise InputError(f"{folder}: no file matches the pattern {pattern!r}")
    if wrong:
        raise InputError(f"{folder}: {listing(wrong, 'label is missing', 'labels are missing')}")
    if ct is not None and not any("CT" in case.images for case in cases):
        raise InputError(f"{folder}: no case has a CT at {ct!r}")
    return _found(cases, folder)


def _compile(pattern: str) -> re.Pattern[str]:
    parts = re.split(r"{(\w*)}", pattern)
    expression, seen = "", set()
    for index, part in enumerate(parts):
        if index % 2 == 0:
            expression += re.escape(part)
        elif part not in ("id", "group"):
            raise InputError(f"pattern {pattern!r}: {{{part}}} is unknown; use {{id}} and {{group}}")
        elif part in seen:
            expression += f"(?P={part})"
        else:
            expression += "(?P<id>.+)" if part == "id" else "(?P<group>[^/]+)"
            seen.add(part)
    if "id" not in seen:
        raise InputError(f"pattern {pattern!r} has no {{id}}, the placeholder for the case")
    return re.compile(expression)


def with_groups(cases: Iterable[Case], pattern: str | None = None) -> list[Case]:
    """Set the patient of each case from its ID.

    Args:
        pattern: regular expression for the whole ID whose first group is the patient, such as `(.+)_.*`. None keeps
            the groups unchanged, unless no case has one and all IDs have autoPET's form tracer_patient_study.

    Raises:
        InputError: an invalid pattern, or IDs that do not match it.
    """
    found = list(cases)
    if pattern is None:
        matches = [_AUTOPET_ID.fullmatch(case.id) for case in found]
        if any(case.group for case in found) or not all(matches):
            return found
    else:
        try:
            expression = re.compile(pattern)
        except re.error as error:
            raise InputError(f"group pattern {pattern!r}: {error}") from error
        if expression.groups < 1:
            raise InputError(f"group pattern {pattern!r} has no group; enclose the patient's part in ( )")
        matches = [expression.fullmatch(case.id) for case in found]
        unmatched = [case.id for case, match in zip(found, matches, strict=True) if match is None]
        if unmatched:
            unfit = listing(unmatched, "id does not match", "ids do not match")
            raise InputError(f"group pattern {pattern!r}: {unfit}")
    return [replace(case, group=match[1]) for case, match in zip(found, matches, strict=True) if match]


def _found(cases: list[Case], source: Path) -> list[Case]:
    """Return the cases; InputError if there are none, if IDs are not unique or if files are missing."""
    if not cases:
        raise InputError(f"{source}: no cases found")
    repeated = [name for name, count in Counter(case.id for case in cases).items() if count > 1]
    if repeated:
        raise InputError(f"{source}: {listing(repeated, 'id is not unique', 'ids are not unique')}")
    files = [file for case in cases for file in (*case.images.values(), case.label) if file]
    missing = [str(file) for file in files if not file.exists()]
    if missing:
        raise InputError(f"{source}: {listing(missing, 'file does not exist', 'files do not exist')}")
    return cases


def _in_order(images: dict[str, Path]) -> dict[str, Path]:
    return {modality: images[modality] for modality in MODALITIES if modality in images}


def _stem(file: Path) -> str:
    """The file's name without its image suffix."""
    return image_stem(file) or file.name


def _images(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(file for file in folder.iterdir() if image_stem(file) is not None)


def _names(images: Sequence[dict[str, Path]]) -> list[str]:
    """Names from the first image's file, preceded by as many parent folders as make them unique."""
    files = [next(iter(image.values())) for image in images]
    parts = [(*PurePosixPath(f.parent.as_posix()).parts, re.sub(r"_\d{4}$", "", _stem(f))) for f in files]
    for kept in range(1, max((len(p) for p in parts), default=1) + 1):
        names = ["_".join(p[-kept:]) for p in parts]
        if len(set(names)) == len(names):
            return names
    return names
