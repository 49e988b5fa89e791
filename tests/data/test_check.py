"""The report names every bad row, counts the rest, and is never a traceback."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from oculi.cli import app
from oculi.data.check import check

SHARED = Path(
    os.environ.get("OCULI_SHARED") or Path(__file__).resolve().parents[2].parent / "shared"
)


def row(id: str, image: object = "good.png", **changes: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": "<image> what?"}, {"from": "gpt", "value": "a cat"}]
    return {"id": id, "image": image, "conversations": turns, **changes}


def said(*pairs: tuple[str, str]) -> list[dict[str, str]]:
    return [{"from": who, "value": what} for who, what in pairs]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (200, 100)).save(tmp_path / "good.png")
    Image.new("RGB", (20, 30)).save(tmp_path / "small.png")
    whole = (tmp_path / "good.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.png").touch()
    (tmp_path / "page.png").write_text("<html>not found</html>")
    return tmp_path


def test_every_defect_is_listed_and_nothing_else(folder: Path) -> None:
    rows: list[object] = [
        row("good-1"),
        row("missing", "none.png"),
        row("cut", "cut.png"),
        row("empty", "empty.png"),
        row("page", "page.png"),
        row("folder", "."),
        row("escape", "../../etc/passwd"),
        row(
            "second",
            ["good.png", "none.png"],
            conversations=said(("human", "<image><image>"), ("gpt", "x")),
        ),
        row("few", conversations=said(("human", "what?"), ("gpt", "x"))),
        row("many", conversations=said(("human", "<image><image>"), ("gpt", "x"))),
        row("answer", conversations=said(("human", "<image>"), ("gpt", ""))),
        row("order", conversations=said(("gpt", "x"), ("human", "<image>"))),
        row("last", conversations=said(("human", "<image>"))),
        {"id": "keys", "picture": "good.png", "text": "x"},
        [1, 2],
        row("text", None, conversations=said(("human", "say <image>"), ("gpt", "<image>"))),
        row(
            "good-1",
            ["small.png", "good.png"],
            conversations=said(
                ("human", "<image> and <image>"), ("gpt", "x"), ("human", "?"), ("gpt", "y")
            ),
        ),
    ]
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + '\n{"id": "broken", \n')
    report = check([path])
    reasons = {bad.id: (bad.line, bad.reason) for bad in report.bad_rows}
    wanted = {
        "missing": (2, 'image "none.png" does not exist'),
        "cut": (3, 'image "cut.png" is truncated or damaged'),
        "empty": (4, 'image "empty.png" is empty (0 bytes)'),
        "page": (5, 'image "page.png" is an HTML, XML or SVG page, not a picture'),
        "folder": (6, 'image "." is a folder, not a file'),
        "second": (8, 'image "none.png" does not exist'),
        "few": (9, "0 placeholders for 1 image"),
        "many": (10, "2 placeholders for 1 image"),
        "answer": (11, "turn 2 (assistant) is empty"),
        "order": (12, "turn 1 is assistant where user must come"),
    }
    assert {id: reasons[id] for id in wanted} == wanted
    assert "lies outside the image root" in reasons["escape"][1]
    assert "training needs an assistant answer" in reasons["last"][1]
    assert 'the keys are "id", "picture", "text"' in reasons["keys"][1]
    assert [bad.line for bad in report.bad_rows] == [*range(2, 16), 18]
    assert (report.rows, report.good, report.bad, report.ok) == (18, 3, 15, False)
    assert (report.with_images, report.without_images, report.images) == (2, 1, 3)
    assert (report.turns, report.duplicates, report.literal_placeholders) == (8, 1, 1)
    assert report.to_json()["sizes"] == {"<= 32": 1, "<= 224": 2}


def test_the_report_prints_and_dumps(folder: Path) -> None:
    path = folder / "rows.jsonl"
    path.write_text(json.dumps(row("bad\x1b[2J", "none.png")) + "\n" + json.dumps(row("b")))
    report = check([path])
    lines = list(report.lines())
    assert lines[0] == f'{path}:1: row "bad\\x1b[2J": image "none.png" does not exist'
    assert lines[1:4] == [
        f"{path}: llava (JSON)",
        "rows 2: 1 good, 1 bad",
        "good rows: 1 with images, 0 without; 1 images, 2 turns",
    ]
    values = json.loads(json.dumps(report.to_json()))
    assert (values["ok"], values["rows"], values["bad"]) == (False, 2, 1)
    assert values["bad_rows"][0]["line"] == 1


def test_without_decoding_headers_are_still_read(folder: Path) -> None:
    path = folder / "rows.json"
    path.write_text(json.dumps([row("cut", "cut.png"), row("missing", "none.png")]))
    assert [bad.id for bad in check([path], decode=False).bad_rows] == ["missing"]
    assert [bad.id for bad in check([path]).bad_rows] == ["cut", "missing"]


def test_files_that_cannot_be_read_are_named_and_the_others_checked(folder: Path) -> None:
    good, html, none = folder / "good.json", folder / "page.png", folder / "none.json"
    good.write_text(json.dumps([row("a")]))
    report = check([none, html, good, folder])
    assert report.good == 1
    by_file = {bad.file: bad for bad in report.bad_rows}
    assert set(by_file) == {str(none), str(html), str(folder)}
    assert by_file[str(none)].line == 0
    assert "No such file" in str(by_file[str(none)])
    assert report.formats[str(good)] == "llava"
    assert not check([folder / "empty.png"]).ok


def test_progress_counts_bytes_over_all_files(folder: Path) -> None:
    one, two = folder / "one.json", folder / "two.jsonl"
    one.write_text(json.dumps([row("a"), row("b")]))
    two.write_text(json.dumps(row("c")))
    seen: list[tuple[int, int]] = []
    report = check([one, two], on_progress=lambda done, total: seen.append((done, total)))
    assert report.ok and next(report.lines()) == f"{one}: llava (JSON)"
    total = one.stat().st_size + two.stat().st_size
    assert [each[1] for each in seen] == [total] * 3
    assert [each[0] for each in seen] == sorted(each[0] for each in seen)
    assert seen[-1] == (total, total)


def test_another_image_root(folder: Path) -> None:
    (folder / "lists").mkdir()
    path = folder / "lists" / "rows.json"
    path.write_text(json.dumps([row("a")]))
    assert not check([path]).ok
    assert check([path], image_root=folder).ok


def command(*words: object) -> Any:
    return CliRunner().invoke(app, ["data", "check", *map(str, words)])


def test_the_command_takes_patterns_folders_and_a_format(folder: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        (folder / name).write_text(json.dumps(row(name)))
    done = command(folder / "*.jsonl")
    assert done.exit_code == 0
    assert f"{folder / 'a.jsonl'}: llava (JSON)\n{folder / 'b.jsonl'}: llava (JSON)" in done.stdout
    plain = {"image": "good.png", "conversations": said(("human", "what?"), ("gpt", "x"))}
    (folder / "a.jsonl").write_text(json.dumps(plain))
    assert command(folder / "a.jsonl").exit_code == 1
    done = command(folder / "a.jsonl", "--format", "vora")
    assert (done.exit_code, ": vora (JSON)" in done.stdout) == (0, True)
    done = command(folder / "a.jsonl", "--format", "vroa", "--json")
    assert done.exit_code == 2
    assert done.stderr.startswith('oculi: unknown format "vroa"; known: ')
    assert done.stderr.endswith('; did you mean "vora"?\n')
    done = command(folder / "none*.jsonl", "--json")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["bad_rows"][0]["reason"] == "no file matches"


@pytest.mark.parametrize(("name", "count"), [("emoji/train.json", 1444)])
def test_real_files_are_all_good(name: str, count: int) -> None:
    path = SHARED / "data" / name
    if not path.is_file():
        pytest.skip(f"the development data is not here: {path}")
    report = check([path])
    assert report.bad_rows == []
    assert (report.good, report.images, report.with_images) == (count, count, count)
