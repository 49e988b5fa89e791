"""A set of many files has few of them open, and few bytes of them in memory."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from datafiles import CAPTIONS, TALKS, parquet, said
from oculi.data import columnar, opened
from oculi.data.formats import FileSource

OPEN_FILES = Path("/proc/self/fd")
TABLES = {name: write for name, write in (TALKS | CAPTIONS).items() if name != "folder of pictures"}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(opened, "MAX_OPEN", 3)
    return 3


def open_files() -> int:
    """Of those below the folder for temporary files."""
    links = [os.path.realpath(link) for link in OPEN_FILES.iterdir()]
    return sum("pytest-of-" in link for link in links)


def many(write: Callable[[Path], Path], folder: Path, count: int) -> FileSource:
    """As many files of one kind, as one source."""
    made = []
    for number in range(count):
        (folder / f"{number:03}").mkdir()
        made.append(write(folder / f"{number:03}"))
    return FileSource(folder / "*" / made[0].name)


@pytest.mark.parametrize("write", TABLES.values(), ids=TABLES)
def test_few_files_are_open_at_a_time(
    write: Callable[[Path], Path], tmp_path: Path, few: int
) -> None:
    gc.collect()
    before = open_files()
    source = many(write, tmp_path, 12)
    wanted = [sample.id for sample in source]
    for step in (1, 5, -1):
        order = [i * step % len(source) for i in range(len(source))]
        assert [source[i].id for i in order] == [wanted[i] for i in order]
        assert open_files() <= before + few
    del source
    gc.collect()
    assert open_files() == before


def test_a_file_that_changed_while_it_was_closed_is_noticed(tmp_path: Path, few: int) -> None:
    source = many(TALKS["JSON"], tmp_path, 2 * few)
    for sample in source:
        assert sample.id
    first = source.files[0]
    first.write_bytes(first.read_bytes() + b"\n")
    with pytest.raises(Exception, match=f"{first}: changed since it was first read"):
        source[0]


@pytest.mark.parametrize("write", [TALKS["JSON"], TALKS["Parquet"]], ids=["JSON", "Parquet"])
def test_closing_disturbs_no_thread(
    write: Callable[[Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened, "MAX_OPEN", 1)
    source = many(write, tmp_path, 5)
    wanted = [sample.id for sample in source]
    wrong: list[object] = []

    def read_some(first: int) -> None:
        for i in [*range(first, len(source), 4)] * 8:
            try:
                found = source[i].id
            except Exception as error:
                wrong.append(error)
            else:
                wrong.extend([i] if found != wanted[i] else [])

    threads = [threading.Thread(target=read_some, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_process_forked_in_the_middle_of_a_read_reads_on(tmp_path: Path) -> None:
    source = many(TALKS["JSON"], tmp_path, 2)
    with opened.OPENED.lock:
        child = os.fork()
        if child == 0:
            good = False
            try:
                good = source[0].id is not None
            finally:
                os._exit(0 if good else 1)
    assert os.waitpid(child, 0)[1] == 0


def test_the_files_share_what_is_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columnar, "CACHE_BYTES", 50_000)
    for name in range(6):
        rows = [{"id": f"{name}-{i}", "conversations": said("q" * 2000, "a")} for i in range(12)]
        parquet(tmp_path / f"{name}.parquet", pa.Table.from_pylist(rows), group=2)
    source = FileSource(tmp_path)
    containers = [shard.container for shard in source._shards]

    def kept() -> list[int]:
        lives = [c._live for c in containers if isinstance(c, columnar.Columnar)]
        return [0 if live is None else live.bytes for live in lives]

    for order in (range(72), [i * 29 % 72 for i in range(72)]):
        for i in order:
            assert source[i].id == f"{i // 12}-{i % 12}"
            assert 0 < sum(kept()) <= 50_000
    assert sum(each > 0 for each in kept()) > 2  # a file used longer ago has something still
