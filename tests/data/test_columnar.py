"""Parquet and Arrow: damage stays local, bombs stay small, and blocks are read once in order."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datafiles import (
    ROWS,
    arrow,
    parquet,
    png,
    said,
    table,
    write_arrow,
    write_feather,
    write_parquet,
)
from oculi.data import arrowrows, columnar, parquetrows
from oculi.data.check import check
from oculi.data.columnar import guard
from oculi.data.formats import BadRow, FileScan, FileSource
from oculi.data.sample import RowError
from oculi.errors import DataError

WRITERS = [write_parquet, write_arrow, write_feather]
both = pytest.mark.parametrize("write", WRITERS)


def read(path: Path) -> tuple[list[str], list[BadRow]]:
    found = list(FileScan(path))
    bad = [each for each in found if isinstance(each, BadRow)]
    return [each[1].id for each in found if not isinstance(each, BadRow)], bad


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        FileSource(path)
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def text_rows(count: int) -> list[dict[str, Any]]:
    return [{"id": f"{i}", "conversations": said(f"q{i}", f"a{i}")} for i in range(count)]


# Bad rows


@both
def test_every_bad_row_is_named(write: Callable[..., Path], tmp_path: Path) -> None:
    talk = said("<image>\nwhat?", "a cat")
    picture = {"bytes": png(), "path": "a.png"}
    rows = [
        {"id": "good", "image": picture, "conversations": talk},
        {"id": "many", "image": picture, "conversations": said("<image><image>", "a cat")},
        {"id": "hollow", "image": {"bytes": None, "path": None}, "conversations": talk},
        {"id": "outside", "image": {"bytes": None, "path": "../a"}, "conversations": talk},
        {"id": "silent", "image": picture, "conversations": said("<image>", "")},
        {"id": None, "image": picture, "conversations": None},
        {"id": "also good", "image": picture, "conversations": talk},
    ]
    path = write(tmp_path, pa.Table.from_pylist(rows))
    good, bad = read(path)
    assert good == ["good", "also good"]
    assert [(row.id, row.line) for row in bad] == [
        ("many", 2), ("hollow", 3), ("outside", 4), ("silent", 5), ("", 6)
    ]  # fmt: skip
    assert '"image" has neither bytes nor a path' in bad[1].reason
    assert 'the keys are "id" (null), "image", "conversations" (null)' in bad[4].reason
    assert str(bad[0]).startswith(f'{path}:2: row "many": 2 placeholders for 1 image')
    source = FileSource(path)
    assert (len(source), source.bad_rows) == (2, bad)
    assert source[1].source == f"{path}:7"


@both
def test_text_that_is_no_utf8_costs_its_row(write: Callable[..., Path], tmp_path: Path) -> None:
    texts = pa.array([b"fine", b"\xff\xfe", b"too"], pa.binary()).view(pa.string())
    flat = pa.table({"id": ["a", "b", "c"], "prompt": texts, "response": texts})
    turns = pa.StructArray.from_arrays(
        [pa.array(["human", "gpt"] * 3), texts.take([0, 0, 1, 1, 2, 2])], ["from", "value"]
    )
    talks = pa.ListArray.from_arrays(pa.array([0, 2, 4, 6], pa.int32()), turns)
    nested = pa.table({"id": ["a", "b", "c"], "conversations": talks})
    for made in (flat, nested):
        good, bad = read(write(tmp_path, made))
        assert good == ["a", "c"]
        assert [(row.line, row.reason) for row in bad] == [(2, "a text is not valid UTF-8")]


@both
def test_columns_of_no_known_format(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"a": [1], "b\x1b": ["x"]}))
    assert r'unknown format: the columns are "a", "b\x1b"; known: ' in refusal(path)
    assert "the file has no rows" in refusal(write(tmp_path, table(ROWS[:1]).slice(0, 0)))


@both
def test_two_columns_of_one_name(write: Callable[..., Path], tmp_path: Path) -> None:
    made = pa.Table.from_arrays([pa.array(["q"])] * 3, ["prompt", "response", "prompt"])
    assert 'two columns are named "prompt"' in refusal(write(tmp_path, made))


@both
def test_a_name_that_is_no_utf8(write: Callable[..., Path], tmp_path: Path) -> None:
    path = write(tmp_path, pa.table({"prompt": ["q"], "response": ["a"], "zzzz": [1]}))
    path.write_bytes(path.read_bytes().replace(b"zzzz", b"\xff\xfezz"))
    assert "damaged schema" in refusal(path) or "no Parquet file" in refusal(path)


def test_a_dictionary_encoded_arrow_file_is_refused(tmp_path: Path) -> None:
    made = pa.table({"prompt": ["a"], "response": pa.array(["b"]).dictionary_encode()})
    assert 'the column "response" is dictionary-encoded' in refusal(write_arrow(tmp_path, made))
    assert len(FileSource(write_parquet(tmp_path, made))) == 1


def test_types_of_other_writers(tmp_path: Path) -> None:
    turn = pa.struct([("from", pa.large_string()), ("value", pa.string_view())])
    columns = {
        "id": pa.array([7], pa.int64()),
        "image": pa.array([png()], pa.large_binary()),
        "conversations": pa.array([said("<image>q", "a")], pa.large_list(turn)),
    }
    for write in (write_arrow, write_feather):
        (sample,) = FileSource(write(tmp_path, pa.table(columns)))
        assert (sample.id, sample.images[0].size(), sample.messages[0].text) == ("7", (8, 6), "q")
    frames = {"frames": pa.array([[png(), png(2, 2)]], pa.list_(pa.binary())), "id": [1]}
    frames["conversations"] = pa.array([said("q", "a")])
    (sample,) = source = FileSource(write_parquet(tmp_path, pa.table(frames)))
    assert source.form == "vora" and [image.size() for image in sample.images] == [(8, 6), (2, 2)]


# Damage


def test_a_parquet_file_cut_anywhere_is_one_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path)
    data = path.read_bytes()
    for cut in (0, 3, 4, 11, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:cut])
        said = refusal(path)
        assert "is cut off, encrypted or no Parquet file" in said


def test_a_damaged_row_group_costs_its_rows(tmp_path: Path) -> None:
    path = parquet(tmp_path / "rows.parquet", pa.Table.from_pylist(text_rows(9)), group=3)
    column = pq.ParquetFile(path).metadata.row_group(1).column(0)
    data = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    good, bad = read(path)
    assert good == ["0", "1", "2", "6", "7", "8"]
    assert [(row.line, row.reason.partition(":")[0]) for row in bad] == [(4, "rows 4 to 6")]
    assert columnar.DAMAGED in bad[0].reason
    source = FileSource(path)
    assert [source[i].source for i in (5, 3)] == [f"{path}:9", f"{path}:7"]


@pytest.mark.parametrize("write", [write_arrow, write_feather])
def test_an_arrow_file_cut_anywhere_keeps_the_batches_before(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    path = write(tmp_path)
    container = FileSource(path)._shards[0].container
    assert isinstance(container, arrowrows.ArrowRows)
    ends = [end for _, _, end in container._groups(container._reader())]
    assert len(ends) == 3
    data = path.read_bytes()
    for cut in (*range(ends[0], ends[2] + 4, 13), *ends):
        path.write_bytes(data[:cut])
        good, bad = read(path)
        assert len(good) == min(5, 2 * sum(end <= cut for end in ends))
        assert len(bad) == 1 and bad[0].reason.startswith(f"rows {len(good) + 1} to the last: ")
        if cut in ends:
            assert "without its end mark" in bad[0].reason
    for cut in (0, 4, 7, 40, ends[0] - 1):
        path.write_bytes(data[:cut])
        refusal(path)


# Bombs


@both
def test_a_long_cell_is_a_bad_row(
    write: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar, "MAX_BYTES", 10_000)
    monkeypatch.setattr(columnar, "MAX_ROW_BYTES", 1000)
    rows = [
        {"id": "a", "image": bytes(10_001), "prompt": "q", "response": "a"},
        {"id": "b", "image": None, "prompt": "q", "response": "a" * 1001},
        {"id": "c", "image": None, "prompt": "q", "response": "a" * 1000},
    ]
    good, bad = read(write(tmp_path, pa.Table.from_pylist(rows)))
    assert good == ["c"]
    assert [(row.line, row.reason) for row in bad] == [
        (1, '"image" holds more than 10000 bytes'),
        (2, '"response" holds a text of more than 1000 bytes'),
    ]


def test_rows_without_bytes_are_refused_in_arrow(tmp_path: Path) -> None:
    count = 2**30
    path = tmp_path / "rows.arrow"
    nulls = pa.RecordBatch.from_arrays([pa.nulls(count)], ["text"])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, nulls.schema) as writer:
        writer.write_batch(nulls)
    assert f"claims {count} values in 0 bytes" in refusal(path)
    inner = pa.ListArray.from_arrays(pa.array([0, 2**30], pa.int32()), pa.nulls(2**30))
    path = arrow(path, pa.table({"prompt": ["q"], "response": ["a"], "texts": inner}))
    assert f"claims {2**30} values" in refusal(path)


def test_rows_without_bytes_are_refused_in_parquet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pa.table({"text": pa.nulls(500_000, pa.string())})
    path = write_parquet(tmp_path, made, group=500_000)
    monkeypatch.setattr(parquetrows, "_ROWS_FREE", 1000)
    assert "claims 500000 rows in" in refusal(path)


def test_a_batch_that_claims_too_much_is_not_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_feather(tmp_path, pa.table({"prompt": ["q"], "response": ["a" * 100_000]}))
    assert len(FileSource(path)) == 1
    monkeypatch.setattr(arrowrows, "MAX_BATCH_BYTES", 99_999)
    monkeypatch.setattr(pa.ipc, "read_record_batch", lambda *a: pytest.fail("unpacked"))
    assert "a batch claims more than 99999 bytes unpacked" in refusal(path)


def test_a_compressed_buffer_that_lies_is_damage(tmp_path: Path) -> None:
    path = write_feather(tmp_path, pa.table({"prompt": ["q"], "response": ["a" * 100_000]}))
    data = path.read_bytes()
    for claim in (2**62, 2**31, 99_000):
        path.write_bytes(data.replace(struct.pack("<q", 100_000), struct.pack("<q", claim)))
        refusal(path)


# Blocks


def test_reading_in_order_decodes_each_block_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parquetrows, "BLOCK_ROWS", 4)
    path = parquet(tmp_path / "rows.parquet", pa.Table.from_pylist(text_rows(40)), group=20)
    source = FileSource(path)
    seen: list[int] = []
    kept = columnar.validated
    monkeypatch.setattr(
        parquetrows, "validated", lambda block: seen.append(block.num_rows) or kept(block)
    )
    assert [sample.id for sample in source] == [str(i) for i in range(40)]
    assert seen == [4] * 10
    assert [source[i].id for i in (39, 0, 21)] == ["39", "0", "21"]
    assert len(seen) == 10  # all of it fits what is kept


def test_large_row_groups_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path)
    assert check([path]).notes == []
    monkeypatch.setattr(parquetrows, "SLOW_BYTES", 100)
    (note,) = check([path]).notes
    assert note.startswith(f"{path}: row groups of up to 0 MiB")
    assert f"note: {note}" in list(check([path]).lines())


def test_only_so_much_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquetrows, "BLOCK_ROWS", 4)
    monkeypatch.setattr(columnar, "CACHE_BYTES", 1500)
    path = parquet(tmp_path / "rows.parquet", pa.Table.from_pylist(text_rows(40)), group=20)
    source = FileSource(path)
    assert [source[i].id for i in (39, 0, 21, 3, 39, 12, 11)] == [
        "39", "0", "21", "3", "39", "12", "11"
    ]  # fmt: skip
    container = source._shards[0].container
    assert isinstance(container, columnar.Columnar) and container._live is not None
    live = container._live
    assert live.bytes == sum(block.nbytes for block in live.blocks.values()) <= 1500
    assert 1 <= len(live.blocks) < 10


@both
def test_threads_share_a_source(write: Callable[..., Path], tmp_path: Path) -> None:
    source = FileSource(write(tmp_path, pa.Table.from_pylist(text_rows(50))))
    wrong: list[int] = []

    def read_some(first: int) -> None:
        for i in range(first, 50, 4):
            if source[i].id != str(i):
                wrong.append(i)

    threads = [threading.Thread(target=read_some, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_want_of_memory_is_no_fault_of_the_file() -> None:
    def short() -> None:
        raise MemoryError

    def absurd() -> None:
        raise pa.ArrowMemoryError("malloc of size 1234567890123 failed")

    with pytest.raises(MemoryError):
        guard(short)
    with pytest.raises(RowError, match="damaged"):
        guard(absurd)

    class Block:
        def validate(self, full: bool) -> None:
            short()

    with pytest.raises(MemoryError):
        columnar.validated(Block())
