"""Sources: by number, from several files as one, with a message where a file cannot be used."""

import json
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from datafiles import ROWS, write_parquet, write_tar
from helpers import write_rows
from oculi.data.order import sample_numbers
from oculi.data.sample import ImageSlot
from oculi.data.source import (
    LanguageRows,
    Mixture,
    PlayroomRows,
    open_source,
    open_sources,
    pieces,
    sizes,
)
from oculi.errors import DataError
from oculi.recipe import FileSource, LanguageSource, PlayroomSource
from oculi.testbed import language


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


def test_several_questions_about_one_picture() -> None:
    one, several = (
        PlayroomRows(PlayroomSource(level=2, samples=20, questions=n)) for n in (1, 4)
    )  # fmt: skip
    for index in range(20):
        first, sample = one[index], several[index]
        assert sample.messages[:2] == first.messages and sample.images == first.images
        assert 4 <= len(sample.messages) <= 8
        assert [message.role for message in sample.messages[2:4]] == ["user", "assistant"]
        assert all(isinstance(part, str) for m in sample.messages[1:] for part in m.content)
    chosen = PlayroomRows(PlayroomSource(level=2, samples=9, questions=3, kinds=("count",)))
    assert all(len(chosen[index].messages) == 6 for index in range(9))  # of something else each


def test_playroom_rows_of_some_kinds() -> None:
    chosen = ("existence", "shape")
    rows = PlayroomRows(PlayroomSource(level=1, samples=60, kinds=chosen))
    every = PlayroomRows(PlayroomSource(level=1, samples=180))
    ids = [sample.id for sample in every]
    assert [row.id for row in rows] == [
        ids[i] for i in range(180) if every.item(i).question.kind in chosen
    ]
    with pytest.raises(DataError, match=r'no kind "exist".*did you mean "existence"'):
        PlayroomRows(PlayroomSource(level=1, samples=3, kinds=("exist",)))


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


def test_dialogues_are_samples_without_pictures() -> None:
    """The same as the LLM was pre-trained on, so that a mixture can keep what it knows."""
    rows = open_sources(
        [LanguageSource(samples=40, weight=0.5), PlayroomSource(level=1, samples=2)]
    )
    assert len(rows) == 22
    for index in range(20):
        made = rows[index]
        made.validate(for_training=True)
        number = int(made.id.removeprefix("language-train-"))
        turns = language.dialogue("train", number)
        said = [text for turn in turns for text in (turn.prompt, turn.answer)]
        assert [message.text for message in made.messages] == said and not made.images
    alone = LanguageRows(LanguageSource(samples=9, limit=3, split="test"))
    assert [sample.id for sample in alone] == [f"language-test-{n}" for n in range(3)]
    with pytest.raises(IndexError):
        alone[3]


def test_a_mixture_of_one_row() -> None:
    rows = PlayroomRows(PlayroomSource(level=1, samples=1))
    assert len(Mixture([rows])) == 1


# Mixtures


class Counted:
    """A source of which only the number of rows matters."""

    def __init__(self, rows: int) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Any:
        return index


def counts(mixture: Mixture, source: int) -> list[int]:
    """How often each row of a source stands in an epoch."""
    found = Counter(mixture.place(i) for i in range(len(mixture)))
    return [found[source, row] for row in range(len(mixture.sources[source]))]


def test_weights_are_exact_counts() -> None:
    mixture = Mixture([Counted(10), Counted(4), Counted(6), Counted(5)], [1, 3, 0.5, 2.4])
    assert len(mixture) == 10 + 12 + 3 + 12
    assert counts(mixture, 0) == [1] * 10
    assert counts(mixture, 1) == [3] * 4
    assert counts(mixture, 2) == [1, 0, 1, 0, 1, 0]
    assert counts(mixture, 3) == [3, 2, 3, 2, 2]
    assert [mixture.place(i) for i in range(10)] == [(0, i) for i in range(10)]


@given(
    st.lists(
        st.tuples(st.integers(1, 40), st.floats(0.001, 6) | st.integers(1, 5)),
        min_size=1,
        max_size=4,
    )
)
def test_every_row_stands_floor_or_ceil_of_its_weight_times(
    sources: list[tuple[int, float]],
) -> None:
    mixture = Mixture([Counted(rows) for rows, _ in sources], [weight for _, weight in sources])
    for number, (rows, weight) in enumerate(sources):
        found = counts(mixture, number)
        assert set(found) <= {int(weight), -int(-weight // 1)}
        assert abs(sum(found) - weight * rows) <= max(0.5, 1 - weight * rows) + 1e-6
        extra = [row for row, count in enumerate(found) if count > int(weight)]
        gaps = np.diff([*extra, extra[0] + rows]) if extra else []
        assert len(gaps) == 0 or max(gaps) - min(gaps) <= 1  # evenly


def test_weight_one_is_one_after_another_and_an_epoch_shuffles_all() -> None:
    mixture = Mixture([Counted(3), Counted(5)])
    assert [mixture.place(i) for i in range(8)] == [
        *((0, i) for i in range(3)), *((1, i) for i in range(5))
    ]  # fmt: skip
    mixture = Mixture([Counted(3), Counted(5)], [2, 0.2])
    for epoch in range(3):
        numbers = sample_numbers(7, epoch * len(mixture), len(mixture), len(mixture))
        found = Counter(mixture.place(int(number)) for number in numbers)
        assert found == {(0, 0): 2, (0, 1): 2, (0, 2): 2, (1, 0): 1}


def test_too_large_a_mixture_is_refused() -> None:
    with pytest.raises(DataError, match="lower the weights"):
        Mixture([Counted(10)], [1e300])
    for wrong in (0, -1, float("nan"), float("inf"), True):
        with pytest.raises(ValidationError):
            FileSource(path="x", weight=wrong)


def test_files_by_weight_and_limit(tmp_path: Path) -> None:
    one, two = write_rows(tmp_path / "a", 6), write_parquet(tmp_path / "b")
    specs = [
        FileSource(path=str(one), limit=2, weight=2.5),
        FileSource(path=str(two), limit=3, weight=0.4),
        PlayroomSource(level=1, samples=5, limit=2),
    ]
    rows = pickle.loads(pickle.dumps(open_sources(specs)))
    assert [rows[i].id for i in range(len(rows))] == [
        *["row-0", "row-1", "row-0", "row-1", "row-0", "one"],
        *["playroom-1-train-0", "playroom-1-train-1"],
    ]
    assert len(open_source(FileSource(path=str(two), limit=99))) == len(ROWS)


def test_a_limit_reads_no_further(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "q", "response": "a"}
    path.write_text("\n".join([json.dumps(row)] * 3) + "\nbroken")
    assert len(open_source(FileSource(path=str(path), limit=3))) == 3
    with pytest.raises(DataError, match="1 bad rows"):
        open_source(FileSource(path=str(path), limit=4))


TAGGED = [
    {"id": "both", "stages": ["one", "two"]},
    {"id": "one", "stage": "one"},
    {"id": "any"},
    {"id": "null", "stage": None, "stages": None},
    {"id": "none", "stages": []},
    {"id": "number", "stage": 2},
]


@pytest.mark.parametrize("write", ["json", "parquet", "tar"])
def test_tags_choose_rows(tmp_path: Path, write: str) -> None:
    rows = [{**row, "prompt": "q", "response": "a"} for row in TAGGED]
    if write == "json":
        path = tmp_path / "rows.json"
        path.write_text(json.dumps(rows))
    elif write == "parquet":
        path = tmp_path / "rows.parquet"
        rows[-1]["stage"] = "2"
        columns = {key: [row.get(key) for row in rows] for key in (*rows[0], "stage")}
        write_parquet(tmp_path, pa.table(columns))
    else:
        rows = [{**row, "images": [], "conversations": ROWS[1]["conversations"]} for row in TAGGED]
        path = write_tar(tmp_path, rows)

    def ids(tag: str | None, limit: int | None = None) -> list[str]:
        source = open_source(FileSource(path=str(path), tag=tag, limit=limit))
        return [source[i].id for i in range(len(source))]

    assert ids(None) == [row["id"] for row in TAGGED]
    assert ids("one") == ["both", "one", "any", "null"]
    assert ids("two") == ["both", "any", "null"]
    assert ids("2") == ["any", "null", "number"]
    assert ids("one", limit=2) == ["both", "one"]
    assert ids("other") == ["any", "null"]


def test_a_tag_that_no_row_has(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"prompt": "q", "response": "a"}
    path.write_text("\n".join(json.dumps({**row, "stage": tag}) for tag in ("pretrain", "tune")))
    with pytest.raises(DataError) as caught:
        open_source(FileSource(path=str(path), tag="pretrian"))
    assert (
        'the stage tag "pretrian"; the tags are "pretrain", "tune"; did you mean "pretrain"'
        in str(caught.value)
    )
    path.write_text(json.dumps({**row, "stage": {}}) + "\n" + json.dumps(row))
    assert len(open_source(FileSource(path=str(path)))) == 2
    with pytest.raises(DataError, match='"stage" holds an object; it must be a name'):
        open_source(FileSource(path=str(path), tag="x"))


def test_a_format_by_name(tmp_path: Path) -> None:
    path = write_rows(tmp_path, 2)
    assert len(open_source(FileSource(path=str(path), format="llava"))) == 2
    with pytest.raises(DataError, match=r'unknown format "lava"; .*; did you mean "llava"'):
        open_source(FileSource(path=str(path), format="lava"))
    with pytest.raises(DataError) as caught:
        open_source(FileSource(path=str(path), format="caption", image_root="a b"))
    assert "this is a row of the format llava, not caption" in str(caught.value)


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
