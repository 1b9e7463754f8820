"""One scan in the viewer: its clicks, saved at every change, and the lesions predicted from them.

The list of clicks is the whole state of a session: the lesions are updated to match it, and an interrupted session is
restored from it.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from prompts.click_files import read_clicks, write_clicks
from prompts.clicks import Click, clicks_to_vox
from sammed3d_ft.errors import InputError
from sammed3d_ft.files import write_whole
from sammed3d_ft.images.images import write_mask
from sammed3d_ft.prompted.start_lesions import StartLesions
from sammed3d_ft.view import cases
from sammed3d_ft.view.cases import ViewedCase
from sammed3d_ft.view.scan import Scan, read_scan
from sammed3d_ft.view.shown_lesions import Box, SharedModel, ShownLesions, union

MOST_LESIONS, MOST_CLICKS = 1000, 5000
_OPENED = "session.json"


@dataclass(frozen=True)
class _State:
    """The user's actions so far."""

    clicks: tuple[Click, ...] = ()
    removed: frozenset[int] = frozenset()
    """Deleted lesions of the start mask."""


class Session:
    """Work on one case. Methods may be called from several threads.

    Args:
        case: the case to open, with its work folder.
        model: the model, shared by all sessions.
    """

    def __init__(self, case: ViewedCase, model: SharedModel) -> None:
        self.case = case
        self._model = model
        self.phase = "reading"
        """reading, ready or failed; `scan` is set when ready."""
        self.error = ""
        self.busy = ""
        """The running computation, shown on the page."""
        self.scan: Scan | None = None
        self.image_seen = threading.Event()
        """Set when the page has the first image; only then is the model loaded."""
        self._state = _State()
        self._history: list[_State] = []
        self._saved: _State | None = None
        self._start: StartLesions | None = None
        self._starts: dict[frozenset[int], StartLesions | None] = {}
        self._kept_start: StartLesions | None = None
        self._clicking = threading.RLock()  # guards the state and its file; held for milliseconds
        self._shown = ShownLesions(model, case.folder / cases.CLICKS)
        self._closed = False

    # Opening

    def open(self) -> None:
        """Read the scan and earlier work, and update the predictor to match it. Problems are stored in ``error``."""
        try:
            self.scan = scan = read_scan(self.case)
            self._read_work(scan)
            self.phase = "ready"
            if scan.ct is not None:
                self.busy = "reading the CT"
                scan.read_ct()
            self.busy = ""
            if not self._state.clicks and self._start is None:
                self.image_seen.wait()
            if self._closed or scan.not_suv:
                return
            self.busy = "loading the model"
            self._model.get()
            self.busy = ""
            self._update_lesions()
        except InputError as error:
            self.error = str(error)
            self.phase = "failed" if self.phase == "reading" else self.phase
        except Exception:
            self.error = "internal error; see the terminal"
            self.phase = "failed" if self.phase == "reading" else self.phase
            raise
        finally:
            self.busy = ""

    def close(self) -> None:
        """End a waiting `open`; the clicks are already on disk."""
        self._closed = True
        self.image_seen.set()

    def _read_work(self, scan: Scan) -> None:
        """Read clicks and mask of an earlier session from the folder, or else the initial ones of the case."""
        folder, image, volume = self.case.folder, scan.image, scan.volume
        again = (folder / _OPENED).is_file()
        begun = folder / cases.START if again else self.case.start
        if begun is not None and begun.is_file():
            found = StartLesions.read(begun, image, volume)
            if found.count > MOST_LESIONS:
                raise InputError(f"{begun}: has {found.count} lesions; the viewer takes at most {MOST_LESIONS}")
            self._start = found if found.numbers else StartLesions(found.labels, tuple(range(1, found.count + 1)))
        self._starts[frozenset()] = self._start
        clicked = folder / cases.CLICKS if again else self.case.clicks
        clicks: tuple[Click, ...] = ()
        if clicked is not None and clicked.is_file():
            read = read_clicks(clicked, affine=volume.source.affine, shape=volume.source.shape)
            if len(read) > MOST_CLICKS:
                raise InputError(f"{clicked}: has {len(read)} clicks; the viewer takes at most {MOST_CLICKS}")
            clicks = tuple(read) if again else self._numbered(read, scan)
        if again:
            if self.case.clicks is not None or self.case.start is not None:
                scan.notes.append("continuing an earlier session; --clicks and --start are ignored")
        else:
            folder.mkdir(parents=True, exist_ok=True)
            self._write_start(self._start)
        self._state = _State(clicks)
        self._history = [_State(clicks[:n]) for n in range(len(clicks))]
        if not again:
            self._keep_clicks(self._state)
            write_whole(folder / _OPENED, '{"version": 1}\n')
        self._saved = self._state if self.case.saved else None

    def _numbered(self, clicks: list[Click], scan: Scan) -> tuple[Click, ...]:
        """The clicks of a file with whole numbers as lesion IDs, numbered as in `predict`.

        Background clicks without a lesion are assigned to each lesion whose crop contains them, as in `predict`; this
        needs the predictor.
        """
        from sammed3d_ft.prompted.clicked_scan import group_clicks

        source = self.case.clicks or scan.image
        coords_vox = clicks_to_vox(clicks, scan.volume.affine)
        lesions, background = group_clicks(clicks, coords_vox, source, self._start)
        if len(lesions) > MOST_LESIONS:
            raise InputError(f"{source}: has {len(lesions)} lesions; the viewer takes at most {MOST_LESIONS}")
        named = [one for one in lesions if isinstance(one.name, str)]
        if named:
            scan.notes.append("lesions were numbered: " + ", ".join(f"{one.name} is {one.number}" for one in named))
        found = []
        for lesion in lesions:
            for position, label in zip(lesion.positions_vox, lesion.labels, strict=True):
                found.append(Click(self._mm(scan, position), label, lesion.number))
        if background:
            with self._shown.lock:
                predictor = self._shown.predictor(scan)
                for lesion in lesions:
                    self._shown.bring(predictor, lesion, self._start)
                for position in background:
                    for lesion in lesions:
                        if predictor.crop_holds(position, lesion.number):
                            found.append(Click(self._mm(scan, position), 0, lesion.number))
                self._shown.forget()
        return tuple(found)

    @staticmethod
    def _mm(scan: Scan, position_vox: Any) -> tuple[float, float, float]:
        x, y, z = scan.volume.to_mm(position_vox).tolist()
        return x, y, z

    # User actions

    def click(self, voxel: tuple[int, int, int], label: int, lesion: int, anyway: bool) -> dict[str, Any]:
        """Add a click. It is saved to disk before anything is computed.

        Args:
            voxel: canonical voxel inside the scan.
            label: 1 lesion, 0 background.
            lesion: the lesion's number; a new number starts a lesion.
            anyway: accept a foreground click outside the lesion's crops, which opens another crop.

        Returns:
            The update for the page; ``outside`` is set if the click was rejected because it is outside the crops.

        Raises:
            InputError: an invalid click.
        """
        scan = self._ready()
        if scan.not_suv:
            raise InputError(f"{scan.not_suv}. It can be viewed, but not segmented")
        click = Click(self._mm(scan, voxel), label, lesion)
        with self._clicking:
            before = self._state
            known = {one.lesion for one in before.clicks} | (self._numbers_of_mask() - before.removed)
            if lesion not in known and len(known) >= MOST_LESIONS:
                raise InputError(f"at most {MOST_LESIONS} lesions")
            if len(before.clicks) >= MOST_CLICKS:
                raise InputError(f"at most {MOST_CLICKS} clicks")
            if lesion not in known and label == 0:
                raise InputError("a lesion's first click must be inside it; background clicks correct a lesion")
            self._change(replace(before, clicks=(*before.clicks, click)))
        with self._shown.lock:
            try:
                self.busy = "loading the model" if self._model.user is None else f"computing lesion {lesion}"
                self._shown.predictor(scan)
                self.busy = f"computing lesion {lesion}"
                if not self._shown.accepts(scan, voxel, lesion) and not (anyway and label):
                    self._withdraw(click)
                    return {"outside": True, "lesion": lesion, **self.news(None)}
                return self.news(self._update_lesions())
            except InputError:
                self._withdraw(click)
                self._update_lesions()
                raise
            finally:
                self.busy = ""

    def undo(self) -> dict[str, Any]:
        """Undo the last action: a click, a reset or a removal."""
        self._ready()
        with self._clicking:
            while self._history and self._history[-1] == self._state:
                self._history.pop()
            if not self._history:
                raise InputError("nothing to undo")
            self._keep(self._history[-1])
            self._history.pop()
        return self._update()

    def reset(self, lesion: int) -> dict[str, Any]:
        """Remove all clicks of a lesion; a lesion of the start mask returns to that mask."""
        self._ready()
        with self._clicking:
            kept = tuple(click for click in self._state.clicks if click.lesion != lesion)
            if kept == self._state.clicks:
                raise InputError(f"lesion {lesion} has no clicks")
            self._change(replace(self._state, clicks=kept))
        return self._update()

    def remove(self, lesion: int) -> dict[str, Any]:
        """Delete a lesion, which may be one of the start mask."""
        self._ready()
        with self._clicking:
            kept = tuple(click for click in self._state.clicks if click.lesion != lesion)
            removed = self._state.removed | ({lesion} & self._numbers_of_mask())
            if (kept, removed) == (self._state.clicks, self._state.removed):
                raise InputError(f"there is no lesion {lesion}")
            self._change(_State(kept, removed))
        return self._update()

    def propose(self) -> list[dict[str, Any]]:
        """Locations of high uptake outside the current lesions, highest SUV first. They show uptake, not disease."""
        from prompts.proposals import proposals_from_pet

        scan = self._ready()
        if scan.modality != "PT" or scan.not_suv:
            raise InputError("proposals need a PET in SUV")
        found = proposals_from_pet(scan.volume.array, scan.volume.spacing_mm)
        with self._shown.lock:
            held = [
                self._shown.labels(((x, y, z), (x + 1, y + 1, z + 1))).any()
                for x, y, z in (p.coords_vox for p in found)
            ]
        free = [proposal for proposal, taken in zip(found, held, strict=True) if not taken]
        return [{"voxel": list(proposal.coords_vox), "suv": proposal.score} for proposal in free]

    def save(self) -> dict[str, Any]:
        """Write the results with the code of `predict`; return the folder and the file names."""
        from sammed3d_ft.prompted.clicked_scan import ClickedScan
        from sammed3d_ft.recipes.predict import Outputs, write_results

        scan, started, folder = self._ready(), time.perf_counter(), self.case.folder
        if scan.not_suv:
            raise InputError(scan.not_suv)
        with self._shown.lock:
            self.busy = "saving"
            try:
                model = self._model.get()
                with self._clicking:
                    state = self._state
                self._update_lesions()
                series = None
                if self.case.is_dicom:
                    from sammed3d_ft.recipes.export_seg import find_series

                    wanted = next(iter(self.case.series), None) if len(self.case.series) == 1 else None
                    series = find_series(self.case.image, scan.volume, scan.image, wanted)
                outputs = Outputs(
                    mask=folder / cases.MASK,
                    instances=folder / cases.INSTANCES,
                    table=folder / cases.TABLE,
                    figure=folder / cases.FIGURE if scan.modality == "PT" else None,
                    seg=None if series is None else folder / cases.SEG,
                )
                own = {"clicks": folder / cases.CLICKS, "start": folder / cases.START}
                files = {"image": scan.image} | {kind: path for kind, path in own.items() if path.is_file()}
                if "CT" in model.predictor.modalities[1:] and scan.ct is not None:
                    files["ct"] = scan.ct
                clicked = ClickedScan(
                    scan.image, scan.volume, self._shown.lesions, [], self._starts[self._state.removed], files
                )
                record = write_results(model, clicked, files, outputs, started, series)
                self._saved = state
            finally:
                self.busy = ""
        written = [
            *record["outputs"].values(),
            str(outputs.record),
            *(str(files[kind]) for kind in own if kind in files),
        ]
        return {"folder": str(folder), "files": sorted({name.rsplit("/", 1)[-1] for name in written})}

    # Updates for the page

    @property
    def unsaved(self) -> bool:
        return self._state != (self._saved or _State()) or (self._start is not None and self._saved is None)

    def news(self, box: Box | None) -> dict[str, Any]:
        """The current clicks and lesions, and the box in which lesions changed."""
        state, shown = self._state, self._shown
        clicks: list[dict[str, Any]] = []
        if self.scan is not None and state.clicks:
            coords_vox = clicks_to_vox(state.clicks, self.scan.volume.affine)
            clicks = [
                {"voxel": np.round(at, 3).tolist(), "label": click.label, "lesion": click.lesion}
                for at, click in zip(coords_vox, state.clicks, strict=True)
            ]
        lesions = [
            {"number": lesion.number, "code": shown.code(lesion.number), "box": shown.boxes.get(lesion.number)}
            for lesion in shown.lesions
        ]
        numbers = self._numbers_of_mask() | {int(str(c.lesion)) for c in state.clicks} | shown.codes.keys()
        return {
            "revision": shown.revision,
            "clicks": clicks,
            "lesions": lesions,
            "next": max(numbers, default=0) + 1,
            "unsaved": self.unsaved,
            "undoable": bool(self._history),
            "box": box,
        }

    def table(self) -> dict[str, Any]:
        """The rows of the lesion table and their revision."""
        scan = self._ready()
        with self._shown.lock:
            return {"revision": self._shown.revision, "rows": self._shown.table(scan)}

    def labels(self, box: Box | None) -> tuple[dict[str, Any], bytes]:
        """Lesion codes (uint16, little-endian, C order) in a box; None uses the bounding box of all lesions."""
        with self._shown.lock:
            box = box or union([*self._shown.boxes.values()])
            head = {"revision": self._shown.revision, "box": box}
            return head, b"" if box is None else self._shown.labels(box).astype("<u2").tobytes()

    # State

    def _ready(self) -> Scan:
        if self.phase != "ready" or self.scan is None:
            raise InputError(self.error or "the scan is still being read")
        return self.scan

    def _numbers_of_mask(self) -> set[int]:
        return set() if self._start is None else set(self._start.numbers or ())

    def _change(self, state: _State) -> None:
        before = self._state
        self._keep(state)
        self._history.append(before)

    def _withdraw(self, click: Click) -> None:
        """Remove a rejected click, also from the undo history."""
        with self._clicking:
            kept = tuple(one for one in self._state.clicks if one is not click)
            self._keep(replace(self._state, clicks=kept))
            if self._history and self._history[-1] == self._state:
                self._history.pop()

    def _keep(self, state: _State) -> None:
        """Set the state, on disk first, so that nothing shown on the page is lost."""
        if state.removed not in self._starts:
            self._starts[state.removed] = self._without(state.removed)
        if self._starts[state.removed] is not self._kept_start:
            self._write_start(self._starts[state.removed])
        self._keep_clicks(state)
        self._state = state

    def _keep_clicks(self, state: _State) -> None:
        path = self.case.folder / cases.CLICKS
        if state.clicks:
            source = self.scan.volume.source if self.scan else None
            assert source is not None
            write_clicks(path, state.clicks, affine=source.affine, shape=source.shape)
        else:
            path.unlink(missing_ok=True)

    def _write_start(self, start: StartLesions | None) -> None:
        path = self.case.folder / cases.START
        if start is None:
            path.unlink(missing_ok=True)
        else:
            assert self.scan is not None
            numbers = np.array((0, *(start.numbers or ())), np.int32)
            write_mask(path, numbers[start.labels], self.scan.volume)
        self._kept_start = start

    def _without(self, removed: frozenset[int]) -> StartLesions | None:
        """The start mask without some of its lesions."""
        start = self._start
        assert start is not None
        assert start.numbers is not None
        kept = [number for number in start.numbers if number not in removed]
        if not kept:
            return None
        code = np.zeros(start.count + 1, np.int32)
        for new, number in enumerate(kept, start=1):
            code[start.numbers.index(number) + 1] = new
        labels = code[start.labels]
        if len(kept) == 1:
            # A file with a single number is read as a binary mask, in which each component is a lesion.
            from prompts.lesions import lesions_from_mask

            if lesions_from_mask(labels)[1] > 1:
                raise InputError(
                    f"lesion {kept[0]} has several parts and cannot be the only one left of the start mask; delete it "
                    "first"
                )
        return StartLesions(labels, tuple(kept))

    def _update(self) -> dict[str, Any]:
        with self._shown.lock:
            self.busy = "computing"
            try:
                return self.news(self._update_lesions())
            finally:
                self.busy = ""

    def _update_lesions(self) -> Box | None:
        """Update the lesions to match the clicks; return the box in which they changed."""
        scan = self._ready()
        with self._shown.lock:
            with self._clicking:
                state, start = self._state, self._starts[self._state.removed]
            return self._shown.update(scan, state.clicks, start)
