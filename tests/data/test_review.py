"""A person decides: every decision is kept, can be taken back, and is about what was shown."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from datafiles import chat, data_url, png
from oculi.cli import app
from oculi.data import rowfile
from oculi.data.formats import FileSource
from oculi.data.review import _escaped, _unescaped
from oculi.data.synth.records import Journal


def write(folder: Path, *talks: tuple[str, ...], **more: Any) -> Path:
    """Rows "0", "1", ... with a picture each."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for number, (asked, *rest) in enumerate(talks):
        (folder / f"{number}.png").write_bytes(png(8 + number, 6))
        content = [{"type": "image"}, *([{"type": "text", "text": asked}] if asked else [])]
        messages = chat(content, *rest)
        rows.append({"id": f"{number}", "images": [f"{number}.png"], "messages": messages} | more)
    (folder / "samples.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder / "samples.jsonl"


def review(file: Path, *lines: str, code: int = 0, options: tuple[str, ...] = ()) -> Any:
    out = file.with_name("reviewed.jsonl")
    words = ["data", "review", str(file), "--out", str(out), *options]
    done = CliRunner().invoke(app, words, input="".join(f"{line}\n" for line in lines))
    assert done.exit_code == code, (done.stderr, done.exception)
    return done


def kept(file: Path) -> dict[str, list[str]]:
    out = file.with_name("reviewed.jsonl")
    if not out.read_text():
        return {}
    source = FileSource(out)
    assert not source.bad_rows
    return {one.id: [m.text.strip() for m in one.messages] for one in source}


TALKS = [(f"{n}?", f"answer {n}") for n in range(4)]


def test_accept_reject_skip(tmp_path: Path) -> None:
    file = write(tmp_path, *TALKS, synthesis={"model": "m"})
    done = review(file, "a", "r", "s", "A")
    assert kept(file) == {"0": ["0?", "answer 0"], "3": ["3?", "answer 3"]}
    assert "accepted 2, edited 0, rejected 1, undecided 1" in done.stdout
    row = json.loads(file.with_name("reviewed.jsonl").read_text().splitlines()[0])
    assert row["synthesis"] == {"model": "m"} and row["images"] == ["0.png"]
    assert "answer 1" in done.stderr and "8 x 6 pixels" in done.stderr


def test_it_goes_on_where_it_was_left(tmp_path: Path) -> None:
    file = write(tmp_path, *TALKS)
    review(file, "a", "q", "r", "r")
    assert kept(file).keys() == {"0"}
    second = review(file, "r")  # and the input ends
    assert "answer 0" not in second.stderr and "answer 1" in second.stderr
    review(file, "a", "a")
    assert kept(file).keys() == {"0", "2", "3"}
    assert "accepted 3" in review(file).stdout


def test_decisions_survive_a_kill(tmp_path: Path) -> None:
    """They are on the disk before the next sample is shown, and half a line is none."""
    file = write(tmp_path, *TALKS)
    seen: list[int] = []
    decisions = tmp_path / "reviewed.jsonl.decisions"
    review(file, "a", "r", "q")
    with Journal(decisions) as journal:
        seen = [1 for _ in journal]
    assert len(seen) == 2
    with decisions.open("a") as open_file:
        open_file.write('{"key": "half')
    review(file, "r", "a")
    assert kept(file).keys() == {"0", "3"}


def test_back_takes_the_last_decision_back(tmp_path: Path) -> None:
    file = write(tmp_path, *TALKS)
    review(file, "b", "a", "s", "r", "b", "a", "b", "b", "b", "r", "a", "a", "a")
    assert kept(file).keys() == {"1", "2", "3"}


def test_editing(tmp_path: Path) -> None:
    file = write(tmp_path, ("Colour?", "red", "Shape?", "star"), ("", "a caption"), ("x?", "y"))
    review(
        file,
        *["e", "Which colour is <image>?", "", "-"],
        *["e", "", r"two\nlines and a \\nu"],
        *["e", "-", "a"],  # nothing is left: it is shown again, and accepted
    )
    assert kept(file) == {
        "0": ["Which colour is <image>?", "red"],
        "1": ["", "two\nlines and a \\nu"],
        "2": ["x?", "y"],
    }
    assert len(FileSource(file.with_name("reviewed.jsonl"))[0].images) == 1
    assert "nothing is left of it" in review(write(tmp_path / "b", ("x?", "y")), "e", "-").stderr


@pytest.mark.parametrize("text", ["", "a\nb", "\\n", "\\\n\\", "\\\\n\n", r"\nu \frac"])
def test_a_text_is_edited_as_one_line(text: str) -> None:
    assert "\n" not in _escaped(text) and _unescaped(_escaped(text)) == text


@pytest.mark.parametrize("data", ["data:image/tiff;base64,SUkqAA==", "data:image/png;base64,"])
def test_a_picture_that_cannot_be_written_is_in_nobodys_way(tmp_path: Path, data: str) -> None:
    file = write(tmp_path, *TALKS)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1]["images"] = [data]
    file.write_text("\n".join(map(json.dumps, rows)))
    done = review(file, "a", "s", "b", "a", "r", "a")  # skipped, gone back to, then accepted
    assert kept(file).keys() == {"0", "3"}
    assert "accepted 2, edited 0, rejected 1, undecided 0; bad rows 1" in done.stdout
    assert f'{file}:2: row "1": image "data:' in done.stderr
    done = review(write_first(file), "r", options=("--keep-undecided",))
    assert kept(file).keys() == {"0", "2", "3"}
    assert "accepted 0, edited 0, rejected 1, undecided 3\n" in done.stdout


def test_a_picture_that_is_too_large_for_a_row_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(tmp_path, *TALKS[:3])
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[1]["images"] = [data_url(png().ljust(500, b"\0"))]
    file.write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.setattr(rowfile, "MAX_EMBEDDED", 400)
    done = review(file, "a", "a", "a")
    assert kept(file).keys() == {"0", "2"} and "bad rows 1" in done.stdout
    assert f'{file}:2: row "1": image "data:' in done.stderr and "is too large" in done.stderr


def write_first(file: Path) -> Path:
    """The file with its second row first, and no decisions."""
    lines = file.read_text().splitlines()
    file.write_text("\n".join([lines[1], lines[0], *lines[2:]]))
    file.with_name("reviewed.jsonl.decisions").unlink()
    return file


def test_a_row_that_has_changed_is_shown_again(tmp_path: Path) -> None:
    file = write(tmp_path, *TALKS)
    review(file, "a", "a", "a", "a")
    file.write_text(file.read_text().replace("answer 2", "answer two"))
    done = review(file, "r")
    assert "answer two" in done.stderr and "answer 1" not in done.stderr
    assert kept(file).keys() == {"0", "1", "3"}


def test_an_unknown_letter_decides_nothing(tmp_path: Path) -> None:
    file = write(tmp_path, *TALKS[:1])
    done = review(file, "yes", "\x1b[2J", "a")
    assert done.stderr.count("none of the letters") == 2 and "\x1b" not in done.stderr
    assert len(kept(file)) == 1


def test_what_a_model_wrote_does_not_move_the_cursor(tmp_path: Path) -> None:
    file = write(tmp_path, ("a\x1b[2Jb?", "c\rd\ne"))
    done = review(file, "a")
    assert "\x1b" not in done.stderr and "\r" not in done.stderr
    assert kept(file)["0"] == ["a\x1b[2Jb?", "c\rd\ne"]  # what is kept is what it was


def test_undecided_rows_may_be_kept(tmp_path: Path) -> None:
    file = write(tmp_path, *TALKS)
    review(file, "r", options=("--keep-undecided",))
    assert kept(file).keys() == {"1", "2", "3"}


def test_the_picture_lies_beside_under_one_name(tmp_path: Path) -> None:
    from oculi.data import review as module

    file, sizes = write(tmp_path, *TALKS[:2]), []
    out = tmp_path / "made" / "reviewed.jsonl"

    def ask(prompt: str, text: str) -> str:
        sizes.append(Image.open(out.parent / ".reviewed.jsonl.jpg").size)
        return "a"

    module.review(file, out, ask, lambda line: None)
    assert sizes == [(8, 6), (9, 6)]
    assert sorted(path.name for path in out.parent.iterdir()) == [
        "reviewed.jsonl", "reviewed.jsonl.decisions",
    ]  # fmt: skip


def test_mistakes(tmp_path: Path) -> None:
    file = write(tmp_path, *TALKS)
    words = ["data", "review", str(file), "--out", str(file)]
    assert "is what is reviewed" in CliRunner().invoke(app, words).stderr
    (tmp_path / "reviewed.jsonl.decisions").write_text('{"key": 3}\n')
    assert "is no decision" in review(file, "a", code=2).stderr
    assert "No such file" in review(tmp_path / "none.json", code=2).stderr
