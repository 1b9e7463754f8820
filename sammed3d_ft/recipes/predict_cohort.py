"""Predict a cohort: segment every case of a manifest from its click file; processes share the cases."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, gather_object
from tqdm import tqdm

from sammed3d_ft.dataset.manifest import Case, read_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.prompted.clicked_scan import ClickedScan
from sammed3d_ft.provenance import file_hashes
from sammed3d_ft.recipes.predict import LoadedModel, Outputs, load_model, segment
from sammed3d_ft.training.contact import in_contact

# A case is predicted again when one of these has changed since its record was written.
_SETTINGS = ("model_hash", "flips", "zoom", "obey", "accumulate_clicks", "preprocessing")


@dataclass(frozen=True)
class CohortOutcome:
    """Number of cases predicted now and before, over all processes, and the failures."""

    done: int
    done_before: int
    failed: dict[str, str]
    """One-line error message by case ID."""
    first_process: bool
    """Whether this process reports the outcome."""
    accumulate: bool
    """Whether the decoder received all clicks so far, or only the newest."""


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
    accumulate: bool | None = None,
) -> CohortOutcome:
    """Write ``masks/``, ``instances/``, ``lesions/`` (CSV) and, if requested, ``figures/`` for each case.

    A case is skipped if its record (``masks/<id>.predict.json``, written last) has the same hashes of model, image and
    clicks and the same ``flips``, ``zoom``, ``obey``, ``accumulate`` and preprocessing. A failed case does
    not stop the others. Under ``accelerate launch``, the processes share the cases.

    Args:
        manifest: a manifest; its labels are not used.
        clicks: folder of click files in any format that `prompts` reads: ``<id>.json``, ``.mrk.json`` or ``.fcsv``.
        checkpoint, base, device, flips, spacing_mm, obey, accumulate: see `Predictor.from_pretrained`; ``device`` None
            uses that of the process.
        out: output folder.
        split: use only the cases of this split.

    Raises:
        InputError: an unreadable manifest, model or folder; nothing has been written then.
    """
    # The timeout is long because one process may have far larger scans; `in_contact` notices earlier if one is lost.
    patient = InitProcessGroupKwargs(timeout=timedelta(days=1))
    with in_contact(partial(Accelerator, kwargs_handlers=[patient])) as state:
        found = read_manifest(manifest)
        cases = found.cases if split is None else found.split(split)
        if not cases:
            raise InputError(f"{manifest}: no cases{'' if split is None else f' in split {split!r}'}")
        if not clicks.is_dir():
            raise InputError(
                f"{clicks}: no such folder; expected one with a click file per case, such as {cases[0].id}.json"
            )
        model = load_model(checkpoint, device or str(state.device), base, flips, spacing_mm, obey, accumulate)
        failed: dict[str, str] = {}
        counts = [0, 0]
        mine = cases[state.process_index :: state.num_processes]
        for case in tqdm(mine, "predict", unit="case", disable=None if state.is_local_main_process else True):
            try:
                counts[int(_predict_case(case, model, clicks, out, figures))] += 1
            except (InputError, RuntimeError, MemoryError, OSError) as error:
                # The next scan may be smaller, or readable.
                failed[case.id] = " ".join(str(error).split())[:500]
        gathered = gather_object([(counts, failed)]) if state.num_processes > 1 else [(counts, failed)]
    state.end_training()  # ends the threads of the process group before the interpreter exits
    return CohortOutcome(
        done=sum(part[0][0] for part in gathered),
        done_before=sum(part[0][1] for part in gathered),
        failed=dict(sorted(item for part in gathered for item in part[1].items())),
        first_process=state.is_main_process,
        accumulate=model.predictor.accumulate,
    )


def _predict_case(case: Case, model: LoadedModel, clicks: Path, out: Path, figures: bool) -> bool:
    """Predict one case, unless it is done already; returns whether it was."""
    started = time.perf_counter()
    first, *others = model.predictor.preprocessing.modalities
    missing = [name for name in (first, *others) if name not in case.images]
    if missing:
        raise InputError(f"the manifest has no {' and no '.join(missing)} image, which the model needs")
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
    raise InputError(f"no click file {folder / case}.json, .mrk.json or .fcsv")


def _is_done(outputs: Outputs, model: LoadedModel, files: dict[str, Path]) -> bool:
    try:
        record = json.loads(outputs.record.read_text(encoding="utf-8"))
        same_model = all(record[fact] == model.facts[fact] for fact in _SETTINGS)
        before = {name: given["sha256"] for name, given in record["inputs"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False  # missing or unreadable: predict again
    if not same_model or not all(path.is_file() for path in outputs.asked_for.values()):
        return False
    try:
        return before == {name: given["sha256"] for name, given in file_hashes(files).items()}
    except OSError:
        return False  # an input is missing: reading it will report the error
