"""Every command answers hostile input with one clear line and the right exit code, and loses nothing.

Writes a table of what each input got: hostile.csv and hostile.md in the folder named by HOSTILE_TABLE, or else in
pytest's temporary folder. Run it in one process: each of several would write a table of its own share.
"""

from __future__ import annotations

import csv
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hostile.harness import Answer, Input, complaints, run
from tests.hostile.inputs import all_inputs

pytestmark = pytest.mark.slow
INPUTS = all_inputs()


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Input, Answer, list[str]]]]:
    rows: list[tuple[Input, Answer, list[str]]] = []
    yield rows
    folder = Path(os.environ.get("HOSTILE_TABLE") or tmp_path_factory.mktemp("hostile_table"))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "hostile.csv").open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.writer(file)
        writer.writerow(["input", "kind", "command", "expected", "exit code", "as asked", "seconds", "MB", "answer"])
        for given, answer, wrong in rows:
            said = " ".join((answer.stderr or answer.stdout).split())[:300]
            row = [
                given.name,
                given.kind,
                " ".join(answer.words[:2]),
                given.code,
                answer.code,
                "; ".join(wrong) or "yes",
            ]
            writer.writerow([*row, f"{answer.seconds:.2f}", f"{answer.memory_mb:.0f}", said])
    kinds: defaultdict[str, list[bool]] = defaultdict(list)
    for given, _, wrong in rows:
        kinds[given.kind].append(not wrong)
    lines = ["| kind | inputs | as asked |", "|---|---|---|"]
    lines += [f"| {kind} | {len(found)} | {sum(found)} |" for kind, found in kinds.items()]
    lines.append(f"| all | {len(rows)} | {sum(not wrong for *_, wrong in rows)} |")
    (folder / "hostile.md").write_text("\n".join(lines) + "\n")
    print(f"\n{folder}/hostile.csv\n" + "\n".join(lines))


def test_there_are_enough_and_each_is_another() -> None:
    assert len(INPUTS) >= 300
    assert len({given.name for given in INPUTS}) == len(INPUTS)


@pytest.mark.parametrize("given", INPUTS, ids=lambda given: given.name)
def test_one_clear_line(given: Input, table: list, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    answer = run(given, tmp_path, capfd)
    wrong = complaints(given, answer)
    table.append((given, answer, wrong))
    assert not wrong, (wrong, answer.words, answer.stderr[-1500:])


def test_no_code_of_a_file_was_run() -> None:
    assert not list(Path("/tmp").glob("hostile_*_ran"))
