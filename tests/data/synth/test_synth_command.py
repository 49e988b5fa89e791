"""``oculi data synthesize`` as people type it: consent, a kill, fields, mistakes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

import endpoint as served
from endpoint import KEY, Server, status, write_pictures
from oculi.cli import app
from oculi.data.formats import FileSource


def works(*words: str) -> str:
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == 0, (done.stderr, done.exception)
    return done.stdout


def fails(*words: str, code: int = 2) -> str:
    """What a mistake says, with the estimate where it came that far; its last line is the mistake."""
    done = CliRunner().invoke(app, list(words))
    assert done.exit_code == code, (done.stderr, done.exception)
    assert done.stderr.splitlines()[-1].startswith("oculi: ")
    return done.stderr


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with served.serving() as told:
        yield told


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def said(folder: Path) -> dict[str, str]:
    """The answers of the samples by id, through the reader of training."""
    source = FileSource(folder / "out" / "samples.jsonl", folder / "p")
    assert not source.bad_rows
    for sample in source:
        sample.images[0].load()
    return {sample.id: sample.messages[1].text for sample in source}


def command(source: Path, server: Server, out: Path, *more: str) -> list[str]:
    return [
        "data", "synthesize", str(source), "--strategy", "brief-caption", "--endpoint", server.url,
        "--model", "m", "--out", str(out), *more,
    ]  # fmt: skip


def until(ready: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    began = time.monotonic()
    while not ready():
        assert process.poll() is None and time.monotonic() - began < 120
        time.sleep(0.02)


def recorded(out: Path) -> int:
    file = out / "records.jsonl"
    return file.read_bytes().count(b"\n") if file.exists() else 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_what_was_recorded_is_never_asked_again(
    server: Server, tmp_path: Path, number: signal.Signals
) -> None:
    folder, out = write_pictures(tmp_path / "p", list(range(30, 90))), tmp_path / "out"
    server.delay = 0.15
    words = command(folder, server, out, "--yes", "--concurrency", "2")
    process = subprocess.Popen(
        [sys.executable, "-m", "oculi", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        # A shell's background job ignores it, and so would all that it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    until(lambda: recorded(out) >= 6, process)
    process.send_signal(number)
    process.communicate(timeout=100)
    assert process.returncode == (-9 if number == signal.SIGKILL else 130)
    time.sleep(0.3)  # answers under way arrive at nobody
    before, kept = Counter(server.widths()), rows(out / "records.jsonl")
    assert 6 <= len(kept) < 60
    answered = {int(row["id"]) for row in kept}
    if number == signal.SIGINT:  # what was under way was waited for, and is written
        assert answered == set(before) and len(rows(out / "samples.jsonl")) == len(kept)
    with (out / "records.jsonl").open("a") as file:
        file.write('{"key":"half a li')
    server.seen.clear()
    server.delay = 0
    works(*words)
    again = Counter(server.widths())
    assert not answered & set(again) and answered | set(again) == set(range(30, 90))
    assert set(again.values()) == {1} and len(set(before) & set(again)) <= 2
    assert len(said(tmp_path)) == 60 and rows(out / "records.jsonl")[: len(kept)] == kept


def test_nothing_is_sent_without_consent(server: Server, tmp_path: Path) -> None:
    folder, out = write_pictures(tmp_path / "p", [30, 31]), tmp_path / "out"
    words = command(folder, server, out)
    shown = json.loads(
        works(*words, "--dry-run", "--json", "--price-in", "2", "--price-out", "10",
              "--key-env", "NOT_SET_ANYWHERE")
    )  # fmt: skip
    assert shown["requests"] == shown["pictures"] == 2 and shown["image_tokens"] == 2 * 255
    tokens = shown["image_tokens"] + shown["text_tokens"]
    assert shown["cost"] == pytest.approx((tokens * 2 + 2 * 45 * 10) / 1e6)
    assert shown["most_cost"] == pytest.approx((tokens * 6 + 2 * 200 * 3 * 10) / 1e6)
    assert "nothing was sent: add --yes" in fails(*words)
    assert server.seen == [] and not out.exists()
    works(*words, "--yes")
    assert len(server.seen) == 2
    assert json.loads(works(*words, "--dry-run", "--json"))["answered"] == 2
    done = works(*words)  # nothing to send needs no consent
    assert "2 samples, 0 quarantined" in done and len(server.seen) == 2


def test_the_command_says_what_was_left_without_an_answer(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    folder, out = write_pictures(tmp_path / "p", [30, 31]), tmp_path / "out"
    server.script[31] = [status(500, KEY)]
    words = command(folder, server, out, "--yes", "--retries", "0", "--key-env", "MY_KEY")
    said_ = fails(*words, code=8)
    assert "1 pictures have no answer, the last time: HTTP 500: ***" in said_ and KEY not in said_
    assert server.seen[0].headers["authorization"] == f"Bearer {KEY}"
    works(*words, "--limit", "1")
    assert "1 samples" in works(*words, "--limit", "1")


def test_fields_of_the_request(server: Server, tmp_path: Path) -> None:
    folder, out = write_pictures(tmp_path / "p", [300]), tmp_path / "out"
    words = command(folder, server, out, "--yes", "--max-side", "150")
    for wrong, reason in (
        ("temperature", "give it as KEY=VALUE"),
        ("model=x", "is not to be set"),
        ("messages=[]", "is not to be set"),
    ):
        assert reason in fails(*words, "--set", wrong)
    more = [
        "temperature=0.5",
        "max_tokens=null",
        'response_format={"type": "json_object"}',
        "user=me",
    ]
    works(*words, *(part for each in more for part in ("--set", each)))
    (asked,) = server.seen
    assert (asked.width, asked.height) == (150, 20)
    assert asked.body["temperature"] == 0.5 and "max_tokens" not in asked.body
    assert asked.body["response_format"] == {"type": "json_object"} and asked.body["user"] == "me"


def test_instructions_of_ones_own(server: Server, tmp_path: Path) -> None:
    folder, mine = write_pictures(tmp_path / "p", [30]), tmp_path / "mine.yaml"
    mine.write_text(
        works("data", "instructions")
        .replace('version: "1"', 'version: "mine"')
        .replace("One or two sentences about what can be seen", "A haiku")
    )
    works(*command(folder, server, tmp_path / "out", "--yes", "--instructions", str(mine)))
    assert "A haiku" in server.seen[0].prompt
    (row,) = rows(tmp_path / "out" / "samples.jsonl")
    assert row["synthesis"]["instructions"] == "mine"
    said_ = fails(*command(folder, server, tmp_path / "out", "--yes"))
    assert "was begun with another version of them" in said_ or "other instructions" in said_


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (["--endpoint", "h/v1"], "is no address"),
        (["--strategy", "brief-vqs"], 'did you mean "brief-vqa"?'),
        (["--key-env", "NOT_SET_ANYWHERE"], "holds no key"),
        (["--instructions", "none.yaml"], "none.yaml: No such file"),
        (["--model", ""], "--model is empty"),
        (["--format", "lava"], 'did you mean "llava"?'),
    ],
)
def test_mistakes_are_one_line(
    server: Server, tmp_path: Path, more: list[str], reason: str
) -> None:
    folder = write_pictures(tmp_path / "p", [30])
    said_ = fails(*command(folder, server, tmp_path / "out", "--yes", *more))
    assert reason in said_ and len(said_.splitlines()) == 1
    assert server.seen == [] and not (tmp_path / "out").exists()


def test_the_picture_that_is_sent_is_upright(server: Server, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "p").mkdir()
    Image.new("RGB", (60, 20)).save(tmp_path / "p" / "a.jpg", exif=exif)
    works(*command(tmp_path / "p", server, tmp_path / "out", "--yes"))
    assert (server.seen[0].width, server.seen[0].height) == (20, 60)
    assert os.listdir(tmp_path / "p") == ["a.jpg"]
