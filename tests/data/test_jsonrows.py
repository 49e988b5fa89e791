"""Where rows lie: exact places in lists and lines, whatever the window, and no byte lost."""

from __future__ import annotations

import json
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
