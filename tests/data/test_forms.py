"""What the rows of each house mean: where their pictures stand, and what is wrong with bad ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

from datafiles import HOSTILE, chat, data_url, png, said
from oculi.data.forms import FORMS, find_form, recognise
from oculi.data.rows import build_sample, parse_row
from oculi.data.sample import ImageSlot, Sample
from oculi.errors import DataError
from oculi.recipe import SourceSpec

Row = dict[str, Any]
S = ImageSlot


def build(row: Row, form: str | None = None) -> Sample:
    """The sample of a row as a container would give it, with bytes in it."""
    made = build_sample(row, form and find_form(form), Path("d/rows"), 3, Path("d"))
    made.validate(for_training=True)
    return made


def reason(row: Row, form: str | None = None) -> str:
    with pytest.raises(DataError) as caught:
        build(row, form)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def first(row: Row, form: str | None = None) -> tuple[object, ...]:
    return build(row, form).messages[0].content


# Recognition


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"frames": ["a.png"], "conversations": said("q", "a")}, "vora"),
        ({"images": ["a.png"], "conversations": said("<image>q", "a")}, "sharegpt"),
        ({"image": "a.png", "conversations": said("<image>q", "a")}, "llava"),
        ({"conversations": said("q", "a")}, "llava"),
        ({"messages": chat("q", "a")}, "messages"),
        ({"messages": chat([{"type": "image_url", "image_url": {"url": "a.png"}}], "a")}, "openai"),
        ({"images": ["a.png"], "texts": [{"user": "q", "assistant": "a"}]}, "cauldron"),
        ({"instruction": "q", "input": "", "output": "a"}, "instruction"),
        ({"prompt": "q", "response": "a"}, "instruction"),
        ({"question": "q", "answer": "a", "image": "a.png"}, "instruction"),
        ({"file_name": "a.png", "text": "a"}, "caption"),
        ({"image": "a.png", "caption": "a"}, "caption"),
    ],
)
def test_keys_tell_the_form(row: Row, name: str) -> None:
    assert recognise(row).name == name
    nulls = dict.fromkeys(["frames", "conversations", "messages", "texts", "prompt", "response"])
    assert recognise(nulls | row).name == name  # in a table every column is in every row
    assert build(nulls | row).messages == build(row).messages == build(row, name).messages


def test_every_form_has_a_name_and_says_its_keys() -> None:
    assert len({form.name for form in FORMS}) == len(FORMS)
    said = reason({"id": "x", "picture": "a", "label": None})
    assert 'row "x": unknown format: the keys are "id", "picture", "label" (null); known: ' in said
    assert all(form.name in said for form in FORMS)


def test_a_name_that_is_no_format() -> None:
    with pytest.raises(DataError, match=r'unknown format "sharegtp"; .*; did you mean "sharegpt"'):
        find_form("sharegtp")
    with pytest.raises(DataError, match="known: vora, sharegpt, llava"):
        find_form("x")


def test_a_form_that_was_asked_for_is_kept() -> None:
    row = {"image": "a.png", "conversations": said("what?", "a")}
    assert "0 placeholders for 1 image" in reason(row)
    assert first(row, "vora") == (S(0), "what?")
    assert "is a row of the format llava, not messages" in reason(row, "messages")


# VoRA


def test_vora_puts_frames_in_front_where_nothing_marks_them() -> None:
    row = {"id": 7, "frames": ["a.png"], "conversations": said("Describe.", f"A {HOSTILE}")}
    made = build(row)
    assert (made.id, made.messages[0].content) == ("7", (S(0), "Describe."))
    assert made.messages[1].content == (f"A {HOSTILE}",)
    row["frames"] = [png(), {"bytes": png(), "path": None}]
    assert first(row) == (S(0), S(1), "Describe.")
    row["conversations"].insert(0, {"from": "system", "value": "be brief"})
    made = build(row)
    assert made.messages[0].content == ("be brief",)
    assert made.messages[1].content == (S(0), S(1), "Describe.")


def test_vora_keeps_marked_places() -> None:
    row = {"frames": ["a.png", "b.png"], "conversations": said("<image> or <image>?", "a")}
    assert first(row) == (S(0), " or ", S(1), "?")
    row["conversations"] = said("see <video>?", "a <video>")
    assert first(row) == ("see ", S(0), S(1), "?")
    assert build(row).messages[1].content == ("a <video>",)
    row["conversations"] = said("<image>?", "a")
    assert "1 placeholder for 2 images" in reason(row)


def test_vora_text_rows_and_nested_conversations() -> None:
    row: Row = {"frames": [], "conversations": [said("what is <image> or <video>?", "a")]}
    assert first(row) == ("what is <image> or <video>?",)
    row["conversations"] *= 2
    assert "turn 1 is a list; it must be an object" in reason(row)


# ShareGPT


def test_sharegpt_rows_may_have_a_system_prompt_beside_the_turns() -> None:
    row = {"images": ["a.png"], "conversations": said("<image>q", "a"), "system": "be brief"}
    assert [(m.role, m.text) for m in build(row).messages] == [
        ("system", "be brief"), ("user", "q"), ("assistant", "a")
    ]  # fmt: skip
    row["conversations"].insert(0, {"from": "system", "value": "be long"})
    assert [m.text for m in build(row).messages] == ["be long", "q", "a"]
    assert '"system" is a number' in reason({"conversations": said("q", "a"), "system": 3})
    called = {"conversations": [*said("q"), {"from": "function_call", "value": "{}"}]}
    assert 'turn 2 is by "function_call"; known: ' in reason(called)


def test_the_columns_of_turns_are_turned_back() -> None:
    row = {"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}}
    assert [m.text for m in build(row).messages] == ["q", "a"]
    row["conversations"]["value"] = ["q"]
    assert 'the lists in "conversations" differ in length' in reason(row)
    assert '"conversations" is an object' in reason({"conversations": {"from": "human"}})


# Messages and OpenAI


def part(url: str) -> Row:
    return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}


def test_openai_parts_bring_their_pictures() -> None:
    talk = [
        {"role": "developer", "content": "be brief"},
        *chat(
            [{"type": "text", "text": "is <image> "}, part("a.png"), part(data_url(png(3, 2)))],
            [{"type": "text", "text": "a <image>"}],
            [{"type": "input_image", "image_url": "b.png"}, {"type": "input_text", "text": "?"}],
            "b",
        ),
    ]
    made = build({"messages": talk})
    assert [m.role for m in made.messages[:2]] == ["system", "user"]
    assert made.messages[1].content == ("is <image> ", S(0), S(1))
    assert made.messages[2].content == ("a <image>",)
    assert made.messages[3].content == (S(2), "?")
    assert made.images[1].size() == (3, 2)
    assert [getattr(image, "path", None) for image in made.images[::2]] == [
        Path("a.png"), Path("b.png")
    ]  # fmt: skip


def test_messages_may_have_a_system_prompt_beside_them() -> None:
    asked = {"role": "user", "content": "q"}
    talk = [asked, {"role": "assistant", "content": "a"}]
    made = build({"system": "Be brief.", "messages": talk})
    assert [(m.role, m.text) for m in made.messages] == [
        ("system", "Be brief."), ("user", "q"), ("assistant", "a")
    ]  # fmt: skip
    own = [{"role": "system", "content": "Be long."}, *talk]
    assert build({"system": "Be brief.", "messages": own}).messages[0].text == "Be long."
    assert '"system" is a number' in reason({"system": 3, "messages": talk})


@pytest.mark.parametrize("source", [{"image": "a.png"}, {}])
def test_a_part_has_no_modality_of_its_own(source: Row) -> None:
    part = {"type": "image", "modality": "audio", **source}
    talk = [{"role": "user", "content": [part]}, {"role": "assistant", "content": "a"}]
    assert 'part 1 has a "modality"; it is one of the whole row' in reason({"messages": talk})


def test_parts_of_other_houses() -> None:
    qwen = chat([{"type": "image", "image": "a.png"}, {"type": "text", "text": "?"}], "a")
    assert first({"messages": qwen}) == (S(0), "?")
    mixed = chat([{"type": "image"}, {"type": "image", "path": "b.png"}, {"type": "image"}], "a")
    made = build({"messages": mixed, "images": ["a.png", "c.png"]})
    assert [str(getattr(image, "path", "")) for image in made.images] == ["a.png", "b.png", "c.png"]
    columns = {"type": "image", "image": {"bytes": png(5, 5), "path": None}, "text": None}
    assert build({"messages": chat([columns], "a")}).images[0].size() == (5, 5)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ([part("http://x/a.png")], "is a URL; download it and give the file's path"),
        ([part("HTTPS://x/a.png")], "is a URL; download it"),
        ([part("../a.png")], "lies outside the image root"),
        ([part("data:image/png,AAAA")], "is a data URL that is not base64"),
        ([part("data:image/png;base64,A")], "is a data URL whose base64 is broken"),
        ([part("data:image/png;base64,AA AA")], "is a data URL whose base64 is broken"),
        ([part("data:text/html;base64,AAAA")], "is a data URL of something that is no image"),
        ([part("data:")], "is a data URL that is not base64"),
        ([{"type": "image_url"}], 'part 1 has no "image_url"'),
        ([{"type": "image_url", "image_url": {"url": 3}}], "is a number; it must be a file name"),
        ([{"type": "image_url", "image_url": {}}], "part 1 has neither bytes nor a path"),
        ([{"type": "image", "uri": "x"}], 'has "uri"; name the files in the row\'s "images"'),
        ([{"type": "input_audio"}], 'has the type "input_audio"; known: "text", "image"'),
        ([{"type": "image"}], "1 placeholder for 0 images"),
    ],
)
def test_what_is_wrong_with_openai_parts_is_said(content: object, wanted: str) -> None:
    assert wanted in reason({"id": "a", "messages": chat(content, "x")})


def test_a_picture_in_an_answer_and_calls_of_tools_are_refused() -> None:
    row = {"messages": chat("q", [part("a.png")])}
    assert "turn 2 (assistant) holds an image" in reason(row)
    row = {"messages": [*chat("q"), {"role": "assistant", "content": None, "tool_calls": []}]}
    assert '"content" of turn 2 is null' in reason(row)


def test_a_data_url_is_measured_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    from oculi.data import images

    monkeypatch.setattr(images, "MAX_BYTES", 300)
    monkeypatch.setattr(images.base64, "b64decode", lambda *a, **k: pytest.fail("decoded"))
    row = {"messages": chat([part(data_url(bytes(400)))], "x")}
    assert "is longer than 0 MiB" in reason(row) or "is longer than" in reason(row)


# The Cauldron


def test_cauldron_pictures_stand_before_the_first_question() -> None:
    row: Row = {
        "images": [{"bytes": png(2, 3), "path": None}, png(4, 5)],
        "texts": [
            {"user": HOSTILE, "assistant": "a", "source": "x"},
            {"user": "more?", "assistant": HOSTILE},
        ],
    }
    made = build(row)
    assert made.messages[0].content == (S(0), S(1), "\n" + HOSTILE)
    assert [m.content for m in made.messages[1:]] == [("a",), ("more?",), (HOSTILE,)]
    assert [image.size() for image in made.images] == [(2, 3), (4, 5)]
    assert first({**row, "images": []}) == (HOSTILE,)
    brief = build({**row, "system": "Be brief."})
    assert brief.messages[0].text == "Be brief." and len(brief.messages) == 5
    assert 'turn 1 has no "assistant"' in reason({"texts": [{"user": "q"}]})
    assert "turn 1 is a string" in reason({"texts": ["q"]})


# Instructions


def test_alpaca_rows() -> None:
    row: Row = {"instruction": "Add.", "input": "1 1", "output": "2"}
    assert [m.text for m in build(row).messages] == ["Add.\n1 1", "2"]
    assert first({**row, "input": ""}) == ("Add.",) == first({**row, "input": None})
    row |= {"system": "be brief", "history": [["q", "a"], ["q2", "a2"]]}
    assert [m.text for m in build(row).messages] == [
        "be brief", "q", "a", "q2", "a2", "Add.\n1 1", "2"
    ]  # fmt: skip
    assert '"history", part 1: not a [question' in reason({**row, "history": [["q"]]})
    assert '"history" is a string' in reason({**row, "history": "q"})
    assert '"output" is a number' in reason({"instruction": "q", "output": 2})
    assert "turn 2 (assistant) is empty" in reason({"instruction": "q", "output": ""})


def test_questions_with_pictures() -> None:
    row: Row = {"question": "what?", "answer": "a", "image": "a.png"}
    assert first(row) == (S(0), "\nwhat?")
    assert first({**row, "question": "see <image>?"}) == ("see ", S(0), "?")
    assert first({**row, "image": None, "question": HOSTILE}) == (HOSTILE,)
    assert first({**row, "image": None, "images": [png(), png()]}) == (S(0), S(1), "\nwhat?")
    assert "1 placeholder for 2 images" in reason(
        {"question": "<image>?", "answer": "a", "images": ["a", "b"]}
    )


# Captions


def test_captions() -> None:
    made = build({"file_name": "a.png", "text": f"{HOSTILE}"})
    assert made.messages[0].content == (S(0),)
    assert made.messages[1].content == (HOSTILE,)
    assert "turn 2 (assistant) is empty" in reason({"image": "a.png", "text": " "})
    assert "a caption without a picture" in reason({"text": "x"}, "caption")
    assert "a caption without a picture" in reason({"images": [], "text": "x"})
    assert '"text" is a list' in reason({"image": "a.png", "text": ["x"]})


# Pictures


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        ({"bytes": None, "path": None}, '"image" has neither bytes nor a path'),
        ({"bytes": "text", "path": None}, '"image": "bytes" is a string'),
        ({"bytes": None, "path": 3}, '"image": "path" is a number'),
        ({"bytes": None, "path": "../x"}, 'image "../x" lies outside the image root'),
        ([None], '"image"[0] is null; it must be a file name'),
        ([["a.png"]], '"image"[0] is a list; it must be a file name'),
        (True, '"image" is a boolean; it must be a file name or a list of them'),
    ],
)
def test_what_can_be_no_picture_is_said(image: object, wanted: str) -> None:
    assert wanted in reason({"id": "a", "image": image, "conversations": said("<image>", "x")})


def test_bytes_are_called_by_their_path_or_their_place() -> None:
    row = {"images": [{"bytes": b"x", "path": "/home/me/a.png"}, b"y"], "prompt": "q"}
    made = build({**row, "response": "a"})
    messages = []
    for image in made.images:
        with pytest.raises(DataError) as caught:
            image.load()
        messages.append(str(caught.value))
    assert messages[0].startswith('image "a.png" is not a picture')
    assert messages[1].startswith('image "images[1]" is not a picture')


def test_json_cannot_smuggle_pictures_from_elsewhere() -> None:
    raw = json.dumps({"image": {"bytes": None, "path": "/etc/passwd"}, "text": "x"}).encode()
    with pytest.raises(DataError, match="lies outside the image root"):
        parse_row(raw, Path("d/rows"), 1, Path("d"))


# The documentation


def test_the_examples_of_the_docs_are_what_they_say() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    rows = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    assert [recognise(row).name for row in rows] == [
        *["vora", "sharegpt", "llava", "openai", "messages", "cauldron"],
        *["instruction", "instruction", "caption"],
    ]
    assert [len(build(row).images) for row in rows] == [1, 2, 1, 1, 1, 1, 0, 1, 1]
    forms = page.split("## Forms")[1].split("\n## ")[0]
    listed = re.findall(r"^\| `([a-z]+)` \|", forms, re.MULTILINE)
    assert listed == [form.name for form in FORMS]
    specs = [
        TypeAdapter(list[SourceSpec]).validate_python(yaml.safe_load(block)["data"])
        for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    ]
    weights = [[spec.weight for spec in mixture] for mixture in specs]
    assert weights == [[1, 0.5, 2], [1, 0.1], [1]]
