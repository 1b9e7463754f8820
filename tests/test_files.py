"""A file is either complete or missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from sammed3d_ft.errors import InputError
from sammed3d_ft.files import whole_file, write_csv, write_whole


def test_text_and_bytes_are_written_as_they_are_into_a_folder_made_for_them(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.txt"
    write_whole(path, "é\r\n")
    assert path.read_bytes() == b"\xc3\xa9\r\n"
    write_whole(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert list(path.parent.iterdir()) == [path]


def test_until_the_end_a_reader_sees_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "b.txt"
    write_whole(path, "old")
    with whole_file(path) as temporary:
        temporary.write_text("half")
        assert path.read_text() == "old"
        assert temporary.name.startswith(".")
        assert temporary.name.endswith(".incomplete")
    assert path.read_text() == "half"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_block_that_fails_leaves_the_old_file_alone(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "b.txt"
    write_whole(path, "old")
    with pytest.raises(error), whole_file(path) as temporary:  # noqa: PT012
        temporary.write_text("half")
        raise error
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/b.txt: cannot be written"):
        write_whole(tmp_path / "file" / "b.txt", "text")
    (tmp_path / "folder" / "full").mkdir(parents=True)
    with pytest.raises(InputError, match="folder: cannot be written"):
        write_whole(tmp_path / "folder", "text")
    assert not list(tmp_path.glob(".*"))


def test_a_table_is_written_whole_with_empty_cells_for_what_is_not_there(tmp_path: Path) -> None:
    table = tmp_path / "table.csv"
    rows = [{"a": 1, "b": float("nan")}, {"a": None, "b": "x, y"}, {"b": 0.1}]
    write_csv(table, ("a", "b"), rows)
    assert table.read_bytes() == b'a,b\n1,\n,"x, y"\n,0.1\n'
    with pytest.raises(ValueError, match="c"):  # an unexpected column is an error
        write_csv(table, ("a", "b"), [{"c": 1}])
    assert table.read_bytes() == b'a,b\n1,\n,"x, y"\n,0.1\n'
