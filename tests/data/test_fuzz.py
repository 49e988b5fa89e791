"""Any bytes in place of a data file give samples, bad rows, or one DataError; never anything else.

`OCULI_LONG=1` runs many more examples.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datafiles import (
    EXAMPLES,
    HOSTILE,
    chat,
    data_url,
    png,
    said,
    table,
    write_arrow,
    write_csv,
    write_feather,
    write_folder,
    write_json,
    write_parquet,
    write_tar,
)
from oculi.data.check import check
from oculi.data.formats import BadRow, FileScan, FileSource
from oculi.data.forms import FORMS, KEYS, find_form
from oculi.data.rows import build_sample
from oculi.data.sample import Sample
from oculi.errors import DataError

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def plain_parquet(folder: Path) -> Path:
    """Without compression and dictionaries, and with pages of the second kind."""
    path = folder / "plain.parquet"
    options: Any = {"compression": "none", "use_dictionary": False, "data_page_version": "2.0"}
    pq.write_table(table(), path, row_group_size=2, write_page_checksum=True, **options)
    return path


def json_list(folder: Path) -> Path:
    path = write_json(folder)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path = folder / "rows.json"
    path.write_text(json.dumps(rows, indent=1))
    return path


WRITERS: list[Callable[[Path], Path]] = [
    write_json,
    json_list,
    write_csv,
    write_parquet,
    plain_parquet,
    write_arrow,
    write_feather,
    write_tar,
]


@lru_cache
def valid(write: Callable[[Path], Path], folder: Path) -> tuple[Path, bytes]:
    (folder / write.__name__).mkdir(exist_ok=True)
    path = write(folder / write.__name__)
    assert len(FileSource(path)) >= 3
    return path, path.read_bytes()


# What is done to a file: at a place (in millionths), so many bytes are replaced by others.
PLACES = st.integers(0, 10**6)
EDITS = st.lists(
    st.tuples(
        PLACES,
        st.sampled_from([0, 1, 1, 4, 8, 512]),
        st.one_of(
            st.binary(max_size=8),
            st.sampled_from(
                [b"", b"\xff" * 4, b"\xff" * 8, b"\xff\xff\xff\x7f", b"\0" * 8, b"\0" * 512]
            ),
            st.sampled_from([b'"', b"\n", b"{", b"]", b",", b"\\", b"\0", b"\x80"]),
        ),
    ),
    max_size=5,
)
CUTS = st.none() | PLACES


def survives(path: Path) -> None:
    """Read a file in every way, and see that the ways agree."""
    found: list[Any] = []
    try:
        for each in FileScan(path):
            found.append(each)
        source = FileSource(path)
    except DataError as error:
        one_line(error, str(path))
        assert all(isinstance(each, BadRow) for each in found)
    else:
        bad = [each for each in found if isinstance(each, BadRow)]
        good = [each[1] for each in found if not isinstance(each, BadRow)]
        assert source.bad_rows == bad and all(row.reason and "\n" not in str(row) for row in bad)
        assert list(source) == good and [source[i] for i in range(len(good))][::-1] == good[::-1]
        for sample in good:
            sample.validate(for_training=True)
            looked_at(sample)
        source.close()
    report = check([path])
    assert report.rows >= report.good and (report.ok or report.bad_rows)


def one_line(error: DataError, start: str = "") -> None:
    """What is said can be printed, and names the file."""
    str(error).encode()
    assert str(error).startswith(start) and "\n" not in str(error)


def looked_at(sample: Sample) -> None:
    for image in sample.images:
        try:
            assert image.load().size == image.size()
        except DataError as error:
            one_line(error)


@pytest.mark.parametrize("write", WRITERS)
@fuzzed
@given(edits=EDITS, flips=st.lists(PLACES, max_size=3), cut=CUTS)
def test_damaged_files_give_rows_or_reasons(
    write: Callable[[Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
    edits: list[tuple[int, int, bytes]],
    flips: list[int],
    cut: int | None,
) -> None:
    path, whole = valid(write, tmp_path_factory.getbasetemp())
    data = bytearray(whole)
    for flip in flips:
        data[flip * (len(data) - 1) // 10**6] ^= 1 << flip % 8
    for place, count, new in edits:
        at = place * len(data) // 10**6
        data[at : at + count] = new
    if cut is not None:
        del data[cut * len(data) // 10**6 :]
    path.write_bytes(data)
    survives(path)


@fuzzed
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["0", "1", "a.b", "é", "\udcff"]),
            st.sampled_from(["png", "JPG", "txt", "json", "caption", "npy", ""]),
            st.one_of(
                st.binary(max_size=20),
                st.sampled_from([png(), b'{"text": "a"}', b'{"image": "0.png", "text": 1}', b"[]"]),
            ),
        ),
        max_size=8,
    )
)
def test_any_folder_gives_rows_or_reasons(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[str, str, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("folder")
    write_folder(folder, ("a cat",))
    for stem, suffix, data in files:
        (folder / f"{stem}.{suffix}").write_bytes(data)
    survives(folder)


# Values that rows of every house are made of, in places where they do and do not belong.
ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.just(2**70),
    st.just(float("nan")),
    st.sampled_from(["", "q", "<image>", "<video>", HOSTILE, "a.png", "../x", "\ud800", "\0"]),
    st.sampled_from(["human", "gpt", "user", "assistant", "system", "image", "image_url", "text"]),
    st.sampled_from([b"", b"x", png(), data_url(png()), "data:image/png;base64,*", "http://x/y"]),
)
_OF_TURNS = "from value role content type url image_url bytes path user assistant index"
NAMES = st.sampled_from([*sorted(KEYS), *_OF_TURNS.split()])
VALUES = st.recursive(
    ATOMS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=12,
)
PICTURE = st.sampled_from(["a.png", png(), {"bytes": png(), "path": None}, data_url(png()), None])
SAID = st.sampled_from(["q", "<image>", HOSTILE, "<video> ", ""])
PART = st.one_of(
    st.fixed_dictionaries({"type": st.just("text"), "text": SAID}),
    st.fixed_dictionaries({"type": st.sampled_from(["image", "image_url"])}, optional={
        "image_url": st.fixed_dictionaries({"url": PICTURE}), "image": PICTURE, "index": ATOMS,
    }),
)  # fmt: skip
LIKELY = st.fixed_dictionaries(
    {},
    optional={
        "id": ATOMS,
        "image": PICTURE,
        "images": st.lists(PICTURE, max_size=3),
        "frames": st.lists(PICTURE, max_size=3),
        "conversations": st.lists(SAID, max_size=4).map(lambda turns: said(*turns)),
        "messages": st.lists(SAID | st.lists(PART, max_size=3), max_size=4).map(
            lambda turns: chat(*turns)
        ),
        "texts": st.lists(st.fixed_dictionaries({"user": SAID, "assistant": SAID}), max_size=2),
        "instruction": SAID,
        "input": SAID,
        "output": SAID,
        "text": SAID,
        "system": SAID,
        "history": st.lists(st.lists(SAID, max_size=3), max_size=2),
    },
)


@fuzzed
@given(st.dictionaries(NAMES, VALUES, max_size=5) | LIKELY, st.sampled_from([None, *FORMS]))
def test_any_values_give_a_sample_or_a_reason(row: dict[str, Any], form: Any) -> None:
    try:
        sample = build_sample(row, form and find_form(form.name), Path("d/x"), 1, Path("d"))
        sample.validate(for_training=True)
    except DataError as error:
        one_line(error)
        return
    assert sample.images or all(
        isinstance(part, str) for message in sample.messages for part in message.content
    )
    pictures = sum(
        not isinstance(part, str) for message in sample.messages for part in message.content
    )
    assert pictures == len(sample.images)
    looked_at(sample)
