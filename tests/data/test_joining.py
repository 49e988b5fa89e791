"""Questions about one picture as one conversation: nothing is lost, said twice, or left to chance."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from datafiles import HOSTILE, chat, png, write_json, write_parquet
from oculi.cli import app
from oculi.data import joining, rowfile
from oculi.data.formats import FileSource
from oculi.data.joining import join
from oculi.errors import DataError


def row(id: str, image: str, *turns: str, **more: Any) -> dict[str, Any]:
    asked, *rest = turns
    content = [{"type": "image"}, {"type": "text", "text": "\n" + asked}]
    return {"id": id, "images": [image], "messages": chat(content, *rest)} | more


def write(folder: Path, rows: list[dict[str, Any]], name: str = "rows.jsonl") -> Path:
    for image in {
        image for each in rows for image in each.get("images", []) if image[:5] != "data:"
    }:
        (folder / image).parent.mkdir(parents=True, exist_ok=True)
        (folder / image).write_bytes(png())
    (folder / name).write_text("\n".join(map(json.dumps, rows)))
    return folder / name


def talks(file: Path, root: Path | None = None) -> list[tuple[str, list[str]]]:
    source = FileSource(file, root)
    assert not source.bad_rows
    return [(one.id, [m.text.strip() for m in one.messages]) for one in source]


def test_questions_about_a_picture_are_joined_in_order(tmp_path: Path) -> None:
    rows = [
        row("1", "a.png", "Colour?", "red"),
        row("2", "b.png", "Colour?", "blue"),
        row("3", "a.png", "Shape?", "star", "Sure?", "yes"),
        row("4", "a.png", f"{HOSTILE}?", HOSTILE),
        {"id": "5", "messages": chat("Hi", "Hello")},
    ]
    found = join([write(tmp_path, rows)], tmp_path / "out.jsonl")
    assert talks(tmp_path / "out.jsonl") == [
        ("1", ["Colour?", "red", "Shape?", "star", "Sure?", "yes", f"{HOSTILE}?", HOSTILE]),
        ("2", ["Colour?", "blue"]),
        ("5", ["Hi", "Hello"]),
    ]
    counts = (found.rows, found.written, found.conversations, found.repeated, found.single)
    assert counts == (5, 3, 1, 0, 1) and not found.hint
    (one, *_) = FileSource(tmp_path / "out.jsonl")
    assert len(one.images) == 1 and one.images[0].size() == (8, 6)


def test_limits_begin_another_conversation(tmp_path: Path) -> None:
    rows = [row(f"{n}", "a.png", f"{n}?", "x" * 10) for n in range(7)]
    file = write(tmp_path, rows)
    join([file], tmp_path / "three.jsonl", max_turns=3)
    assert [len(said) // 2 for _, said in talks(tmp_path / "three.jsonl")] == [3, 3, 1]
    join([file], tmp_path / "short.jsonl", max_characters=40)
    sizes = [sum(map(len, said)) for _, said in talks(tmp_path / "short.jsonl")]
    assert sizes == [36, 36, 12]
    join([file], tmp_path / "none.jsonl", max_characters=1)
    assert len(talks(tmp_path / "none.jsonl")) == 7  # too long alone: as they were


def test_no_question_stands_twice_in_a_conversation(tmp_path: Path) -> None:
    rows = [
        row("1", "a.png", "Colour?", "red"),
        row("2", "a.png", "Colour?", "red"),  # said before
        row("3", "a.png", "Colour?", "dark red"),  # another annotator
        row("4", "a.png", "Shape?", "star"),
    ]
    found = join([write(tmp_path, rows)], tmp_path / "out.jsonl")
    assert talks(tmp_path / "out.jsonl") == [
        ("1", ["Colour?", "red", "Shape?", "star"]),
        ("3", ["Colour?", "dark red"]),
    ]
    assert found.repeated == 1


def test_what_differs_is_not_joined(tmp_path: Path) -> None:
    rows = [
        row("1", "a.png", "1?", "x"),
        row("2", "a.png", "2?", "x", stage="pretrain"),
        row("3", "a.png", "3?", "x", messages=[
            {"role": "system", "content": "Be brief."}, *chat("<image>\n3?", "x")]),
        {"id": "4", "images": ["a.png", "b.png"], "messages": chat("<image><image>4?", "x")},
        row("5", "a.png", "", "a caption"),
        {"id": "6", "images": ["a.png"], "messages": chat("Hi", "Hello", "<image>5?", "x")},
    ]  # fmt: skip
    found = join([write(tmp_path, rows)], tmp_path / "out.jsonl")
    assert [id for id, _ in talks(tmp_path / "out.jsonl")] == list("123456")
    assert (found.conversations, found.single) == (0, 2)


def test_a_modality_stays_and_is_not_mixed(tmp_path: Path) -> None:
    """A picture and a spectrogram of the same bytes are two things."""
    rows = [
        row("1", "a.png", "Colour?", "red"),
        row("2", "a.png", "Pitch?", "high", modality="audio"),
        row("3", "a.png", "Kind?", "pulse", modality="audio"),
    ]
    join([write(tmp_path, rows)], tmp_path / "out.jsonl")
    found = [(one.id, one.modality) for one in FileSource(tmp_path / "out.jsonl")]
    assert found == [("1", "image"), ("2", "audio")]
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert "modality" not in written[0] and written[1]["modality"] == "audio"


def test_tags_and_remarks_stay(tmp_path: Path) -> None:
    rows = [row("1", "a.png", "1?", "x", stages=["a"], source="mine", rank=3),
            row("2", "a.png", "2?", "x", stages=["a"])]  # fmt: skip
    join([write(tmp_path, rows)], tmp_path / "out.jsonl")
    made = json.loads((tmp_path / "out.jsonl").read_text())
    assert (made["stages"], made["source"], made["rank"]) == (["a"], "mine", 3)
    assert len(FileSource(tmp_path / "out.jsonl", tag="a")) == 1


def test_a_picture_is_the_same_under_another_spelling_and_by_its_bytes(tmp_path: Path) -> None:
    rows = [row("1", "a.png", "1?", "x"), row("2", "./a.png", "2?", "x")]
    join([write(tmp_path, rows)], tmp_path / "out.jsonl")
    assert len(talks(tmp_path / "out.jsonl")) == 1
    inside = [
        {"id": f"{n}", "images": [png()], "conversations": [
            {"from": "human", "value": f"<image>{n}?"}, {"from": "gpt", "value": "x"}]}
        for n in range(3)
    ]  # fmt: skip
    join([write_parquet(tmp_path / "inside", inside)], tmp_path / "more.jsonl")
    (one,) = FileSource(tmp_path / "more.jsonl")
    assert one.images[0].size() == (8, 6) and len(one.messages) == 6


@pytest.mark.parametrize("data", ["data:image/tiff;base64,SUkqAA==", "data:image/png;base64,"])
def test_a_picture_that_cannot_be_written_costs_its_own_rows(tmp_path: Path, data: str) -> None:
    rows = [row("1", "a.png", "1?", "x"), row("2", data, "2?", "x"), row("3", "a.png", "3?", "x"),
            row("4", data, "", "a caption"), row("5", data, "2?", "x")]  # fmt: skip
    file = write(tmp_path, rows)
    found = join([file], tmp_path / "out.jsonl")
    assert talks(tmp_path / "out.jsonl") == [("1", ["1?", "x", "3?", "x"])]
    assert [(bad.id, bad.line, bad.file) for bad in found.bad_rows] == [
        ("2", 2, str(file)), ("4", 4, str(file)), ("5", 5, str(file)),
    ]  # fmt: skip
    assert (found.rows, found.written, found.repeated, found.single) == (2, 1, 0, 0)
    assert "rows 5: 2 good, 3 bad" in list(found.lines())
    done = CliRunner().invoke(app, ["data", "join", str(file), "--out", str(tmp_path / "b.jsonl")])
    assert done.exit_code == 1 and f'{file}:2: row "2": image "data:' in done.stdout
    none = write(tmp_path, [row("1", data, "1?", "x")], "none.jsonl")
    with pytest.raises(DataError, match=r"no row can be used; the first: .*none.jsonl:1: row"):
        join([none], tmp_path / "none-out.jsonl")
    assert not (tmp_path / "none-out.jsonl").exists()


def test_a_picture_that_is_too_large_for_a_row_costs_its_own_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = [png(99, 99).ljust(500, b"\0"), png(7, 7)]
    rows = [
        {"id": f"{n}", "images": [data], "conversations": [
            {"from": "human", "value": f"<image>{n}?"}, {"from": "gpt", "value": "x"}]}
        for n, data in enumerate(large)
    ]  # fmt: skip
    file = write_parquet(tmp_path / "inside", rows)
    monkeypatch.setattr(rowfile, "MAX_EMBEDDED", 400)
    found = join([file], tmp_path / "out.jsonl")
    assert talks(tmp_path / "out.jsonl") == [("1", ["1?", "x"])]
    (bad,) = found.bad_rows
    assert bad.id == "0" and "is too large to stand in a row" in bad.reason


def test_rows_that_repeat_several_questions_are_found_in_their_conversation(tmp_path: Path) -> None:
    rows = [
        row("1", "a.png", "1?", "x", "2?", "y"),
        row("2", "a.png", "1?", "x", "3?", "z"),  # into another one: the first question is there
        row("3", "a.png", "3?", "z", "1?", "x"),  # said in that one
        row("4", "a.png", "2?", "y", "3?", "z"),  # said, but in two
    ]
    found = join([write(tmp_path, rows)], tmp_path / "out.jsonl")
    assert [id for id, _ in talks(tmp_path / "out.jsonl")] == ["1", "2", "4"]
    assert found.repeated == 1


def test_full_conversations_are_not_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work is counted: conversations that a row is compared with."""
    rows = [row(f"{n}", "a.png", f"{n}?", "x") for n in range(200)] * 2
    compared, fits = [], joining._fits
    monkeypatch.setattr(joining, "_fits", lambda *args: compared.append(1) or fits(*args))
    found = join([write(tmp_path, rows)], tmp_path / "out.jsonl", max_turns=2)
    assert (found.written, found.repeated) == (100, 200)
    assert len(compared) <= len(rows)


def test_several_files_have_one_root(tmp_path: Path) -> None:
    one = write(tmp_path, [row("1", "p/a.png", "1?", "x")], "one.jsonl")
    two = write(tmp_path, [row("2", "p/a.png", "2?", "x")], "two.jsonl")
    out = tmp_path / "made" / "out.jsonl"
    found = join([one, two], out)
    assert str(tmp_path) in found.hint and "image_root" in found.hint
    assert talks(out, tmp_path) == [("1", ["1?", "x", "2?", "x"])]
    other = write(tmp_path / "other", [row("3", "a.png", "3?", "x")])
    with pytest.raises(DataError, match="image paths start in"):
        join([one, other], tmp_path / "both.jsonl")
    assert not (tmp_path / "both.jsonl").exists()


def test_the_command(tmp_path: Path) -> None:
    file, out = write_json(tmp_path), tmp_path / "out.jsonl"
    words = ["data", "join", str(file), "--out", str(out)]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0 and f"{out}: " in done.stdout
    first = out.read_bytes()
    assert "exists; choose another --out" in CliRunner().invoke(app, words).stderr
    assert CliRunner().invoke(app, [*words, "--overwrite"]).exit_code == 0
    assert out.read_bytes() == first
    self_ = ["data", "join", str(out), "--out", str(out), "--overwrite"]
    assert "is one of the files" in CliRunner().invoke(app, self_).stderr
    with file.open("a") as rows:
        rows.write('\n{"id": "bad", "messages": []}\n')
    again = CliRunner().invoke(app, [*words, "--overwrite", "--json"])
    said = json.loads(again.stdout)
    assert again.exit_code == 1 and said["bad_rows"][0]["id"] == "bad"
    assert out.read_bytes() == first
