"""Folders of pictures, and which files a path means."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest

from datafiles import (
    HOSTILE,
    ROWS,
    png,
    said,
    write_arrow,
    write_csv,
    write_folder,
    write_json,
    write_parquet,
    write_tar,
)
from oculi.data.check import check
from oculi.data.folder import Names
from oculi.data.formats import BadRow, FileScan, FileSource
from oculi.data.kinds import find_files, open_container
from oculi.errors import DataError


def refusal(path: Path) -> str:
    with pytest.raises(DataError) as caught:
        FileSource(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Pictures with captions


def test_names_and_json_beside_pictures(tmp_path: Path) -> None:
    write_folder(tmp_path)
    (tmp_path / "README.md").write_text("x")
    (tmp_path / ".hidden.png").write_bytes(b"x")
    (tmp_path / "v1.2.png").write_bytes(png(20, 6))
    row = {"question": "see <image>?", "answer": HOSTILE, "image": "elsewhere/1.png"}
    (tmp_path / "v1.2.json").write_text(json.dumps(row))
    found = list(FileScan(tmp_path))
    assert isinstance(found[2], BadRow)  # of another family than the captions before
    (tmp_path / "v1.2.json").write_text(json.dumps({"caption": "hi", "id": 5}))
    assert [(sample.id, sample.messages[1].text) for sample in FileSource(tmp_path)] == [
        ("0", "a cat"), ("2", "é"), ("5", "hi"), ("more/1", HOSTILE)
    ]  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("part", [{"type": "image"}, {"type": "image_url"}])
def test_parts_of_messages_name_the_pictures_beside_them(
    tmp_path: Path, packed: bool, part: dict[str, object]
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()

    def names(*given: str) -> None:
        key = str(part["type"])
        pictures = [{**part, key: {"url": n} if key == "image_url" else n} for n in given]
        asked = {"role": "user", "content": [*pictures, {"type": "text", "text": "q"}]}
        talk = [asked, {"role": "assistant", "content": "a"}]
        (folder / "1.json").write_text(json.dumps({"messages": talk, "text": None}))

    (folder / "1.png").write_bytes(png(20, 6))
    names("pictures/1.png")
    place = folder
    if packed:
        place = tmp_path / "a.tar"
        with tarfile.open(place, "w") as archive:
            for name in ("1.json", "1.png"):
                archive.add(folder / name, name)
    (sample,) = FileSource(place)
    assert [image.size() for image in sample.images] == [(20, 6)]
    if not packed:
        names("elsewhere.png")
        bad = check([folder]).bad_rows[0]
        assert 'no part of the messages names "1.png", which lies beside them' in bad.reason


def test_a_text_beside_json_stands_for_one_that_is_null(tmp_path: Path) -> None:
    (tmp_path / "1.png").write_bytes(png(20, 6))
    (tmp_path / "1.json").write_text(json.dumps({"text": None, "id": "one"}))
    (tmp_path / "1.txt").write_text("a cat")
    (sample,) = FileSource(tmp_path)
    assert (sample.id, sample.messages[1].text) == ("one", "a cat")


def test_every_bad_row_is_named(tmp_path: Path) -> None:
    write_folder(tmp_path / "in")
    folder, outside = tmp_path / "in", tmp_path / "secret.txt"
    outside.write_text("secret")
    (folder / "alone.png").write_bytes(png())
    (folder / "broken.png").write_bytes(png())
    (folder / "broken.json").write_text("{")
    (folder / "empty.png").write_bytes(png())
    (folder / "empty.txt").touch()
    (folder / "latin.png").write_bytes(png())
    (folder / "latin.txt").write_bytes(b"\xff")
    (folder / "mute.txt").write_text("x")
    (folder / "spy.png").write_bytes(png())
    (folder / "spy.txt").symlink_to(outside)
    (folder / "twin.png").write_bytes(png())
    (folder / "twin.jpg").write_bytes(png())
    (folder / "twin.txt").write_text("x")
    os.mkfifo(folder / "wait.txt")
    (folder / "wait.png").write_bytes(png())
    bad = {row.id: (row.line, row.reason) for row in check([folder]).bad_rows}
    assert bad == {
        "alone": (3, 'nothing says what "alone.png" shows: no .txt, .caption or .json'),
        "broken": (
            4,
            '"broken.json": not valid JSON: Expecting property name enclosed in double quotes '
            "at line 1, column 2",
        ),
        "empty": (5, '"empty.txt" is empty (0 bytes)'),
        "latin": (6, '"latin.txt": not valid UTF-8 at byte 1'),
        "mute": (7, 'there is no picture to "mute.txt"'),
        "spy": (
            8,
            '"spy.txt" lies outside the image root (through .., an absolute path or a link)',
        ),
        "twin": (9, '"twin.jpg" and "twin.png" share a name'),
        "wait": (10, '"wait.txt" is not a regular file'),
    }
    assert check([folder]).good == 3


def test_pictures_that_are_links_out_are_named(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "in")
    (tmp_path / "secret.png").write_bytes(png())
    (folder / "0.png").unlink()
    (folder / "0.png").symlink_to(tmp_path / "secret.png")
    (folder / "loop").symlink_to(folder)
    (bad,) = check([folder]).bad_rows
    assert 'image "0.png" lies outside the image root' in bad.reason


def test_names_that_are_not_utf8_are_bad_rows(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    for suffix in (b"png", b"txt"):
        Path(os.fsdecode(os.fsencode(folder) + b"/\xff." + suffix)).write_bytes(png())
    bad = [each for each in FileScan(folder) if isinstance(each, BadRow)]
    assert [row.reason for row in bad] == [r'the file name "\udcff" is not UTF-8']
    assert "\\udcff" in str(bad[0])


def test_a_list_of_names_is_short_and_exact() -> None:
    names = [
        f"train/{i // 100:04}/image-{i:08}\0image-{i:08}.jpg\0image-{i:08}.txt" for i in range(1000)
    ]
    names += ["a\nb\0a\nb.png", "\udcff\0\udcff.png", "x/\ny\0z"]
    kept = Names()
    for name in names:
        kept.add(name)
    kept.close()
    assert len(kept) == len(names) and [kept[i] for i in range(len(names))] == names
    assert [kept[i] for i in (1002, 0, 500)] == [names[i] for i in (1002, 0, 500)]
    assert sum(map(len, kept._blocks)) < 10 * len(names)


# What a path means


def test_a_pattern_is_one_source_in_order_of_names(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        rows = [{**row, "id": f"{number}-{row['id']}"} for row in ROWS[:2]]
        write_parquet(tmp_path / "x", rows).rename(tmp_path / f"part-{number:02}.parquet")
    source = FileSource(tmp_path / "part-*.parquet")
    ids = ["1-one", "1-text", "2-one", "2-text", "10-one", "10-text"]
    assert [sample.id for sample in source] == ids
    assert [source[i].id for i in (5, 0, -1, 3)] == [ids[i] for i in (5, 0, -1, 3)]
    assert (source.form, len(source.fingerprint[0])) == ("sharegpt", 3)  # type: ignore[arg-type]
    assert [sample.id for sample in FileSource(tmp_path / "part-*.parquet", limit=3)] == ids[:3]
    report = check([tmp_path / "part-*.parquet"])
    assert (report.good, len(report.formats)) == (6, 3)
    assert [s.id for s in FileSource(tmp_path / "**" / "part-0*.parquet")] == ids[:4]


def test_a_file_whose_name_is_a_pattern_is_a_file(tmp_path: Path) -> None:
    path = write_json(tmp_path, name="rows[1].jsonl")
    assert find_files(path) == [path]
    assert "no file matches" in refusal(tmp_path / "none*.json")


def test_a_folder_of_shards(tmp_path: Path) -> None:
    for write, name in ((write_parquet, "p"), (write_arrow, "a"), (write_tar, "t")):
        path = write(tmp_path / name)
        path.with_name(f"z{path.suffix}").write_bytes(path.read_bytes())
        for extra in ("state.json", "dataset_info.json", "README.md"):
            (path.parent / extra).write_text("{}")
        assert len(FileSource(path.parent)) == 2 * len(ROWS)
    write_arrow(tmp_path / "p")
    assert "holds several kinds of files, as rows.parquet and rows.arrow" in refusal(tmp_path / "p")
    assert "the data files lie below; give a folder such as" in refusal(tmp_path)


def test_a_folder_with_a_list_of_its_pictures(tmp_path: Path) -> None:
    path = write_csv(tmp_path / "csv")
    assert find_files(path.parent) == [path]
    assert FileSource(path.parent)[0].images[0].size() == (8, 6)
    row = {"file_name": "0.png", "text": HOSTILE}
    (tmp_path / "csv" / "metadata.jsonl").write_text(json.dumps(row))
    assert "holds metadata.csv and metadata.jsonl" in refusal(path.parent)
    path.unlink()
    (sample,) = FileSource(path.parent)
    assert sample.messages[1].text == HOSTILE


def test_a_folder_with_one_list_beside_its_pictures(tmp_path: Path) -> None:
    path = write_json(tmp_path)
    assert find_files(tmp_path) == [path]
    (tmp_path / "0-0.txt").write_text("a caption")
    assert find_files(tmp_path) == [tmp_path]


def test_folders_and_files_that_are_nothing(tmp_path: Path) -> None:
    assert "the file has no rows" in refusal(tmp_path)
    (tmp_path / "a.png").write_bytes(png())
    assert 'nothing says what "a.png" shows' in refusal(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    assert "is not a regular file" in refusal(tmp_path / "pipe")
    assert "No such file" in refusal(tmp_path / "none.parquet")
    assert "has a NUL character in its name" in refusal(Path("a\0b"))


@pytest.mark.parametrize("magic", [b"PK\x03\x04", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh"])
def test_packed_files_are_told_to_be_unpacked(tmp_path: Path, magic: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(magic + bytes(100))
    assert "is compressed" in refusal(path) and "unpack it" in refusal(path)


def test_the_first_bytes_count_more_than_the_suffix(tmp_path: Path) -> None:
    for write in (write_parquet, write_arrow, write_tar, write_json):
        path = write(tmp_path / write.__name__)
        kind = type(open_container(path))
        moved = path.rename(path.with_suffix(".data"))
        assert type(open_container(moved)) is kind
        assert len(FileSource(moved)) == len(ROWS)
    (tmp_path / "rows.parquet").write_text(json.dumps({"conversations": said("q", "a")}))
    assert "no Parquet file" in refusal(tmp_path / "rows.parquet")
