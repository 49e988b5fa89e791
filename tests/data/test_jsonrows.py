"""Where rows lie: exact places in lists and lines, whatever the window, and no byte lost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oculi.data import jsonrows
from oculi.data.formats import BadRow, RowRef, scan

Row = dict[str, Any]


def llava(id: object = "a", image: object = "a.png", ask: str = "<image>\nwhat?") -> Row:
    turns = [{"from": "human", "value": ask}, {"from": "gpt", "value": "a cat"}]
    return {"id": id, "image": image, "conversations": turns}


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n\r\n  ", b"\xef\xbb\xbf\n"])
@pytest.mark.parametrize("crlf", [False, True])
def test_list_rows_have_exact_offsets_and_lines(
    tmp_path: Path, indent: int | None, start: bytes, crlf: bool
) -> None:
    rows = [llava(id=f'q"]}},{i}\\', ask='<image> [{"\\ é\u2028') for i in range(40)]
    data = start + json.dumps(rows, indent=indent, ensure_ascii=False).encode() + b"\n\n"
    data = data.replace(b"\n", b"\r\n") if crlf else data
    path = tmp_path / "rows.json"
    path.write_bytes(data)
    for row, found in zip(rows, scan(path), strict=True):
        assert isinstance(found, RowRef)
        assert json.loads(data[found.offset : found.offset + found.length]) == row
        assert found.line == data.count(b"\n", 0, found.offset) + 1


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n\r\n  "])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\n\n \n"])
def test_line_rows_have_exact_offsets_and_lines(
    tmp_path: Path, start: bytes, newline: bytes
) -> None:
    rows = [llava(id=i, ask="<image> é\u2028") for i in range(20)]
    data = start + newline.join(json.dumps(row, ensure_ascii=False).encode() for row in rows)
    path = tmp_path / "rows.jsonl"
    path.write_bytes(data)
    for row, found in zip(rows, scan(path), strict=True):
        assert isinstance(found, RowRef)
        assert json.loads(data[found.offset : found.offset + found.length]) == row
        assert found.line == data.count(b"\n", 0, found.offset) + 1


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_any_window_gives_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    path = tmp_path / "rows.json"
    rows: list[object] = [llava(id='\\"x\\', ask='<image>\\\\\n"é'), 3, "a,b", llava(), None]
    path.write_text(json.dumps(rows, indent=1))
    wanted = list(scan(path))
    monkeypatch.setattr(jsonrows, "_CHUNK", chunk)
    assert list(scan(path)) == wanted
    assert [type(found) for found in wanted] == [RowRef, BadRow, BadRow, RowRef, BadRow]


def boxed(id: int, boxes: int = 2, *, closed: bool = True) -> str:
    """A row that holds objects which begin as the row does, with or without its last brace."""
    row = json.dumps(llava(id) | {"boxes": [{"id": n} for n in range(boxes)]})
    return row if closed else row[:-1]


def good_ids(path: Path, rows: list[str]) -> list[int]:
    path.write_text("[\n" + ",\n".join(rows) + "\n]\n")
    with path.open("rb") as file:
        found = [jsonrows._found(row) for row in jsonrows.raw_rows(file)]
    return [row.row["id"] for row in found if row.row is not None and "conversations" in row.row]


class Counted:
    """A pattern that counts the bytes it has searched."""

    searched = 0

    def __init__(self, pattern: re.Pattern[bytes]) -> None:
        self.pattern = pattern

    def search(self, data: bytes, start: int, *end: int) -> re.Match[bytes] | None:
        match = self.pattern.search(data, start, *end)
        Counted.searched += (match.end() if match else min([len(data), *end])) - start
        return match


@pytest.mark.parametrize("every", [1, 2, 40])
def test_rows_without_an_end_are_not_sought_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """Work is counted: bytes that are looked at, against the bytes of the file."""
    monkeypatch.setattr(jsonrows, "MAX_ROW_BYTES", 2**15)
    monkeypatch.setattr(jsonrows, "_INSIDE", Counted(jsonrows._INSIDE))
    monkeypatch.setattr(jsonrows, "_BETWEEN", Counted(jsonrows._BETWEEN))
    monkeypatch.setattr(Counted, "searched", 0)
    rows = [boxed(n, closed=n % every != 0) for n in range(600)]
    good = good_ids(tmp_path / "rows.json", rows)
    assert good == [n for n in range(600) if n % every != 0]
    assert Counted.searched < 6 * sum(map(len, rows)) + 2**15


def test_a_long_row_is_found_among_rows_without_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the next row begins is where it ends, however far the damage let one look."""
    monkeypatch.setattr(jsonrows, "MAX_ROW_BYTES", 2**15)
    rows = [boxed(n, closed=n % 3 != 0, boxes=2 if n % 3 else 0) for n in range(300)]
    rows[200] = json.dumps(llava(200, ask="<image> " + "[long], " * 3000))
    rows[250] = json.dumps(llava(250, ask="<image> " + "x" * 2**14))
    rows[299] = json.dumps(llava(299, ask="<image> " + "x" * 2**14))
    assert good_ids(tmp_path / "rows.json", rows) == [n for n in range(300) if n % 3]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from([b"{", b"}", b"[", b"]", b",", b'"', b"\\", b"\n", b"a", b" "])))
def test_no_byte_of_a_list_is_lost(
    tmp_path_factory: pytest.TempPathFactory, tokens: list[bytes]
) -> None:
    path = tmp_path_factory.getbasetemp() / "tokens.json"
    data = b"[" + b"".join(tokens)
    path.write_bytes(data)
    with path.open("rb") as file:
        rows = list(jsonrows.raw_rows(file))
    left = bytearray(data)
    for row in rows:
        end = row.offset + len(row.raw)
        assert data[row.offset : end] == row.raw
        assert row.line == data.count(b"\n", 0, row.offset) + 1
        assert not row.raw or left[row.offset : end] == row.raw  # no byte twice
        left[row.offset : end] = b" " * len(row.raw)
    assert set(left) <= set(b"[], \n")
