"""Every container gives the same rows: in order, at random, pickled, and in forked processes."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datafiles import CAPTIONS, HOSTILE, ROWS, TALKS
from oculi.data.check import check
from oculi.data.formats import BadRow, FileScan, FileSource
from oculi.data.sample import ImageSlot, Sample

ALL = TALKS | CAPTIONS
Writer = Callable[[Path], Path]


def contents(sample: Sample) -> tuple[Any, ...]:
    """What a sample is, wherever it comes from."""
    pixels = [(image.size(), image.load().getpixel((0, 0))) for image in sample.images]
    return sample.id, sample.messages, pixels


def each(writers: dict[str, Writer]) -> Any:
    return pytest.mark.parametrize("write", writers.values(), ids=writers)


@each(TALKS)
def test_conversations_are_the_same_in_every_container(write: Writer, tmp_path: Path) -> None:
    source = FileSource(write(tmp_path))
    assert (source.form, source.bad_rows, source.duplicates) == ("sharegpt", [], 0)
    samples = list(source)
    assert [sample.id for sample in samples] == [row["id"] for row in ROWS]
    assert [contents(sample) for sample in samples] == [
        contents(sample) for sample in FileSource(TALKS["JSON"](tmp_path / "json"))
    ]
    assert samples[0].messages[0].content == (ImageSlot(0), "\nwhat?")
    assert samples[1].messages[0].content == (HOSTILE,)
    assert samples[2].messages[0].content == (ImageSlot(0), " and ", ImageSlot(1), "?")
    assert samples[2].messages[3].content == ("é <image>",)
    assert [image.size() for image in samples[2].images] == [(4, 4), (5, 7)]


@each(CAPTIONS)
def test_captions_are_the_same_in_every_container(write: Writer, tmp_path: Path) -> None:
    source = FileSource(write(tmp_path))
    assert (source.form, source.bad_rows) == ("caption", [])
    found = {sample.messages[1].text: sample for sample in source}
    assert set(found) == {"a cat", HOSTILE, "é"}
    assert [found[name].images[0].load().size for name in ("a cat", HOSTILE, "é")] == [
        (8, 6), (9, 6), (10, 6)
    ]  # fmt: skip
    assert all(sample.messages[0].content == (ImageSlot(0),) for sample in source)


@each(ALL)
def test_random_access_is_iteration(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path)
    scanned = [found[1] for found in FileScan(path) if not isinstance(found, BadRow)]
    source = FileSource(path)
    assert list(map(contents, scanned)) == list(map(contents, source))
    for order in ([3, 0, 2, 1, 2, 0, -1], range(len(source) - 1, -1, -1)):
        for index in order:
            if index < len(source):
                assert contents(source[index]) == contents(scanned[index])
    assert source[-1].source == f"{scanned[-1].source}"
    source.close()
    assert contents(source[0]) == contents(scanned[0])


@each(ALL)
def test_a_pickled_source_reads_the_same(write: Writer, tmp_path: Path) -> None:
    source = FileSource(write(tmp_path))
    wanted = [contents(sample) for sample in source]
    assert [contents(sample) for sample in pickle.loads(pickle.dumps(source))] == wanted


@each(ALL)
def test_forked_processes_read_the_same(write: Writer, tmp_path: Path) -> None:
    source = FileSource(write(tmp_path))
    wanted = [contents(sample) for sample in source]
    children = []
    for _ in range(2):
        child = os.fork()
        if child == 0:
            good = False
            try:
                good = [contents(source[i]) for i in range(len(source))] == wanted
            finally:
                os._exit(0 if good else 1)
        children.append(child)
    backwards = [contents(source[i]) for i in reversed(range(len(source)))]
    assert backwards == wanted[::-1]
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]


@each(ALL)
def test_the_report_names_form_and_container(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path)
    report = check([path])
    assert report.ok and report.good == report.rows >= 3
    kind = "Arrow" if "Arrow" in str(write) or path.suffix in (".arrow", ".feather") else None
    kind = kind or next(name for name, writer in ALL.items() if writer is write)
    assert report.containers == {str(path): kind}
    form = "caption" if write in CAPTIONS.values() else "sharegpt"
    assert f"{path}: {form} ({kind})" in list(report.lines())


@each({name: write for name, write in ALL.items() if name != "folder of pictures"})
def test_a_file_that_changed_is_noticed(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path)
    source = FileSource(path)
    path.write_bytes(path.read_bytes() + b"\n")
    with pytest.raises(Exception, match="changed since it was first read") as caught:
        source[0]
    assert type(caught.value).__name__ == "DataError"


@each(ALL)
def test_a_fingerprint_knows_the_files_and_the_rules(write: Writer, tmp_path: Path) -> None:
    path = write(tmp_path)
    known = FileSource(path).fingerprint
    assert known == FileSource(path).fingerprint
    assert known != FileSource(path, limit=1).fingerprint
    assert known != FileSource(path, tag="x").fingerprint
    assert known != FileSource(path, tmp_path.parent).fingerprint or not path.is_file()
    touched = next(path.glob("*.txt")) if path.is_dir() else path
    os.utime(touched, (1, 1))
    assert known != FileSource(path).fingerprint


def test_a_row_takes_sixteen_bytes(tmp_path: Path) -> None:
    for write in ALL.values():
        source = FileSource(write(tmp_path / write.__name__))
        (shard,) = source._shards
        held = shard._offsets.nbytes + shard._lengths.nbytes + shard._lines.nbytes
        assert held == 16 * len(source)
