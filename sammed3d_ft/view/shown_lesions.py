"""The lesions of one scan as the page shows them: a predictor, shared by all scans, is kept in step with the clicks.

Lesions equal those that `predict` makes of the same clicks, bit for bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prompts.clicks import Click, clicks_to_vox
from sammed3d_ft.errors import InputError
from sammed3d_ft.prompted.start_lesions import StartLesions
from sammed3d_ft.view.scan import Scan

if TYPE_CHECKING:
    from sammed3d_ft.prompted.clicked_scan import ClickedLesion
    from sammed3d_ft.prompted.predictor import Predictor
    from sammed3d_ft.recipes.predict import LoadedModel

Box = tuple[tuple[int, int, int], tuple[int, int, int]]
"""First voxel, and the one after the last, of a part of the scan."""


class SharedModel:
    """A model that is loaded once, on first use."""

    def __init__(self, load: Callable[[], LoadedModel]) -> None:
        self._load = load
        self._lock = threading.Lock()
        self._model: LoadedModel | None = None
        self.user: ShownLesions | None = None
        """Whose scan and lesions are in the predictor."""

    def get(self) -> LoadedModel:
        with self._lock:
            if self._model is None:
                self._model = self._load()
            return self._model


@dataclass(frozen=True)
class _Given:
    """The predictor's input for one lesion."""

    start: int | None
    """Its number in the start mask, which is the same after other lesions of the mask are deleted."""
    clicks: tuple[tuple[tuple[float, ...], int], ...]

    @classmethod
    def of(cls, lesion: ClickedLesion, start: StartLesions | None) -> _Given:
        number = None
        if start is not None and lesion.start is not None:
            assert start.numbers is not None
            number = start.numbers[lesion.start - 1]
        clicks = zip(lesion.positions_vox, lesion.labels, strict=True)
        return cls(number, tuple((tuple(np.asarray(position).tolist()), label) for position, label in clicks))


class ShownLesions:
    """The predicted lesions of one scan. Start masks must have numbers. Hold `lock` in calls and while reading.

    Args:
        model: the model, shared by all scans.
        source: the click file, for messages.
    """

    def __init__(self, model: SharedModel, source: Path) -> None:
        self.lock = threading.RLock()
        self.revision = 0
        """Increases whenever lesions change."""
        self.lesions: list[ClickedLesion] = []
        self.boxes: dict[int, Box | None] = {}
        """Bounding box by lesion number; None without voxels."""
        self.codes: dict[int, int] = {}
        """The codes of lesions in the labels sent to the page; see `code`."""
        self._model = model
        self._source = source
        self._given: dict[int, _Given] = {}

    def predictor(self, scan: Scan) -> Predictor:
        """The predictor with this scan set; lesions of another scan are removed."""
        predictor = self._model.get().predictor
        if self._model.user is not self:
            first, *others = predictor.modalities
            if first != scan.modality:
                raise InputError(f"the model needs {first}, but the image looks like {scan.modality}")
            images = {first: scan.volume}
            if "CT" in others:
                if scan.ct is None:
                    raise InputError("the model needs PET and CT: also give the CT (--ct)")
                if scan.ct_volume is None:
                    raise InputError("the CT is still being read")
                images["CT"] = scan.ct_volume
            predictor.set_image(images)
            self._model.user = self
            self.forget()
        return predictor

    def forget(self) -> None:
        if self._model.user is self:
            self._model.get().predictor.reset()
        self._given, self.boxes = {}, {}

    def update(self, scan: Scan, clicks: Sequence[Click], start: StartLesions | None) -> Box | None:
        """Make the lesions match the clicks and the start mask; return the box in which lesions changed."""
        from sammed3d_ft.prompted.clicked_scan import group_clicks

        lesions: list[ClickedLesion] = []
        if clicks or start is not None:
            lesions = group_clicks(clicks, clicks_to_vox(clicks, scan.volume.affine), self._source, start)[0]
        if not lesions and not self._given:
            self.lesions = []
            return None
        predictor = self.predictor(scan)
        changed: list[Box | None] = []
        for number in self._given.keys() - {lesion.number for lesion in lesions}:
            predictor.remove(number)
            del self._given[number]
            changed.append(self.boxes.pop(number))
        for lesion in lesions:
            if self._given.get(lesion.number) != _Given.of(lesion, start):
                changed.append(self.boxes.get(lesion.number))
                self.bring(predictor, lesion, start)
                changed.append(self.boxes[lesion.number])
        self.lesions = lesions
        self.revision += bool(changed)
        return union(changed)

    def bring(self, predictor: Predictor, lesion: ClickedLesion, start: StartLesions | None) -> None:
        """Update one lesion, with a single click or undo if that is equivalent to applying all clicks again."""
        number, want = lesion.number, _Given.of(lesion, start)
        have = self._given.get(number)
        step = 0
        if have is not None and have.start == want.start and _grows(lesion, start, want.clicks or have.clicks):
            seen = len(predictor.lesion(number).clicks) == len(have.clicks)
            if want.clicks and want.clicks[:-1] == have.clicks and (have.clicks or want.start is not None):
                step = 1
            elif want.clicks and have.clicks[:-1] == want.clicks and seen:
                step = -1
        if step == 1:
            predictor.add_click(np.array(want.clicks[-1][0]), want.clicks[-1][1], number)
        elif step == -1:
            predictor.undo(number)
        else:
            if have is not None:
                predictor.remove(number)
                del self._given[number]
            if start is not None and lesion.start is not None:
                mask, corner_vox = start.mask(lesion.start)
                predictor.add_mask(mask, number, corner_vox)
            if want.clicks:
                predictor.add_clicks(lesion.positions_vox, lesion.labels, number)
        self._given[number] = want
        found = predictor.lesion(number)
        self.boxes[number] = (found.box.start, found.box.stop) if found.box_mask.size else None

    def accepts(self, scan: Scan, voxel: tuple[int, int, int], lesion: int) -> bool:
        """Whether a click is inside the lesion's crops, or is its first one."""
        given = self._given.get(lesion)
        return given is None or not given.clicks or self.predictor(scan).crop_holds(voxel, lesion)

    def code(self, number: int) -> int:
        """The code of a lesion in the labels sent to the page."""
        return self.codes.setdefault(number, len(self.codes) + 1)

    def labels(self, box: Box) -> np.ndarray:
        """Lesion codes in a box, (x, y, z) int32, in agreement with the instance map of the results."""
        from sammed3d_ft.images.crops import Region
        from sammed3d_ft.prompted.prediction import instance_map

        if not self._given:
            return np.zeros([b - a for a, b in zip(*box, strict=True)], np.int32)
        predictor = self._model.get().predictor
        numbered = instance_map(map(predictor.lesion, self._given), Region.of(*box))
        coded = np.zeros_like(numbered)
        for number in np.unique(numbered[numbered > 0]).tolist():
            coded[numbered == number] = self.code(number)
        return coded

    def table(self, scan: Scan) -> list[dict[str, Any]]:
        """The rows of the lesion table, made by the code that writes it."""
        from sammed3d_ft.recipes.predict import lesion_rows

        if not self.lesions:
            return []
        predictor = self.predictor(scan)
        pet = scan.volume.array if scan.modality == "PT" else None
        return lesion_rows(predictor, self.lesions, predictor.instances(), pet)


def _grows(lesion: ClickedLesion, start: StartLesions | None, clicks: Sequence[tuple[tuple[float, ...], int]]) -> bool:
    """Whether applying clicks one by one is equivalent to applying them all at once.

    With a start mask, the first foreground click inside the mask is moved to the front; the order is unchanged only if
    that is already the first click.
    """
    if start is None or lesion.start is None:
        return True
    return bool(clicks) and clicks[0][1] == 1 and start.at(np.array(clicks[0][0])) == lesion.start


def union(boxes: Sequence[Box | None]) -> Box | None:
    """The bounding box of boxes; None if all are None."""
    found = [box for box in boxes if box is not None]
    if not found:
        return None
    a = np.min([box[0] for box in found], axis=0).tolist()
    b = np.max([box[1] for box in found], axis=0).tolist()
    return (a[0], a[1], a[2]), (b[0], b[1], b[2])
