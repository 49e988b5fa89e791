"""Any bytes in place of a data file give samples, bad rows, or one DataError; never anything else.

The same holds for pictures. `OCULI_LONG=1` runs many more examples.
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

from awkward_images import KINDS
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
from imagefiles import chunk, exif, split, tiff, webp, with_segment
from imagefiles import png as small_png
from oculi.data.check import check
from oculi.data.formats import BadRow, FileScan, FileSource
from oculi.data.forms import FORMS, KEYS, find_form
from oculi.data.images import ImageError, image_size, load_image
from oculi.data.rows import build_sample
from oculi.data.sample import ImageRef, Sample
from oculi.errors import DataError

fuzzed = settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

# What Pillow says of EXIF: pytest puts its own filters in the place of those that the reader sets.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


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
FLIPS = st.lists(PLACES, max_size=3)
CUTS = st.none() | PLACES


def damaged(
    whole: bytes, edits: list[tuple[int, int, bytes]], flips: list[int], cut: int | None
) -> bytes:
    data = bytearray(whole)
    for flip in flips:
        data[flip * (len(data) - 1) // 10**6] ^= 1 << flip % 8
    for place, count, new in edits:
        at = place * len(data) // 10**6
        data[at : at + count] = new
    if cut is not None:
        del data[cut * len(data) // 10**6 :]
    return bytes(data)


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
@given(edits=EDITS, flips=FLIPS, cut=CUTS)
def test_damaged_files_give_rows_or_reasons(
    write: Callable[[Path], Path],
    tmp_path_factory: pytest.TempPathFactory,
    edits: list[tuple[int, int, bytes]],
    flips: list[int],
    cut: int | None,
) -> None:
    path, whole = valid(write, tmp_path_factory.getbasetemp())
    path.write_bytes(damaged(whole, edits, flips, cut))
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


# Every picture of the awkward ones that can be read and is small: all formats and most codings.
SMALL = 4096


@lru_cache
def pictures() -> list[bytes]:
    files = [data for make in KINDS.values() for data in make().values() if len(data) <= SMALL]
    return [data for data in dict.fromkeys(files) if not isinstance(looked_into(data), str)]


def looked_into(data: bytes) -> tuple[int, int] | str:
    """The size of a picture or the reason why there is none; decoding and measuring agree."""
    ref = ImageRef(data=data)
    try:
        image = load_image(ref, max_pixels=10**6)  # more would take its time
    except ImageError as error:
        one_line(error, "image data ")
        return error.reason
    assert image.mode == "RGB" and image.size == image_size(ref)
    return image.size


def damage_pictures(examples: int) -> None:
    @settings(fuzzed, max_examples=examples)
    @given(which=st.integers(0, len(pictures()) - 1), edits=EDITS, flips=FLIPS, cut=CUTS)
    def damage(
        which: int, edits: list[tuple[int, int, bytes]], flips: list[int], cut: int | None
    ) -> None:
        looked_into(damaged(pictures()[which], edits, flips, cut))

    damage()


def test_damaged_pictures_give_a_picture_or_a_reason() -> None:
    assert len(pictures()) > 100
    damage_pictures(3 * EXAMPLES)


@pytest.mark.slow
def test_many_damaged_pictures_give_a_picture_or_a_reason() -> None:
    damage_pictures(2000)


@fuzzed
@given(edits=EDITS, flips=FLIPS, cut=CUTS)
def test_damaged_exif_costs_no_picture(
    edits: list[tuple[int, int, bytes]], flips: list[int], cut: int | None
) -> None:
    note = damaged(tiff(6), edits, flips, cut)
    head, pixels, end = split(small_png())
    jpegs = [exif(note), with_segment(0xE2, b"ICC_PROFILE\0\1\1" + note)]
    for data in (*jpegs, webp(exif=b"Exif\0\0" + note)):
        assert looked_into(data) in ((24, 16), (16, 24))
    assert looked_into(head + chunk(b"eXIf", note) + pixels + end) == (2, 2)


@fuzzed
@given(st.integers(0, 10**6), st.integers(0, 7))
def test_a_flipped_bit_of_a_png_shows_or_changes_nothing(place: int, bit: int) -> None:
    """Its checksums see every one; in the other formats nothing does."""
    whole = small_png()
    data = bytearray(whole)
    data[place % len(data)] ^= 1 << bit
    if not isinstance(looked_into(bytes(data)), str):
        wanted = load_image(ImageRef(data=whole)).tobytes()
        assert load_image(ImageRef(data=bytes(data))).tobytes() == wanted
