"""Archives: rows by name, nothing followed or unpacked, and reading on after damage."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from datafiles import HOSTILE, png, said, tar, write_tar
from oculi.data import tarrows
from oculi.data.check import check
from oculi.data.formats import BadRow, FileScan, FileSource
from oculi.errors import DataError

Member = tuple[str, bytes]


def pair(key: str, text: str = "a cat") -> list[Member]:
    return [(f"{key}.png", png()), (f"{key}.txt", text.encode())]


def read(path: Path) -> tuple[list[str], list[BadRow]]:
    found = list(FileScan(path))
    bad = [each for each in found if isinstance(each, BadRow)]
    return [each[1].id for each in found if not isinstance(each, BadRow)], bad


def link(name: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


def special(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    return info


def test_rows_are_runs_of_one_name(tmp_path: Path) -> None:
    talk = {"id": 3, "conversations": said("<image>?", "a"), "image": "elsewhere/x.jpg"}
    path = tar(
        tmp_path / "a.tar",
        [
            *pair("a/1", f"{HOSTILE}\n"),
            *pair("b/1"),
            ("c.json", json.dumps({"text": "both", "key": "c"}).encode()),
            ("c.PNG", png()),
            ("c.cls", b"7"),
        ],
    )
    samples = list(FileSource(path))
    assert [sample.id for sample in samples] == ["a/1", "b/1", "c"]
    assert [sample.messages[1].text for sample in samples] == [HOSTILE, "a cat", "both"]
    assert samples[2].source == f"{path}:3"
    path = tar(tmp_path / "b.tar", [("1.json", json.dumps(talk).encode()), ("1.jpg", png(4, 3))])
    (sample,) = source = FileSource(path)
    assert (sample.id, source.form, sample.images[0].size()) == ("3", "llava", (4, 3))


def test_pictures_take_the_places_of_names(tmp_path: Path) -> None:
    row = {"conversations": said("<image> <image>", "a"), "images": ["x/1.b.png", "x/1.a.png"]}
    pictures = [("1.a.png", png(1, 1)), ("1.b.png", png(2, 2))]
    for names, sizes in (
        (row["images"], [(2, 2), (1, 1)]),
        (["other.png", "another.png"], [(1, 1), (2, 2)]),
    ):
        data = json.dumps({**row, "images": names}).encode()
        (sample,) = FileSource(tar(tmp_path / "a.tar", [*pictures, ("1.json", data)]))
        assert [image.size() for image in sample.images] == sizes
    data = json.dumps({**row, "images": ["one.png"]}).encode()
    with pytest.raises(DataError, match='"images" names 1 of the 2 pictures beside it'):
        FileSource(tar(tmp_path / "a.tar", [*pictures, ("1.json", data)]))


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names(tmp_path: Path, format: int) -> None:
    keys = [f"{'d' * 90}/{'n' * 80}", "plain"]
    if format != tarfile.USTAR_FORMAT:
        keys += ["x" * 300, "é/ü\n"]
    members = [member for key in keys for member in pair(key)]
    path = tar(tmp_path / "a.tar", members, format=format)
    assert [sample.id for sample in FileSource(path)] == keys


def test_folders_and_hidden_files_are_passed_over(tmp_path: Path) -> None:
    members = [special("a", tarfile.DIRTYPE), (".DS_Store", b"x"), *pair("a/1"), ("a/._1.png", b"")]
    assert read(tar(tmp_path / "a.tar", members)) == (["a/1"], [])


def test_every_bad_row_is_named(tmp_path: Path) -> None:
    members = [
        *pair("good"),
        *pair("/etc/absolute"),
        *pair("../outside"),
        ("link.txt", b"x"),
        link("link.png"),
        link("hard", tarfile.LNKTYPE),
        special("pipe.png", tarfile.FIFOTYPE),
        ("lonely.png", png()),
        ("mute.txt", b"x"),
        ("strange.npy", b"x"),
        ("twice.png", png()),
        ("twice.png", png()),
        ("broken.json", b'{"a":\n'),
        ("broken.png", png()),
        ("list.json", b"[1]"),
        ("latin.txt", b"\xff"),
        ("latin.png", png()),
        ("two.a.json", b"{}"),
        ("two.b.json", b"{}"),
        *pair("also good"),
    ]
    path = tar(tmp_path / "a.tar", members)
    good, bad = read(path)
    assert good == ["good", "also good"]
    reasons = {row.id: (row.line, row.reason) for row in bad}
    assert reasons == {
        "/etc/absolute": (2, 'member "/etc/absolute.png" has an absolute path'),
        "../outside": (3, 'member "../outside.png" has a path through ".."'),
        "link": (4, 'member "link.png" is a link'),
        "hard": (5, 'member "hard" is a link'),
        "pipe": (6, 'member "pipe.png" is no regular file'),
        "lonely": (7, 'nothing says what "lonely.png" shows: no .txt, .caption or .json'),
        "mute": (8, 'there is no picture to "mute.txt"'),
        "strange": (9, 'nothing says what "strange.npy" shows: no .txt, .caption or .json'),
        "twice": (10, '"twice.png" is there twice'),
        "broken": (
            11,
            '"broken.json": not valid JSON: Expecting value at line 2, column 1',
        ),
        "list": (12, '"list.json": the row is a list; it must be an object'),
        "latin": (13, '"latin.txt": not valid UTF-8 at byte 1'),
        "two": (14, '"two.a.json" and "two.b.json" belong to one row'),
    }
    assert len(bad) == len(reasons)
    assert str(bad[0]).startswith(f'{path}:2: row "/etc/absolute": ')


def test_damaged_pictures_are_named_by_their_member(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [("1.png", png()[:40]), ("1.txt", b"x"), *pair("2")])
    report = check([path])
    assert [str(bad) for bad in report.bad_rows] == [
        f'{path}:1: row "1": image "1.png" is truncated or damaged'
    ]
    assert report.good == 1


def test_a_sparse_member_is_refused(tmp_path: Path) -> None:
    info = tarfile.TarInfo("1.png")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.realsize": str(2**50)}
    info.size = 4
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(info, io.BytesIO(b"xxxx"))
        for name, data in [("1.txt", b"x"), *pair("2")]:
            plain = tarfile.TarInfo(name)
            plain.size = len(data)
            archive.addfile(plain, io.BytesIO(data))
    good, bad = read(path)
    assert (good, [row.reason for row in bad]) == (["2"], ['member "1.png" is a sparse file'])


def test_long_rows_and_long_texts_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tar(tmp_path / "a.tar", [*pair("a"), *pair("b", "x" * 5000), *pair("c")])
    monkeypatch.setattr("oculi.data.grouped.MAX_ROW_BYTES", 4000)
    good, bad = read(path)
    assert (good, [row.reason for row in bad]) == (
        ["a", "c"],
        ['"b.txt" is longer than 4000 bytes'],
    )
    monkeypatch.setattr(tarrows, "MAX_SPAN", 4000)
    assert "the row is longer than 4000 bytes" in read(path)[1][0].reason


# Damage


def test_an_archive_cut_anywhere_keeps_the_rows_before(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [member for key in "abc" for member in pair(key)])
    data = path.read_bytes()
    ends = [2048 * (i + 1) for i in range(3)]
    for cut in [*range(2040, 2060), *range(2048, 6700, 97), 4096, 6144]:
        path.write_bytes(data[:cut])
        good, bad = read(path)
        whole = sum(end <= cut for end in ends)
        # A text that is whole to the last byte needs no padding behind it.
        assert good[:whole] == ["a", "b", "c"][:whole] and len(good) <= whole + 1
        assert 1 <= len(bad) <= 2
        assert "cut off" in bad[-1].reason


def test_reading_goes_on_after_damage(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", [member for key in "abcdef" for member in pair(key)])
    data = bytearray(path.read_bytes())
    data[2048 * 2 + 1024 + 10] ^= 0xFF  # in the name of c.txt
    path.write_bytes(data)
    good, bad = read(path)
    assert good == ["a", "b", "e", "f"]
    assert [(row.line, row.id) for row in bad] == [(3, "c"), (4, ""), (5, "d")]
    assert "damaged in or just after this row" in bad[0].reason
    assert "no sound header of a member here" in bad[1].reason
    assert "damaged just before this row" in bad[2].reason


def test_what_is_no_archive(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    for data in (b"", b"x" * 100, b"x" * 2000):
        path.write_bytes(data)
        with pytest.raises(DataError, match="the archive"):
            FileSource(path)
    path.write_bytes(bytes(1024))
    with pytest.raises(DataError, match="the file has no rows"):
        FileSource(path)
    path.write_bytes(gzip.compress(write_tar(tmp_path).read_bytes()))
    with pytest.raises(DataError, match=r"is compressed \(gzip\); unpack it"):
        FileSource(path)


def resized(path: Path, at: int, field: bytes) -> None:
    """Write another size into the header at a place, and a checksum that fits it."""
    data = bytearray(path.read_bytes())
    head = data[at : at + 512]
    head[124:136] = field
    head[148:156] = b" " * 8
    head[148:156] = f"{sum(head):06o}\0 ".encode()
    data[at : at + 512] = head
    path.write_bytes(data)


@pytest.mark.parametrize(
    "field", [b"\x80" + bytes(9) + b"\xff\xff", b"\xff" * 12, b"9" * 12, b"-1" + bytes(10)]
)
def test_broken_numbers_are_damage(tmp_path: Path, field: bytes) -> None:
    path = tar(tmp_path / "a.tar", [member for key in "abcd" for member in pair(key)])
    resized(path, 4096, field)
    good, bad = read(path)
    assert good[0] == "a" and set(good) <= {"a", "b", "d"} and bad


@pytest.mark.parametrize("bits", [33, 62, 63, 64, 70])
def test_a_member_of_any_size_is_cut_off_by_the_end(tmp_path: Path, bits: int) -> None:
    path = tar(tmp_path / "a.tar", [*pair("a"), *pair("b")])
    resized(path, 2048, b"\x80" + (2**bits).to_bytes(11))
    good, bad = read(path)
    assert good == ["a"] and [row.id for row in bad] == ["b", ""]
    assert bad[0].reason == 'member "b.png" is cut off by the end of the archive'
    assert check([path]).good == 1 and len(FileSource(path)) == 1


def test_an_extended_header_may_claim_any_size(tmp_path: Path) -> None:
    info = tarfile.TarInfo("1.png")
    info.pax_headers = {"size": str(10**18 * 9)}
    path = tmp_path / "a.tar"
    path.write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with pytest.raises(DataError, match=r'member "1.png" is cut off by the end of the archive'):
        FileSource(path)


def test_records_of_an_extended_header_are_read_once() -> None:
    """Work is counted: bytes that are copied out of the header while it is walked."""
    copied = 0

    class Counted(bytes):
        def __getitem__(self, key: Any) -> Any:
            nonlocal copied
            found = super().__getitem__(key)
            copied += len(found) if isinstance(found, bytes) else 1
            return Counted(found) if isinstance(found, bytes) else found

        def partition(self, sep: Any) -> Any:
            nonlocal copied
            copied += len(self)
            return tuple(Counted(part) for part in super().partition(sep))

    data = b"3 \n" * 2000 + b"12 path=a/b\n" + bytes(100)
    assert tarrows._extended(b"x", Counted(data)) == {"": "", "path": "a/b"}
    assert copied < 10 * len(data)
    for broken in (b"3 \nx", b"3 \n12345678 a=b\n", b"1 \n", b"path=a"):
        with pytest.raises(tarrows._Damage, match="a broken extended header"):
            tarrows._extended(b"x", broken)


def test_pictures_are_read_out_of_the_archive(tmp_path: Path) -> None:
    path = write_tar(tmp_path)
    picture = FileSource(path)[0].images[0]
    assert picture.span is not None and picture.data is None  # type: ignore[attr-defined]
    assert picture.load().size == picture.size() == (8, 6)
    path.unlink()
    with pytest.raises(DataError, match=r'image "shard/000000.0.png" does not exist'):
        picture.load()
