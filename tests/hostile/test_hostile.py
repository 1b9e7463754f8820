"""Every command answers hostile input with one clear line and the right exit code, and loses nothing.

Writes a table of what each input got: hostile.csv and hostile.md in the folder named by HOSTILE_TABLE, or else in
pytest's temporary folder. Rows already there are kept, unless their input ran again: several processes, or several
runs, fill one table.
"""

from __future__ import annotations

import csv
import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.hostile.harness import Input, complaints, run
from tests.hostile.inputs import all_inputs

INPUTS = all_inputs()
COLUMNS = ["input", "kind", "command", "expected", "exit code", "as asked", "seconds", "MB", "answer"]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, dict[str, object]]]:
    found: dict[str, dict[str, object]] = {}
    yield found
    folder = Path(os.environ.get("HOSTILE_TABLE") or tmp_path_factory.mktemp("hostile_table"))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "hostile.csv"
    with FileLock(folder / ".lock"):
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                found = {row["input"]: row for row in csv.DictReader(file)} | found
        rows = [found[given.name] for given in INPUTS if given.name in found]
        with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        kinds: defaultdict[object, list[bool]] = defaultdict(list)
        for row in rows:
            kinds[row["kind"]].append(row["as asked"] == "yes")
        kinds["all"] = list(itertools.chain(*kinds.values()))
        lines = ["| kind | inputs | as asked |", "|---|---|---|"]
        lines += [f"| {kind} | {len(right)} | {sum(right)} |" for kind, right in kinds.items()]
        (folder / "hostile.md").write_text("\n".join(lines) + "\n")
    print(f"\n{path}\n" + "\n".join(lines))


def test_there_are_enough_and_each_is_another() -> None:
    assert len(INPUTS) >= 300
    assert len({given.name for given in INPUTS}) == len(INPUTS)


# Mix-ups are the sample of the quick tests.
MARKED = [
    pytest.param(given, id=given.name, marks=() if given.kind == "mix-up" else pytest.mark.slow) for given in INPUTS
]


@pytest.mark.parametrize("given", MARKED)
def test_one_clear_line(given: Input, table: dict, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answer = run(given, tmp_path, capfd)
    wrong = complaints(given, answer)
    said = " ".join((answer.stderr or answer.stdout).split())[:300]
    row = (given.name, given.kind, " ".join(answer.words[:2]), given.code, answer.code, "; ".join(wrong) or "yes")
    measured = (f"{answer.seconds:.2f}", f"{answer.memory_mb:.0f}", said)
    table[given.name] = dict(zip(COLUMNS, row + measured, strict=True))
    assert not wrong, (wrong, answer.words, answer.stderr[-1500:])


def test_no_code_of_a_file_was_run() -> None:
    assert not list(Path("/tmp").glob("hostile_*_ran"))
