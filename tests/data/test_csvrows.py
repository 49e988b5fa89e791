"""CSV: records over several lines, and quotes that are lost."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datafiles import EXAMPLES, HOSTILE
from oculi.data import csvrows
from oculi.data.csvrows import CsvRows
from oculi.data.formats import BadRow, FileScan, FileSource
from oculi.errors import DataError


def read(path: Path, text: str | bytes) -> tuple[list[tuple[str, int]], list[BadRow]]:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    found = list(FileScan(path))
    bad = [each for each in found if isinstance(each, BadRow)]
    good = [
        (each[1].messages[1].text, each[0].line) for each in found if not isinstance(each, BadRow)
    ]
    return good, bad


def test_records_and_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    quoted = HOSTILE.replace('"', '""')
    text = f'\ufeffprompt,response\r\n\r\nq,a\r\nq,"a\r\nb"\r\n"{quoted}","c"\r\n'
    assert read(path, text) == ([("a", 3), ("a\r\nb", 4), ("c", 6)], [])
    source = FileSource(path)
    assert source[2].messages[0].text == HOSTILE
    assert [source[i].messages[1].text for i in (2, 0, 1)] == ["c", "a", "a\r\nb"]
    assert read(tmp_path / "rows.tsv", 'prompt\tresponse\nq, 5" wide\ta,b') == ([("a,b", 2)], [])


def test_every_bad_row_is_named(tmp_path: Path) -> None:
    lines = [
        "id,prompt,response",
        "good,q,a1",
        "few,q",
        "many,q,a,b",
        'open,"q,a',
        "good,q,a2",
        'after"quote,q,"a"x',
        "silent,q,",
        "good,q,a3",
        'late,q,"a',
    ]
    good, bad = read(tmp_path / "rows.csv", "\n".join(lines))
    assert good == [("a1", 2), ("a2", 6), ("a3", 9)]
    assert [row.line for row in bad] == [3, 4, 5, 7, 8, 10]
    assert bad[0].reason == "has 2 fields where the header has 3"
    assert "not valid CSV" in bad[2].reason and "not valid CSV" in bad[5].reason
    assert 'the keys are "id", "prompt", "response" (null)' in bad[4].reason
    assert bad[4].id == "silent"


def test_bytes_that_are_no_text_and_fields_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "rows.csv"
    good, bad = read(path, b"prompt,response\nq,\xff\nq,a\n")
    assert (good, [(row.line, row.reason) for row in bad]) == (
        [("a", 3)], [(2, "not valid UTF-8 at byte 3 of the row")]
    )  # fmt: skip
    good, bad = read(path, f"prompt,response\nq,{'x' * 140_000}\nq,a\n")
    assert (good, [row.reason for row in bad]) == (
        [("a", 3)], ["a field is longer than 131072 characters"]
    )  # fmt: skip
    monkeypatch.setattr(csvrows, "MAX_RECORD_BYTES", 100)
    good, bad = read(path, f"prompt,response\nq,{'x' * 1000}\nq,a\n" + 'q,"' + "x\n" * 1000)
    assert good == [("a", 3)] and "row is longer than 100 bytes" in bad[0].reason
    assert len(bad) == 1002 - 1  # every line of the open quote has a name


def test_headers(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    for text, wanted in (
        ("", "the file has no rows"),
        ("prompt,response\n", "the file has no rows"),
        ("prompt,prompt\nq,a\n", 'line 1: the header names the column "prompt" twice'),
        ('"prompt\nq,a\n', "line 1: not valid CSV"),
        ("a,b\nq,a\n", 'line 2: unknown format: the keys are "a", "b"'),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=wanted):
            FileSource(path)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(st.text("ab,\"\n\r\t é'<>"), st.text('ab,"\n\r <>')), max_size=6))
def test_what_csv_wrote_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["prompt", "response"])
    writer.writerows(rows)
    path = tmp_path_factory.getbasetemp() / "written.csv"
    path.write_text(file.getvalue(), encoding="utf-8", newline="")
    found = [row.row for row in CsvRows(path).rows()]
    assert found == [{"prompt": ask or None, "response": answer or None} for ask, answer in rows]
