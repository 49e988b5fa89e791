"""Reading files: exact places, damage that stays in its row, and access row by row."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oculi.data import jsonrows
from oculi.data.formats import BadRow, FileScan, FileSource, RowRef, scan
from oculi.data.sample import Sample
from oculi.errors import DataError

SHARED = Path(
    os.environ.get("OCULI_SHARED") or Path(__file__).resolve().parents[2].parent / "shared"
)

Row = dict[str, Any]


def llava(id: object = "a", image: object = "a.png", ask: str = "<image>\nwhat?") -> Row:
    turns = [{"from": "human", "value": ask}, {"from": "gpt", "value": "a cat"}]
    return {"id": id, "image": image, "conversations": turns}


def chat(content: object, images: object = ("a.png",), **extra: object) -> Row:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "a cat"}]
    return {"images": images, "messages": turns, **extra}


def write(path: Path, *rows: object) -> Path:
    lines = (row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows)
    path.write_bytes(b"\n".join(lines))
    return path


def read(path: Path) -> tuple[list[Sample], list[BadRow]]:
    found = list(FileScan(path))
    return (
        [each[1] for each in found if not isinstance(each, BadRow)],
        [each for each in found if isinstance(each, BadRow)],
    )


# Damage


def test_every_defect_in_lines_is_named_and_the_good_rows_stay(tmp_path: Path) -> None:
    path = write(
        tmp_path / "rows.jsonl",
        llava(id="good-1"),
        b'{"id": "cut", "conversations": [',
        b"",
        llava(id="utf8").__repr__().encode(),
        b'{"id": "bytes\xff"}',
        b"[" * 100_000,
        b"null",
        llava(id="none", ask="no placeholder"),
        {"id": "keys", "foo": 1},
        b'{"id": 12, "score": NaN}',
        llava(id="good-2"),
        llava(id="good-2"),
    )
    good, bad = read(path)
    assert [sample.id for sample in good] == ["good-1", "good-2", "good-2"]
    assert [(row.line, row.id) for row in bad] == [
        (2, "cut"),
        (4, ""),
        (5, "bytes\ufffd"),
        (6, ""),
        (7, ""),
        (8, "none"),
        (9, "keys"),
        (10, "12"),
    ]
    assert all(row.file == str(path) and row.reason for row in bad)
    source = FileSource(path)
    assert (len(source), source.duplicates, source.bad_rows) == (3, 1, bad)


def test_damage_in_a_list_stays_in_its_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows = [
        llava(id="good-1"),
        b'{"id": "bytes\xff"}',
        b'{"id": "quote, "conversations": []}',
        llava(id="good-2"),
        b'{"id": "bracket", "conversations": [{"from": "human"}}',
        llava(id="good-3"),
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b"",
        b'"text"',
        b"} 4",
        llava(id="good-4"),
        b"",
    ]
    parts = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    path.write_bytes(b"[\n" + b",\n".join(parts) + b"]\ntail")
    good, bad = read(path)
    assert [sample.id for sample in good] == ["good-1", "good-2", "good-3", "good-4"]
    assert [row.line for row in bad] == [3, 4, 6, 8, 9, 10, 11, 13, 14]
    assert "an empty place in the list" in bad[4].reason
    assert "after the end of the list" in bad[-1].reason


@pytest.mark.parametrize("indent", [None, 1])
def test_a_list_cut_anywhere_keeps_the_rows_before_the_cut(
    tmp_path: Path, indent: int | None
) -> None:
    data = json.dumps([llava(id=i) for i in range(3)], indent=indent).encode()
    path = tmp_path / "rows.json"
    path.write_bytes(data)
    ends = [ref.offset + ref.length for ref in scan(path) if isinstance(ref, RowRef)]
    for cut in range(ends[0], len(data)):
        path.write_bytes(data[:cut])
        good, bad = read(path)
        assert [sample.id for sample in good] == [str(i) for i in range(3) if ends[i] <= cut]
        assert len(bad) == 1 and "the file ends" in bad[0].reason


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("}", ""),
        ("]", ""),
        ("{", ""),
        ("[", ""),
        ("a cat", 'a " cat'),
        ("}", "}}"),
        ("]", "]]"),
        ("{", "{{"),
        ("[", "[["),
        (":", ""),
        (",", ""),
    ],
)
def test_reading_goes_on_after_a_broken_row(
    tmp_path: Path, indent: int | None, old: str, new: str
) -> None:
    rows = [json.dumps(llava(id=id), indent=indent) for id in ("a", "broken", "b", "c", "d")]
    for place in range(rows[1].count(old)):
        parts = rows[1].split(old)
        broken = old.join(parts[: place + 1]) + new + old.join(parts[place + 1 :])
        path = tmp_path / "rows.json"
        path.write_text("[\n" + ",\n".join([rows[0], broken, *rows[2:]]) + "\n]\n")
        good, bad = read(path)
        assert [sample.id for sample in good][-2:] == ["c", "d"]
        assert len(good) >= 3 and 1 <= len(bad) <= 3
        assert bad[0].line >= path.read_text().split("broken")[0].count("\n")


@pytest.mark.parametrize("indent", [0, 2])
def test_an_open_string_in_a_pretty_list_costs_one_row(tmp_path: Path, indent: int) -> None:
    text = json.dumps([llava(id=id) for id in "abc"], indent=indent)
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if '"' not in line or not line.rstrip(",").endswith('"'):
            continue
        broken = [*lines[:number], line.rstrip(',"'), *lines[number + 1 :]]
        path = tmp_path / "rows.json"
        path.write_text("\n".join(broken))
        good, bad = read(path)
        assert (len(good), len(bad)) == (2, 1)
        assert "not valid JSON" in bad[0].reason or "string is not closed" in bad[0].reason


def test_a_row_that_never_closes_takes_the_rest_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    row = json.dumps(llava())
    path.write_text("[" + row + ",\n" + row[:-1] + ",\n3]\n")
    good, bad = read(path)
    assert (len(good), len(bad)) == (1, 1)
    assert (bad[0].line, bad[0].reason) == (2, "the list ends inside this row")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_memory_is_bounded_by_the_row_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(jsonrows, "MAX_ROW_BYTES", 4096)
    monkeypatch.setattr(jsonrows, "_CHUNK", 512)
    parts = [json.dumps(llava(id=i, ask="<image>" + "x" * n)) for i, n in enumerate((1, 9999, 1))]
    text = "[" + ",".join(parts) + "]" if name == "rows.json" else "\n".join(parts)
    (tmp_path / name).write_text(text)
    good, bad = read(tmp_path / name)
    assert [sample.id for sample in good] == (["0"] if name == "rows.json" else ["0", "2"])
    assert len(bad) == 1 and "is longer than 4096 bytes" in bad[0].reason


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"", "the file has no rows"),
        (b" \n", "the file has no rows"),
        (b"[]", "the file has no rows"),
        (b"<html>\n</html>", "no row can be used; the first: line 1: not valid JSON"),
        (b'{"a": 1}\n{"b": 2}', 'line 1: unknown format: the keys are "a"'),
        (b"\xff\xfe{\0", "line 1: not valid UTF-8"),
    ],
)
def test_a_file_of_no_known_format_is_an_error(tmp_path: Path, data: bytes, wanted: str) -> None:
    path = tmp_path / "rows"
    path.write_bytes(data)
    for reader in (FileSource, lambda path: list(scan(path))):
        with pytest.raises(DataError) as caught:
            reader(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert wanted in str(caught.value)
        assert '"conversations"' in str(caught.value) and '"messages"' in str(caught.value)


def test_a_missing_file_and_an_empty_folder_are_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        FileSource(tmp_path / "none.json")
    with pytest.raises(DataError, match="the file has no rows"):
        list(scan(tmp_path))


# Access


def test_source_reads_rows_again_by_place(tmp_path: Path) -> None:
    text = [llava(id=i, image=None, ask="hi") for i in range(4)]
    path = write(tmp_path / "rows.jsonl", llava(id="first"), b"broken", *text)
    source = FileSource(path)
    assert [sample.id for sample in source] == ["first", "0", "1", "2", "3"]
    assert source[1].source == f"{path}:3"
    assert source[-1] == source[4]
    with pytest.raises(IndexError, match="5 good rows"):
        source[5]
    copy = pickle.loads(pickle.dumps(source))
    assert copy[2] == source[2]
    source.close()
    assert source[0].images[0] == copy[0].images[0]


def test_root_defaults_to_the_folder_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", llava(image="x/../a.png"))
    assert FileSource(path)[0].images[0].root == tmp_path  # type: ignore[attr-defined]
    assert len(FileSource(path, tmp_path / "elsewhere")) == 1


def test_forked_children_and_the_parent_do_not_disturb_each_other(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", *(llava(id=i) for i in range(200)))
    source = FileSource(path)
    assert source[0].id == "0"
    child = os.fork()
    if child == 0:
        good = all(source[i].id == str(i) for i in range(200))
        os._exit(0 if good else 1)
    assert all(source[i].id == str(i) for i in reversed(range(200)))
    assert os.waitpid(child, 0)[1] == 0


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", llava())
    source = FileSource(path)
    write(path, llava(), llava())
    with pytest.raises(DataError, match="changed since it was first read"):
        source[0]


def test_a_bad_row_does_not_say_what_the_others_are(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"prompt": "", "response": ""}, *[llava()] * 3)
    found = list(FileScan(path))
    assert [isinstance(one, BadRow) for one in found] == [True, False, False, False]
    # But a file of bad rows alone is of their format.
    path = write(tmp_path / "bad.jsonl", *[{"prompt": "", "response": ""}] * 2)
    scan = FileScan(path)
    assert len(list(scan)) == 2 and scan.form == "instruction"


def test_prompts_without_an_answer_are_for_use_not_for_training(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", {"conversations": [{"from": "human", "value": "hi"}]})
    assert len(FileSource(path)) == 0
    assert FileSource(path, for_training=False)[0].messages[-1].role == "user"


# Any bytes

KEYS = ["id", "image", "images", "conversations", "messages", "from", "value", "role"]
KEYS += ["content", "type", "text"]
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(
        [
            "<image>",
            "a.png",
            "human",
            "gpt",
            "user",
            "system",
            "image",
            "text",
            "",
            "../x",
            "\ud800",
        ]
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(KEYS),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def survives(path: Path) -> None:
    found = []
    try:
        for each in scan(path):
            found.append(each)
        source = FileSource(path)
    except DataError:
        assert all(isinstance(each, BadRow) for each in found)
        return
    assert len(source) == sum(isinstance(each, RowRef) for each in found)
    assert source.bad_rows == [each for each in found if isinstance(each, BadRow)]
    for sample in source:
        sample.validate(for_training=True)


@settings(max_examples=200, deadline=None)
@given(st.lists(VALUES, max_size=5), st.booleans())
def test_any_json_gives_samples_or_data_errors(
    tmp_path_factory: pytest.TempPathFactory, values: list[object], as_list: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.json"
    text = json.dumps(values) if as_list else "\n".join(map(json.dumps, values))
    path.write_text(text)
    survives(path)


@settings(max_examples=200, deadline=None)
@given(
    st.booleans(),
    st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from([*b'{}[]",:\\\n\0 1x', 0xFF, None])),
        max_size=6,
    ),
)
def test_damaged_files_give_samples_or_data_errors(
    tmp_path_factory: pytest.TempPathFactory, as_list: bool, edits: list[tuple[float, int | None]]
) -> None:
    rows = [llava(id=1), chat([{"type": "image"}]), llava(image=None), llava(id="é")]
    text = json.dumps(rows, indent=1) if as_list else "\n".join(map(json.dumps, rows))
    data = bytearray(text.encode())
    for place, value in edits:
        at = min(int(place * len(data)), len(data) - 1)
        data[at : at + 1] = b"" if value is None else bytes([value])
    path = tmp_path_factory.getbasetemp() / "damaged.json"
    path.write_bytes(data)
    survives(path)


# Real data


@pytest.mark.parametrize(
    ("name", "form", "count"),
    [("emoji/train.json", "llava", 1444), ("groceries/train.jsonl", "messages", 2640)],
)
def test_real_files_read_whole(name: str, form: str, count: int) -> None:
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"the development data is not here: {path}")
    source = FileSource(path)
    assert (len(source), source.form, source.bad_rows) == (count, form, [])
    assert source[count - 1].images[0].size() <= (112, 112)
