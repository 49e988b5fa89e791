"""Synthesis against a server that misbehaves: every answer once, every sample right, no key anywhere."""

import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import endpoint as served
from datafiles import png, write_parquet
from endpoint import KEY, Server, caption, pairs, status, write_pictures
from oculi.data import rowfile
from oculi.data.check import check
from oculi.data.formats import FileSource
from oculi.data.synth import asking
from oculi.data.synth import endpoint as endpoint_module
from oculi.data.synth.asking import Limits
from oculi.data.synth.endpoint import Endpoint
from oculi.data.synth.instructions import read_instructions
from oculi.data.synth.pictures import Pictures
from oculi.data.synth.plan import Plan
from oculi.data.synth.synthesize import Summary, synthesize
from oculi.errors import DataError, EndpointError

FAST = Limits(first_wait=0.01)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with served.serving() as told:
        yield told


def plan(strategy: str = "brief-caption", **changes: Any) -> Plan:
    known = read_instructions()
    return Plan(
        strategy=strategy,
        instructions=known.version,
        instruction=known.strategy(strategy),
        model="m",
        **changes,
    )


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def run(source: Path, server: Server, out: Path, limits: Limits = FAST, **changes: Any) -> Summary:
    point = Endpoint(server.url, KEY, changes.pop("timeout", 20))
    return synthesize(Pictures(source), plan(**changes), point, out, limits)


def said(folder: Path) -> dict[str, str]:
    """The answers of the samples by id, through the reader of training."""
    source = FileSource(folder / "out" / "samples.jsonl", folder / "p")
    assert not source.bad_rows
    for sample in source:
        sample.images[0].load()
    return {sample.id: sample.messages[1].text for sample in source}


def test_captions_become_samples_that_training_reads(server: Server, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", [30, 31, 32])
    summary = run(folder, server, tmp_path / "out")
    assert (summary.samples, summary.quarantined, summary.unanswered) == (3, 0, 0)
    assert said(tmp_path) == {f"00{n}": f"A picture {n} pixels wide." for n in (30, 31, 32)}
    asked = read_instructions().strategy("brief-caption")
    for row, seen in zip(
        rows(tmp_path / "out" / "samples.jsonl"),
        sorted(server.seen, key=lambda asked: asked.width),
        strict=True,
    ):
        question = row["messages"][0]["content"][1]["text"].strip()
        assert question in asked.wordings and seen.prompt.startswith(question)
        assert row["synthesis"] == {"model": "m", "strategy": "brief-caption", "instructions": "1"}
        assert seen.body["model"] == "m" and seen.body["max_tokens"] == 200
    assert check([tmp_path / "out" / "samples.jsonl"], folder).ok


def test_pairs_become_conversations(server: Server, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", [30])
    server.answer = lambda _: pairs(("Is <image> here?", "no, <|im_end|>"), ("What?", "blue"))
    run(folder, server, tmp_path / "out", strategy="brief-vqa")
    (sample,) = FileSource(tmp_path / "out" / "samples.jsonl", folder)
    texts = [message.text.strip() for message in sample.messages]
    assert texts == ["Is <image> here?", "no, <|im_end|>", "What?", "blue"]
    assert len(sample.images) == 1


def test_new_captions_keep_a_rows_own_question(server: Server, tmp_path: Path) -> None:
    write_pictures(tmp_path, [30, 31])
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "old"}]
    file = tmp_path / "rows.json"
    file.write_text(
        json.dumps(
            [
                {"id": "a", "image": "0030.png", "conversations": talk},
                {"id": "b", "image": "0031.png", "conversations": [
                    {"from": "human", "value": "<image>"}, {"from": "gpt", "value": "old"}]},
            ]
        )
    )  # fmt: skip
    run(file, server, tmp_path / "out", strategy="recaption")
    one, two = FileSource(tmp_path / "out" / "samples.jsonl", tmp_path)
    assert [m.text.strip() for m in one.messages] == [
        "What is it?",
        json.loads(caption(30))["Caption"],
    ]
    assert [m.text for m in two.messages] == ["", json.loads(caption(31))["Caption"]]


MISBEHAVIOUR: dict[str, list[Any]] = {
    "429 without a time": [status(429), status(429)],
    "429 with a time": [status(429, Retry_After="0.05")],
    "429 with a date": [status(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")],
    "500": [status(500), status(503), status(529)],
    "500 without JSON": [lambda handler: handler.send(502, b"<html>Bad gateway</html>")],
    "closed in the middle": [served.half],
    "closed at once": [served.hang_up],
    "slow": [served.drip],
    "no JSON": [served.body(b"<html>hello</html>")],
    "JSON of another kind": [served.body(b"[1, 2]"), served.body(b"null")],
    "no choices": [served.body(b'{"choices": []}'), served.body(b'{"choices": [null]}')],
    "no text": [served.says(None), served.says("  ")],
    "parts": [served.says([{"type": "text", "text": "x"}])],
    "prose": [served.says("A picture of a cat.")],
    "cut": [served.says('{"Caption": "A pic', finish="length")],
    "wrong schema": [served.says('{"caption": "a"}'), served.says('{"Caption": "a", "b": 1}')],
    "a number for usage": [served.body(b'{"choices": [], "usage": {"prompt_tokens": -5}}')],
}


@pytest.mark.parametrize("name", MISBEHAVIOUR)
def test_a_server_may_misbehave(server: Server, tmp_path: Path, name: str) -> None:
    """The picture is asked about again, and the others never notice."""
    folder = write_pictures(tmp_path / "p", [30, 31, 32])
    script = MISBEHAVIOUR[name]
    server.script[31] = list(script)
    summary = run(folder, server, tmp_path / "out", timeout=2 if name == "slow" else 60)
    assert (summary.samples, summary.quarantined, summary.unanswered) == (3, 0, 0)
    assert said(tmp_path)["0031"] == "A picture 31 pixels wide."
    assert Counter(server.widths()) == {30: 1, 31: 1 + len(script), 32: 1}


def test_a_code_fence_is_no_misbehaviour(server: Server, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", [30])
    server.script[30] = [served.says(f"```json\n{caption(30)}\n```")]
    run(folder, server, tmp_path / "out")
    assert said(tmp_path) == {"0030": "A picture 30 pixels wide."} and len(server.seen) == 1


def test_a_huge_answer_is_asked_again(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint_module, "MAX_REPLY", 5000)
    monkeypatch.setattr(asking, "_MAX_KEPT", 100)
    folder = write_pictures(tmp_path / "p", [30])
    server.script[30] = [served.says("x" * 100_000)]
    run(folder, server, tmp_path / "out")
    first, second = rows(tmp_path / "out" / "records.jsonl")
    assert first["reason"] == "the answer is longer than is read" and len(first["reply"]) == 100
    assert second["outcome"] == "ok"


def test_who_never_fits_is_quarantined_with_the_reason(server: Server, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", [30, 31, 32, 33])
    server.script[31] = [served.says("prose")] * 3
    server.script[32] = [served.says("", finish="content_filter")]
    server.script[33] = [served.says(None, refusal="I cannot")]
    (folder / "0034.png").write_bytes(b"no picture")
    summary = run(folder, server, tmp_path / "out")
    assert (summary.samples, summary.quarantined, summary.unanswered) == (1, 4, 0)
    bad = {row["id"]: row for row in rows(tmp_path / "out" / "quarantine.jsonl")}
    assert bad["0031"]["reason"].startswith("not valid JSON") and bad["0031"]["reply"] == "prose"
    assert bad["0032"]["reason"] == bad["0033"]["reason"] == "the provider's content filter"
    assert "I cannot" in bad["0033"]["reply"] and "not a picture" in bad["0034"]["reason"]
    assert Counter(server.widths()) == {30: 1, 31: 3, 32: 1, 33: 1}
    assert "could not be used: not valid JSON" in server.seen[-1].prompt
    run(folder, server, tmp_path / "out")
    assert len(server.seen) == 6  # nobody is asked again ...
    run(folder, server, tmp_path / "out", Limits(tries=4, first_wait=0.01))
    assert server.widths()[6:] == [31]  # ... but who may be asked more often
    assert len(rows(tmp_path / "out" / "samples.jsonl")) == 2


def test_a_refusal_may_be_about_one_picture_or_about_all(server: Server, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", list(range(30, 42)))
    refuse = status(400, "no pictures, please")
    for width in range(30, 42):
        server.script[width] = [refuse]
    one = Limits(concurrency=1, first_wait=0.01)
    with pytest.raises(EndpointError, match="refused the first 5 pictures: HTTP 400: no pict"):
        run(folder, server, tmp_path / "out", one)
    assert rows(tmp_path / "out" / "records.jsonl") == []
    for width in (30, 33):
        server.script[width] = [refuse]
    flagged = {"code": 403, "message": "flagged", "metadata": {"flagged_input": "..."}}
    server.script[35] = [status(400, "bad", "content_filter")]
    server.script[36] = [status(403, "bad", "content_policy_violation")]
    server.script[37] = [lambda handler: handler.send(403, json.dumps({"error": flagged}).encode())]
    for width in (31, 32, 34, *range(38, 42)):
        server.script[width] = []
    summary = run(folder, server, tmp_path / "out", one)
    assert (summary.samples, summary.quarantined, summary.unanswered) == (7, 5, 0)
    reasons = {row["id"]: row["reason"] for row in rows(tmp_path / "out" / "quarantine.jsonl")}
    assert reasons["0036"] == "HTTP 403: bad" and reasons["0037"] == "HTTP 403: flagged"
    assert reasons["0030"] == "HTTP 400: no pictures, please" and reasons["0035"] == "HTTP 400: bad"
    # Where others were answered before, it is about the new one.
    write_pictures(folder, [50])
    server.script[50] = [refuse]
    summary = run(folder, server, tmp_path / "out", one)
    assert (summary.samples, summary.quarantined, summary.unanswered) == (7, 6, 0)


def test_a_picture_that_is_too_large_for_a_row_is_quarantined_before_it_is_asked_about(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes = [png(width, 40).ljust(length, b"\0") for width, length in ((30, 500), (31, 0))]
    talk = [{"from": "human", "value": "<image>?"}, {"from": "gpt", "value": "x"}]
    made = [{"id": f"{n}", "images": [one], "conversations": talk} for n, one in enumerate(shapes)]
    file, out = write_parquet(tmp_path, made), tmp_path / "out"
    monkeypatch.setattr(rowfile, "MAX_EMBEDDED", 400)
    summary = run(file, server, out)
    assert (summary.samples, summary.quarantined, server.widths()) == (1, 1, [31])
    (bad,) = rows(out / "quarantine.jsonl")
    assert bad["id"] == "0" and "is too large to stand in a row" in bad["reason"]
    # One that was answered before this was looked at is in nobody's way either.
    monkeypatch.setattr(rowfile, "MAX_EMBEDDED", 1)
    summary = run(file, server, out)
    assert (summary.samples, summary.quarantined, server.widths()) == (0, 2, [31])
    assert "too large" in rows(out / "quarantine.jsonl")[1]["reason"]


def test_an_answer_is_for_the_bytes_that_were_asked_about(server: Server, tmp_path: Path) -> None:
    folder, out = write_pictures(tmp_path / "p", [30, 31, 32]), tmp_path / "out"
    server.script[31] = [served.says("prose")] * 3
    summary = run(folder, server, out)
    assert (summary.samples, summary.quarantined, summary.changed) == (2, 1, 0)
    server.seen.clear()
    shutil.copytree(folder, tmp_path / "moved" / "p")
    summary = run(tmp_path / "moved" / "p", server, out)
    assert (summary.samples, summary.changed, server.widths()) == (2, 0, [])
    for name, width in (("0030.png", 40), ("0031.png", 41)):  # others under their names
        (folder / name).write_bytes(png(width, 40))
    server.script[41] = [served.says("prose")]
    summary = run(folder, server, out)
    assert (summary.samples, summary.quarantined, summary.changed) == (3, 0, 2)
    assert Counter(server.widths()) == {40: 1, 41: 2}
    assert said(tmp_path) == {
        f"00{n}": f"A picture {m} pixels wide." for n, m in ((30, 40), (31, 41), (32, 32))
    }
    assert "changed since they were asked about: 2 pictures" in "\n".join(summary.lines())
    assert run(folder, server, out).changed == 0 and len(server.seen) == 3


def test_an_answer_to_other_bytes_is_not_written_where_a_new_one_is_missing(
    server: Server, tmp_path: Path
) -> None:
    folder, out = write_pictures(tmp_path / "p", [30, 31, 32]), tmp_path / "out"
    run(folder, server, out)
    for name, width in (("0030.png", 40), ("0032.png", 42)):
        (folder / name).write_bytes(png(width, 40))
    server.script[40] = [status(401)]
    with pytest.raises(EndpointError, match="look at the key"):
        run(folder, server, out, Limits(concurrency=1))
    assert list(said(tmp_path)) == ["0031"]
    (folder / "0032.png").write_bytes(b"no picture")
    summary = run(folder, server, out)
    assert (summary.samples, summary.quarantined, summary.unanswered) == (2, 1, 0)
    assert "not a picture" in rows(out / "quarantine.jsonl")[0]["reason"]


def test_tries_are_those_with_the_same_bytes(server: Server, tmp_path: Path) -> None:
    folder, out = write_pictures(tmp_path / "p", [30]), tmp_path / "out"
    server.script[30] = [served.says("prose")] * 3
    assert run(folder, server, out).quarantined == 1
    (folder / "0030.png").write_bytes(png(40, 40))
    server.script[40] = [served.says("prose"), *[status(401)] * 2]
    for _ in range(2):
        with pytest.raises(EndpointError):
            run(folder, server, out)
    assert run(folder, server, out).samples == 1 and server.widths() == [30] * 3 + [40] * 4


def test_records_without_a_digest_are_taken_as_they_are(server: Server, tmp_path: Path) -> None:
    folder, out = write_pictures(tmp_path / "p", [30]), tmp_path / "out"
    run(folder, server, out)
    record = json.loads((out / "records.jsonl").read_text())
    del record["digest"]
    (out / "records.jsonl").write_text(json.dumps(record) + "\n")
    (folder / "0030.png").write_bytes(png(40, 40))
    assert run(folder, server, out).samples == 1 and server.widths() == [30]


def test_what_pictures_show_stays_with_them(server: Server, tmp_path: Path) -> None:
    write_pictures(tmp_path, [30])
    row = {"image": "0030.png", "text": "old", "modality": "depth"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    run(tmp_path / "rows.jsonl", server, tmp_path / "out")
    (made,) = FileSource(tmp_path / "out" / "samples.jsonl", tmp_path)
    assert made.modality == "depth"


def test_a_kill_before_the_plan_has_its_name_is_gone_on_from(
    server: Server, tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "p", [30])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "plan.json.partial").write_text("{")
    assert run(folder, server, tmp_path / "out").samples == 1


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        (
            status(401, f"Incorrect API key provided: {KEY}"),
            r"HTTP 401: .* \*\*\*; look at the key",
        ),
        (status(403, "the key was revoked", "invalid_api_key"), "HTTP 403: .*; look at the key"),
        (status(404, "no such model"), "HTTP 404: no such model; look at --endpoint"),
        (status(307, Location="https://elsewhere.invalid/"), "a redirect to https://elsewhere.inv"),
        (status(429, "spent", "insufficient_quota"), "the account is spent"),
        (
            status(400, "limit", "billing_hard_limit_reached"),
            "HTTP 400: limit; the account is spent",
        ),
        (status(429, Retry_After="86400"), "come back in 1440 minutes"),
    ],
)
def test_what_cannot_get_better_ends_the_run(
    server: Server, tmp_path: Path, behaviour: Any, reason: str
) -> None:
    folder = write_pictures(tmp_path / "p", [30, 31, 32, 33])
    server.script[32] = [behaviour]
    with pytest.raises(EndpointError, match=reason) as caught:
        run(folder, server, tmp_path / "out", Limits(concurrency=1, first_wait=0.01))
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)
    assert server.widths() == [30, 31, 32]
    assert list(said(tmp_path)) == ["0030", "0031"]  # what was answered is there
    assert run(folder, server, tmp_path / "out").samples == 4
    assert sorted(server.widths()) == [30, 31, 32, 32, 33]


def test_a_server_that_is_down_ends_the_run(server: Server, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", list(range(30, 50)))
    for width in range(30, 50):
        server.script[width] = [status(500)] * 9
    limits = Limits(concurrency=1, retries=1, first_wait=0.01)
    with pytest.raises(EndpointError, match=r"no answer for 3 pictures in a row, .*HTTP 500"):
        run(folder, server, tmp_path / "out", limits)
    assert server.widths() == [30, 30, 31, 31, 32, 32] and said_nothing(tmp_path / "out")


def said_nothing(out: Path) -> bool:
    return not (out / "samples.jsonl").read_text() and not (out / "records.jsonl").read_text()


def test_a_picture_without_an_answer_is_asked_about_the_next_time(
    server: Server, tmp_path: Path
) -> None:
    folder = write_pictures(tmp_path / "p", [30, 31, 32])
    server.script[31] = [status(500)] * 2
    summary = run(folder, server, tmp_path / "out", Limits(retries=1, first_wait=0.01))
    assert (summary.samples, summary.quarantined, summary.unanswered) == (2, 0, 1)
    assert summary.last_problem == "HTTP 500: no"
    assert run(folder, server, tmp_path / "out").samples == 3
    assert Counter(server.widths()) == {30: 1, 31: 3, 32: 1}


def test_all_wait_when_one_is_told_to(server: Server, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", list(range(30, 36)))
    server.script[30] = [status(429, Retry_After="0.5")]
    run(folder, server, tmp_path / "out", Limits(concurrency=1, first_wait=0.01))
    times = [asked.time for asked in server.seen]
    assert times[1] - times[0] >= 0.5 and server.widths()[:2] == [30, 30]


def test_requests_keep_to_their_rate_and_number(server: Server, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", list(range(30, 42)))
    server.delay = 0.05
    run(folder, server, tmp_path / "out", Limits(concurrency=3, requests=1200))
    times = sorted(asked.time for asked in server.seen)
    assert server.most_under_way <= 3
    assert times[-1] - times[0] >= 11 * 0.05 / 2  # 20 a second; receiving is not to the moment


def test_a_folder_belongs_to_one_plan_and_one_process(server: Server, tmp_path: Path) -> None:
    folder, out = write_pictures(tmp_path / "p", [30]), tmp_path / "out"
    run(folder, server, out)
    for changes, name in (
        ({"seed": 1}, "another seed"),
        ({"max_side": 99}, "another max_side"),
        ({"settings": {"temperature": 1}}, "another settings"),
        ({"strategy": "recaption"}, "another strategy"),
    ):
        with pytest.raises(DataError, match=f"was begun with {name}; choose another --out"):
            run(folder, server, out, **changes)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(DataError, match="exists and is not empty"):
        run(folder, server, tmp_path / "other")
    (out / "plan.json").write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        run(folder, server, out)


def test_more_pictures_later_cost_only_themselves(server: Server, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", [30, 31])
    run(folder, server, tmp_path / "out")
    write_pictures(folder, [29, 32])
    assert run(folder, server, tmp_path / "out").samples == 4
    assert Counter(server.widths()) == {29: 1, 30: 1, 31: 1, 32: 1}
    assert list(said(tmp_path)) == ["0029", "0030", "0031", "0032"]


@pytest.mark.parametrize("damage", ["x", '{"key": 1}', '{"key": "a", "outcome": "fine"}'])
def test_records_are_not_trusted(server: Server, tmp_path: Path, damage: str) -> None:
    folder, out = write_pictures(tmp_path / "p", [30]), tmp_path / "out"
    run(folder, server, out)
    file = out / "records.jsonl"
    good = file.read_text()
    file.write_text(f"{damage}\n{good}")
    with pytest.raises(DataError, match=r"take it out|take that line out"):
        run(folder, server, out)
    file.write_text(good.replace("Caption", "Kaption"))
    assert run(folder, server, out).quarantined == 1
    (bad,) = rows(out / "quarantine.jsonl")
    assert bad["reason"].startswith("its record has changed")


def test_the_key_is_written_nowhere(server: Server, tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", [30, 31, 32])
    server.script[30] = [served.says(json.dumps({"Caption": f"the key is {KEY}"}))]
    server.script[31] = [served.says(KEY)] * 3
    server.script[32] = [status(500, KEY), status(400, f"why {KEY}?")]
    run(folder, server, tmp_path / "out")
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert all(KEY.encode() not in path.read_bytes() for path in files)
