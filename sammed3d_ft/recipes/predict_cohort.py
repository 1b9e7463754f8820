"""Predict a cohort: every case of a manifest that has clicks, shared among processes, resumable case by case."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from sammed3d_ft.dataset.manifest import Case, read_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.prompted.clicked_scan import ClickedScan
from sammed3d_ft.provenance import file_hashes
from sammed3d_ft.recipes.predict import LoadedModel, Outputs, load_model, segment

# A case is predicted again when one of these has changed since its record was written.
_SETTINGS = ("model_hash", "flips", "zoom", "obey", "preprocessing")


@dataclass(frozen=True)
class CohortOutcome:
    """How many cases there are in all processes, and what became of them."""

    done: int
    done_before: int
    failed: dict[str, str]
    """By case id: the one line of what was wrong."""
    first_process: bool
    """Whether this process is the one to tell of it."""


def run(
    manifest: Path,
    clicks: Path,
    checkpoint: Path,
    out: Path,
    split: str | None = None,
    figures: bool = False,
    base: Path | None = None,
    device: str | None = None,
    flips: bool = False,
    spacing_mm: float | None = None,
    obey: bool = True,
) -> CohortOutcome:
    """Writes ``masks/``, ``instances/``, ``lesions/`` (CSV) and, if asked, ``figures/`` for each case.

    A case is done when its record (``masks/<id>.predict.json``, written last) is there and names the same model, image
    and clicks by their hashes, the same ``flips``, ``zoom``, ``obey`` and preprocessing; such a case is not done again.
    A case that fails does not stop the others. Started by ``accelerate launch``, the processes share the cases.

    Args:
        manifest: its images are used, its labels are not.
        clicks: folder of click files, ``<id>.json`` (or .mrk.json, .fcsv), of any form that `prompts` reads.
        checkpoint, base, device, flips, spacing_mm, obey: see `Predictor.from_pretrained`; ``device`` None takes that
            of the process.
        out: folder.
        split: only these cases.

    Raises:
        InputError: a manifest, a model or a folder that cannot be read: nothing was done then.
    """
    state = Accelerator()
    found = read_manifest(manifest)
    cases = found.cases if split is None else found.split(split)
    if not cases:
        raise InputError(f"{manifest}: no case{'' if split is None else f' of split {split!r}'}")
    if not clicks.is_dir():
        raise InputError(f"{clicks}: no such folder; it should hold a click file per case, such as {cases[0].id}.json")
    model = load_model(checkpoint, device or str(state.device), base, flips, spacing_mm, obey)
    failed: dict[str, str] = {}
    counts = [0, 0]
    mine = cases[state.process_index :: state.num_processes]
    for case in tqdm(mine, "predict", unit="case", disable=None if state.is_local_main_process else True):
        try:
            counts[int(_predict_case(case, model, clicks, out, figures))] += 1
        except (InputError, RuntimeError, MemoryError, OSError) as error:  # the next scan may be smaller, or readable
            failed[case.id] = " ".join(str(error).split())[:500]
    gathered = gather_object([(counts, failed)]) if state.num_processes > 1 else [(counts, failed)]
    state.end_training()  # no thread of the process group is left when the interpreter ends
    return CohortOutcome(
        done=sum(part[0][0] for part in gathered),
        done_before=sum(part[0][1] for part in gathered),
        failed=dict(sorted(item for part in gathered for item in part[1].items())),
        first_process=state.is_main_process,
    )


def _predict_case(case: Case, model: LoadedModel, clicks: Path, out: Path, figures: bool) -> bool:
    """Predicts one case; True if that was done before."""
    started = time.perf_counter()
    first, *others = model.predictor.preprocessing.modalities
    missing = [name for name in (first, *others) if name not in case.images]
    if missing:
        raise InputError(f"the manifest names no {' and no '.join(missing)} image, which the model sees")
    image, ct = case.images[first], case.images["CT"] if others else None
    given = _click_file(clicks, case.id)
    outputs = Outputs(
        mask=out / "masks" / f"{case.id}.nii.gz",
        instances=out / "instances" / f"{case.id}.nii.gz",
        table=out / "lesions" / f"{case.id}.csv",
        figure=out / "figures" / f"{case.id}.png" if figures else None,
    )
    files = {"image": image, "clicks": given} | ({} if ct is None else {"ct": ct})
    if _is_done(outputs, model, files):
        return True
    segment(model, ClickedScan.read(image, given), ct, outputs, started)
    return False


def _click_file(folder: Path, case: str) -> Path:
    for ending in (".json", ".mrk.json", ".fcsv"):
        if (folder / f"{case}{ending}").is_file():
            return folder / f"{case}{ending}"
    raise InputError(f"no click file {folder / case}.json (nor .mrk.json, .fcsv)")


def _is_done(outputs: Outputs, model: LoadedModel, files: dict[str, Path]) -> bool:
    try:
        record = json.loads(outputs.record.read_text(encoding="utf-8"))
        same_model = all(record[fact] == model.facts[fact] for fact in _SETTINGS)
        before = {name: given["sha256"] for name, given in record["inputs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # none, or not one of ours: it is made anew
    if not same_model or not all(path.is_file() for path in outputs.asked_for.values()):
        return False
    try:
        return before == {name: given["sha256"] for name, given in file_hashes(files).items()}
    except OSError:
        return False  # an input is gone: reading it will say so
