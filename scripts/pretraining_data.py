"""Make phantoms for pre-training: sets of small and of large lesions, in one manifest.

python scripts/pretraining_data.py pretrain/data

About 15 minutes of a CPU core and 4 GB. The sets are in folders of their own; those already complete are kept.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from sammed3d_ft.dataset.manifest import Case, read_manifest, write_manifest
from sammed3d_ft.phantom.cohort import write_cohort


class PhantomSet(NamedTuple):
    """Arguments of `write_cohort`."""

    cases: int
    val: int
    seed: int
    tracer: str
    field: str
    lesion_ml: float


SETS = {
    "usual": PhantomSet(84, 4, 1500, "both", "whole-body", 1.0),
    "small": PhantomSet(40, 0, 1900, "both", "whole-body", 0.6),
    "pelvis": PhantomSet(60, 0, 2000, "both", "pelvis", 0.8),
    "medium": PhantomSet(40, 0, 1700, "both", "whole-body", 8.0),
    "large": PhantomSet(56, 2, 1600, "fdg", "whole-body", 40.0),
    "largest": PhantomSet(24, 0, 1800, "fdg", "whole-body", 100.0),
}


def make(out: Path, sets: Mapping[str, PhantomSet] = SETS) -> Path:
    """Write the sets and return the path of their joint manifest; InputError for a set that was interrupted."""
    listed: list[Case] = []
    for name, one in sets.items():
        manifest = out / name / "manifest.json"
        if not manifest.exists():
            print(f"{name}: {one}", flush=True)
            write_cohort(out / name, one.cases, one.seed, one.tracer, one.field, val=one.val, lesion_ml=one.lesion_ml)
        listed += [replace(case, id=f"{name}_{case.id}") for case in read_manifest(manifest).cases]
    write_manifest(out / "manifest.json", listed)
    return out / "manifest.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    print(make(parser.parse_args().out))


if __name__ == "__main__":
    main()
