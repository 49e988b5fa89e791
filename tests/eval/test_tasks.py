"""Tasks: which questions they ask, with which history and which pictures."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import Drawn, sample, write_rows
from oculi.data.sample import ImageSlot
from oculi.errors import DataError
from oculi.eval.tasks import PLAYROOM_QUESTIONS, open_task, questions, without_images
from oculi.testbed import playroom


def test_every_answer_of_a_conversation_is_a_question_with_the_true_history() -> None:
    made = sample(
        "x", ("#", "first?"), "one", "second?", "two", ("#", "third?"), "three",
        images=(Drawn(8, 8, 1), Drawn(8, 12, 2)),
    )  # fmt: skip
    found = questions(made)
    assert [(q.turn, q.group, q.text, q.answer) for q in found] == [
        (1, "turn 1", "first?", "one"),
        (2, "turn 2", "second?", "two"),
        (3, "turn 3", "third?", "three"),
    ]
    assert [len(q.messages) for q in found] == [1, 3, 5]
    assert [m.text for m in found[2].messages] == ["first?", "one", "second?", "two", "third?"]
    assert [q.images for q in found] == [made.images[:1], made.images[:1], made.images]
    assert all(q.messages[-1].role == "user" and q.id == "x" for q in found)
    assert questions(made, "all")[2].group == "all"


def test_a_blind_question_has_no_picture_and_the_same_words() -> None:
    made = sample("x", ("see ", "#", " what?"), "one", ("#", "?"), "two", images=(Drawn(8, 8),) * 2)
    (_, second) = questions(made)
    blind = without_images(second.messages)
    assert [m.content for m in blind] == [("see ", " what?"), ("one",), ("?",)]
    assert not any(isinstance(part, ImageSlot) for m in blind for part in m.content)
    assert [m.role for m in blind] == [m.role for m in second.messages]


def test_a_folder_or_a_pattern_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("many").mkdir()
    for name, answers in (("a", ("1", "2")), ("b", ("3",))):
        rows = [
            {"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": x}]}
            for x in answers
        ]
        Path(f"many/{name}.json").write_text(json.dumps(rows))
    for data, title in (("many", "many"), ("many/*.json", "many_"), ("many/[ab].json", "many_ab_")):
        task = open_task(data)
        assert [q.answer for q in task.load(None)] == ["1", "2", "3"]
        assert task.name == title  # of the folder with the answers


@pytest.mark.parametrize(
    "name", ["playroom:1", "playroom:2", "playroom:1:pairs", "playroom:2:pairs"]
)
def test_playroom(name: str) -> None:
    _, level, *pairs = name.split(":")
    split = "pairs" if pairs else "test"
    found = open_task(name).load(5)
    items = [playroom.item(int(level), split, i) for i in range(5)]
    assert [q.text for q in found] == [item.question.text for item in items]
    assert [q.answer for q in found] == [item.question.answer for item in items]
    assert [q.group for q in found] == [item.question.kind for item in items]
    assert found[3].images[0].load().tobytes() == items[3].picture.load().tobytes()
    assert open_task(name).name == name and PLAYROOM_QUESTIONS == 2000


@pytest.mark.parametrize("name", ["playroom:1", "playroom:1:pairs"])
def test_playroom_at_another_size_asks_the_same(name: str) -> None:
    plain, wide = open_task(name).load(12), open_task(f"{name}@168x84").load(12)
    for a, b in zip(plain, wide, strict=True):
        assert (a.id, a.group, a.text, a.answer) == (b.id, b.group, b.text, b.answer)
        assert b.images[0].size() == b.images[0].load().size == (168, 84)
    assert open_task(f"{name}@168x84").name == f"{name}@168x84"


def test_playroom_asks_nothing_that_was_trained_on() -> None:
    trained = {playroom.item(1, "train", i).picture.load().tobytes() for i in range(50)}
    asked = {q.images[0].load().tobytes() for q in open_task("playroom:1").load(50)}
    assert not trained & asked


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("playroom:6", 'did you mean "playroom:'),
        ("playroom", "there are playroom:1"),
        ("playroom:1:pair", 'did you mean "playroom:1:pairs"?'),
        ("playrom:1", 'neither a task nor a file; did you mean "playroom:1"?'),
        ("playroom:6@84x84", 'did you mean "playroom:'),
        ("playroom:1@84", "write width x height in pixels, as @168x84"),
        ("playroom:1@0x84", "write width x height in pixels"),
        ("nothing.json", "neither a task nor a file; tasks are"),
    ],
)
def test_an_unknown_task_names_the_nearest(name: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        open_task(name)
    assert said in str(caught.value) and f'"{name}"' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_of_pictures_too_small_to_draw() -> None:
    with pytest.raises(DataError, match=r"\(84, 8\) pixels; each side needs 16"):
        open_task("playroom:1@84x8")


def test_a_data_file_is_a_task(tmp_path: Path) -> None:
    task = open_task(str(write_rows(tmp_path)))
    assert task.name == "rows"
    assert [q.id for q in task.load(None)] == [f"row-{i}" for i in range(8)]
    assert len(task.load(3)) == 3 and len(task.load(99)) == 8 and task.load(0) == []
    moved = tmp_path / "lists" / "rows.json"
    moved.parent.mkdir()
    (tmp_path / "rows.json").rename(moved)
    assert open_task(str(moved), str(tmp_path)).load(1)[0].images[0].size() == (8, 8)


def test_a_limit_counts_questions_not_rows(tmp_path: Path) -> None:
    turns = [("human", "a?"), ("gpt", "1"), ("human", "b?"), ("gpt", "2")]
    row = {"conversations": [{"from": who, "value": what} for who, what in turns]}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps({**row, "id": str(i)}) for i in range(3)))
    found = open_task(str(path)).load(3)
    assert [(q.id, q.turn) for q in found] == [("0", 1), ("0", 2), ("1", 1)]


def test_a_file_may_be_called_like_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(tmp_path).rename(tmp_path / "playroom.json")
    monkeypatch.chdir(tmp_path)
    assert open_task("playroom.json").load(1)[0].id == "row-0"


def test_bad_rows_refuse_the_task(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    rows: list[Any] = [{"id": "a", "conversations": [{"from": "human", "value": "?"}]}]
    path.write_text(json.dumps(rows))
    with pytest.raises(DataError, match=r"rows\.json"):
        open_task(str(path))
