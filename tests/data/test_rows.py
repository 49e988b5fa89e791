"""What a row means: the rules for `<image>`, and that everything wrong with a row is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from oculi.data.rows import parse_row
from oculi.data.sample import ImageSlot, Sample
from oculi.errors import DataError

Row = dict[str, Any]


def llava(id: object = "a", image: object = "a.png", ask: str = "<image>\nwhat?") -> Row:
    turns = [{"from": "human", "value": ask}, {"from": "gpt", "value": "a cat"}]
    return {"id": id, "image": image, "conversations": turns}


def chat(content: object, images: object = ("a.png",), **extra: object) -> Row:
    turns = [{"role": "user", "content": content}, {"role": "assistant", "content": "a cat"}]
    return {"images": images, "messages": turns, **extra}


def parse(row: object, form: str = "llava") -> Sample:
    raw = row if isinstance(row, bytes) else json.dumps(row).encode()
    return parse_row(raw, Path("d/rows.jsonl"), 3, Path("d"), form)


def reason(row: object, form: str = "llava") -> str:
    with pytest.raises(DataError) as caught:
        parse(row, form)
    assert str(caught.value).startswith("d/rows.jsonl:3: ")
    return str(caught.value).removeprefix("d/rows.jsonl:3: ")


def test_llava_row() -> None:
    sample = parse(llava())
    assert (sample.id, sample.source) == ("a", "d/rows.jsonl:3")
    assert [m.role for m in sample.messages] == ["user", "assistant"]
    assert sample.messages[0].content == (ImageSlot(0), "\nwhat?")
    assert parse(llava(id=17)).id == "17"
    assert parse({k: v for k, v in llava().items() if k != "id"}).id == "rows.jsonl:3"


@pytest.mark.parametrize(
    ("ask", "content"),
    [
        ("<image>", (ImageSlot(0),)),
        ("what?\n<image>", ("what?\n", ImageSlot(0))),
        ("a\n\n<image>\n\n b ", ("a\n\n", ImageSlot(0), "\n\n b ")),
        ("left <image> right", ("left ", ImageSlot(0), " right")),
        ("<Image> <image > <image>", ("<Image> <image > ", ImageSlot(0))),
    ],
)
def test_text_around_a_placeholder_stays_as_it_is(ask: str, content: object) -> None:
    assert parse(llava(ask=ask)).messages[0].content == content
    assert parse(chat(ask), "messages").messages[0].content == content


def test_several_images_and_turns() -> None:
    row = llava(image=["a.png", "b.png"], ask="<image><image> differ?")
    assert parse(row).messages[0].content == (ImageSlot(0), ImageSlot(1), " differ?")
    row = llava(image=["a.png", "b.png"])
    row["conversations"] += [
        {"from": "user", "value": "and <image>?"},
        {"from": "assistant", "value": "a dog"},
    ]
    row["conversations"].insert(0, {"from": "system", "value": "be brief"})
    sample = parse(row)
    assert sample.messages[3].content == ("and ", ImageSlot(1), "?")
    assert [m.role for m in sample.messages[::2]] == ["system", "assistant", "assistant"]
    assert len(parse({**llava(image=None), "images": ["a.png"]}).images) == 1


def test_messages_rows_with_parts_and_with_placeholders() -> None:
    parts = [{"type": "image"}, {"type": "text", "text": "what?"}]
    assert parse(chat(parts), "messages").messages[0].content == (ImageSlot(0), "what?")
    parts = [{"type": "text", "text": "see <image>"}, {"type": "text", "text": "well?"}]
    wanted = ("see ", ImageSlot(0), "well?")
    assert parse(chat(parts), "messages").messages[0].content == wanted
    exported = [
        {"type": "image", "text": None, "index": 0},
        {"type": "text", "text": "what?", "index": None},
    ]
    assert parse(chat(exported), "messages").messages[0].content == (ImageSlot(0), "what?")
    assert parse(chat("hello", images=None), "messages").images == ()


def test_a_literal_placeholder_is_text_where_no_picture_can_be() -> None:
    row = llava()
    row["conversations"][1]["value"] = "write <image> here"
    row["conversations"].insert(0, {"from": "system", "value": "<image> marks a picture"})
    sample = parse(row)
    assert sample.messages[0].content == ("<image> marks a picture",)
    assert sample.messages[2].content == ("write <image> here",)
    for nothing in (None, ()):
        alone = parse(llava(image=nothing, ask="what is <image>?"))
        assert alone.messages[0].content == ("what is <image>?",)
    parts = [{"type": "image"}, {"type": "text", "text": "what is <image>?"}]
    marked = chat(parts)
    marked["messages"] += [
        {"role": "user", "content": "<image> again"},
        {"role": "assistant", "content": "<image>"},
    ]
    sample = parse(marked, "messages")
    assert sample.messages[0].content == (ImageSlot(0), "what is <image>?")
    assert sample.messages[2].content == ("<image> again",)


def turns(*pairs: tuple[object, object]) -> Row:
    return {"id": "a", "conversations": [{"from": who, "value": what} for who, what in pairs]}


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        (llava(ask="what?"), 'row "a": 0 placeholders for 1 image'),
        (llava(ask="<image> <image>"), 'row "a": 2 placeholders for 1 image'),
        (turns(("human", "hi"), ("gpt", " ")), 'row "a": turn 2 (assistant) is empty'),
        (turns(("human", ""), ("gpt", "x")), 'row "a": turn 1 (user) is empty'),
        (turns(("human", "a"), ("human", "b")), "turn 2 is user where assistant must come"),
        (turns(("gpt", "a"), ("human", "b")), "turn 1 is assistant where user must come"),
        (turns(("human", "a")), "the last turn is user; training needs"),
        (turns(("humann", "a")), 'turn 1 is by "humann"; known: system, human, user, gpt,'),
        (turns(("humann", "a")), '; did you mean "human"?'),
        (turns(("human", None)), '"value" of turn 1 is null; it must be a string'),
        (turns((1, "a")), '"from" of turn 1 is a number; it must be a string'),
        ({"id": "a", "conversations": []}, '"conversations" is empty'),
        ({"id": "a", "conversations": "hi"}, '"conversations" is a string; it must be a list'),
        ({"id": "a", "conversations": [3]}, "turn 1 is a number; it must be an object"),
        ({"id": "a", "conversations": [{"from": "human"}]}, 'turn 1 has no "value"'),
        (
            {"id": "a", "text": "b"},
            'unknown format: the keys are "id", "text"; known: vora, sharegpt, ',
        ),
        ({}, "unknown format: the keys are none"),
        (chat("hi", id="a"), "this is a row of the format messages, not llava"),
        (llava(id=True), '"id" is a boolean; it must be a string or a whole number'),
        (llava(id=[1]), '"id" is a list'),
        (llava(image=3), '"image" is a number; it must be a file name or a list of them'),
        (llava(image=["a.png", {}]), '"image"[1] has neither bytes nor a path'),
        ({**llava(), "images": ["b.png"]}, 'has both "image" and "images"'),
        (llava(image="../a.png"), 'image "../a.png" lies outside the image root'),
        (llava(image="http://x/a.png"), "is a URL; download it"),
        (llava(image=""), "image data has an empty name"),
        (llava(image="\0"), "has a NUL character in its name"),
        (llava(ask="<image> \ud800"), '"value" of turn 1 holds half of a surrogate pair'),
        (llava(id="\udfff"), '"id" holds half of a surrogate pair'),
        ([1], "the row is a list; it must be an object"),
        (b"3", "the row is a number"),
        (b'{"id": "a", "id": "b"}', 'the key "id" is there twice in one object'),
        (b'{"id": "a", "score": NaN}', "NaN is not JSON"),
        (b'{"id": "a", "score": -Infinity}', "-Infinity is not JSON"),
        (b'{"id": "\xff"}', "not valid UTF-8 at byte 9 of the row"),
        (b'{"id":\n "a",}', "not valid JSON: "),
        (b'{"id":\n tru}', "at line 4, column 2"),
        (b'{"id": ' + b"9" * 5000 + b"}", "not valid JSON: a number is too long"),
        (b'{"a": ' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
    ],
)
def test_what_is_wrong_with_a_row_is_said(row: object, wanted: str) -> None:
    assert wanted in reason(row)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (3, '"content" of turn 1 is a number; it must be a string'),
        ([], "0 placeholders for 1 image"),
        (["hi"], '"content" of turn 1, part 1 is a string; it must be an object'),
        ([{"type": "video"}], 'part 1 has the type "video"; known: "text", "image"'),
        ([{"type": "text"}], 'part 1: "text" is null; it must be a string'),
        ([{"type": "image", "uri": "x"}], 'has "uri"; name the files in the row\'s "images"'),
        ([{"type": "image", "index": 1}], 'asks for image "1"; image 0 comes next'),
        ([{"type": "image"}, {"type": "image"}], "2 placeholders for 1 image"),
    ],
)
def test_what_is_wrong_with_parts_is_said(content: object, wanted: str) -> None:
    assert wanted in reason(chat(content), "messages")


def test_an_image_part_in_an_answer_is_refused() -> None:
    row = chat("hi")
    row["messages"][1]["content"] = [{"type": "image"}, {"type": "text", "text": "x"}]
    assert "turn 2 (assistant) holds an image" in reason(row, "messages")
