"""Sources: by number, from several files as one, with a message where a file cannot be used."""

import json
import pickle
from pathlib import Path

import pytest

from helpers import write_rows
from oculi.data.sample import ImageSlot
from oculi.data.source import Concatenation, PlayroomRows, open_source, open_sources, pieces, sizes
from oculi.errors import DataError
from oculi.recipe import FileSource, PlayroomSource


def test_several_sources_are_one(tmp_path: Path) -> None:
    files = [write_rows(tmp_path / name, count) for name, count in (("a", 3), ("b", 1), ("c", 4))]
    rows = open_sources([FileSource(path=str(file)) for file in files])
    assert len(rows) == 8
    found = [(sample.id, Path(sample.source).parent.name) for sample in (rows[i] for i in range(8))]
    assert found == [
        (f"row-{i}", name) for name, n in (("a", 3), ("b", 1), ("c", 4)) for i in range(n)
    ]
    for wrong in (8, -1):
        with pytest.raises(IndexError):
            rows[wrong]


def test_files_and_playroom_together(tmp_path: Path) -> None:
    specs = [
        PlayroomSource(level=1, samples=2),
        FileSource(path=str(write_rows(tmp_path, 2))),
        PlayroomSource(level=2, samples=1, split="pairs"),
    ]
    rows = pickle.loads(pickle.dumps(open_sources(specs)))
    names = ["playroom-1-train-0", "playroom-1-train-1", "row-0", "row-1", "playroom-2-pairs-0"]
    assert [rows[i].id for i in range(5)] == names


def test_playroom_rows_are_samples() -> None:
    rows = PlayroomRows(PlayroomSource(level=1, samples=3, size=(96, 48)))
    assert len(rows) == len(list(rows)) == 3
    made = rows[2]
    made.validate(for_training=True)
    item = rows.item(2)
    assert made.messages[0].content == (ImageSlot(0), "\n" + item.question.text)
    assert made.messages[1].text == item.question.answer
    assert sizes(made.images) == [(96, 48)] == [made.images[0].load().size]
    with pytest.raises(IndexError):
        rows[3]


def test_an_empty_mixture_has_no_length_zero_surprise() -> None:
    rows = PlayroomRows(PlayroomSource(level=1, samples=1))
    assert len(Concatenation([rows])) == 1


def test_bad_rows_refuse_the_file(tmp_path: Path) -> None:
    path = write_rows(tmp_path, 3)
    rows = json.loads(path.read_text())
    rows[1]["conversations"][1]["value"] = ""
    path.write_text(json.dumps(rows, indent=0))
    with pytest.raises(DataError, match="oculi data check") as caught:
        open_source(FileSource(path=str(path)))
    said = str(caught.value)
    assert "1 bad rows" in said and "turn 2 (assistant) is empty" in said and "\n" not in said


@pytest.mark.parametrize("content", [None, "", "[]", "{}", "nonsense"])
def test_a_file_without_rows(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "rows.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=r"rows\.json") as caught:
        open_source(FileSource(path=str(path)))
    assert "\n" not in str(caught.value)


def test_another_image_root(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "pictures", 1)
    moved = tmp_path / "elsewhere.json"
    path.rename(moved)
    spec = FileSource(path=str(moved), image_root=str(tmp_path / "pictures"))
    assert open_source(spec)[0].images[0].size() == (8, 8)
    with pytest.raises(DataError, match="does not exist"):
        open_source(FileSource(path=str(moved)))[0].images[0].size()


def test_pieces_put_pictures_in_their_places(tmp_path: Path) -> None:
    made = open_source(FileSource(path=str(write_rows(tmp_path, 1))))[0]
    assert pieces(made.messages, ["PICTURE"]) == [
        ("user", ["PICTURE", "\nWhat colour is it?"]),
        ("assistant", ["red"]),
    ]
