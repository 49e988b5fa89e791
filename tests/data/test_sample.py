"""The rules a conversation must keep, and that each broken one is named."""

from __future__ import annotations

import pickle

import pytest

from oculi.data.sample import ImageRef, ImageSlot, ImageSource, Message, Role, RowError, Sample
from oculi.errors import DataError, OculiError, nearest, shown

PICTURE = ImageRef(data=b"x")


def sample(*turns: tuple[Role, tuple[str | ImageSlot, ...]], images: int = 0) -> Sample:
    messages = tuple(Message(role, content) for role, content in turns)
    return Sample("s1", messages, (PICTURE,) * images, "data.jsonl:7")


ASK: tuple[Role, tuple[str | ImageSlot, ...]] = ("user", (ImageSlot(0), "what?"))
ANSWER: tuple[Role, tuple[str | ImageSlot, ...]] = ("assistant", ("a cat",))


def test_good_samples_pass() -> None:
    sample(ASK, ANSWER, images=1).validate(for_training=True)
    sample(("system", ("be brief",)), ASK, ANSWER, images=1).validate(for_training=True)
    sample(("user", ("hi",)), ANSWER, ("user", ("more",)), ANSWER).validate(for_training=True)
    sample(("user", (ImageSlot(0), ImageSlot(1))), ANSWER, images=2).validate(for_training=True)
    sample(ASK, images=1).validate()


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (sample(ASK, ANSWER), "1 placeholder for 0 images"),
        (sample(("user", ("hi",)), ANSWER, images=1), "0 placeholders for 1 image"),
        (sample(ASK, ANSWER, images=2), "1 placeholder for 2 images"),
        (
            sample(("user", (ImageSlot(1), ImageSlot(0))), ANSWER, images=2),
            "image slots are [1, 0]; they must count up from 0 in reading order",
        ),
        (
            sample(("user", ("hi",)), ("assistant", (ImageSlot(0), "x")), images=1),
            "turn 2 (assistant) holds an image; only user turns may",
        ),
        (
            sample(("system", (ImageSlot(0),)), ("user", ("a",)), ANSWER, images=1),
            "turn 1 (system) holds an image; only user turns may",
        ),
        (sample(), "no user turn"),
        (sample(("system", ("x",))), "no user turn"),
        (sample(ANSWER, ("user", ("x",))), "turn 1 is assistant where user must come"),
        (sample(("user", ("x",)), ("user", ("x",))), "turn 2 is user where assistant must come"),
        (
            sample(("user", ("x",)), ANSWER, ("system", ("x",))),
            "turn 3 is system where user must come",
        ),
        (sample(("user", ("x",)), ("assistant", (" \n",))), "turn 2 (assistant) is empty"),
        (sample(("user", ("x",)), ("assistant", ())), "turn 2 (assistant) is empty"),
        (sample(("user", (" ",)), ANSWER), "turn 1 (user) is empty"),
    ],
)
def test_each_broken_rule_is_named(bad: Sample, reason: str) -> None:
    with pytest.raises(DataError) as caught:
        bad.validate()
    assert str(caught.value) == f'data.jsonl:7: row "s1": {reason}'


def test_only_training_needs_a_last_answer() -> None:
    with pytest.raises(RowError, match="the last turn is user; training needs an assistant"):
        sample(ASK, images=1).validate(for_training=True)


def test_errors_survive_pickling_and_carry_a_code() -> None:
    error = RowError("reason", "id", "f:1")
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.reason, again.id, again.source) == (
        'f:1: row "id": reason',
        "reason",
        "id",
        "f:1",
    )
    assert isinstance(error, OculiError) and error.code == "data"


def test_references_are_image_sources() -> None:
    assert isinstance(PICTURE, ImageSource)


def test_nearest_and_shown() -> None:
    assert nearest("imgae", ["image", "messages"]) == '; did you mean "image"?'
    assert nearest("Image", ["image"]) == '; did you mean "image"?'
    assert nearest("zzz", ["image"]) == ""
    assert shown("a\x1b[2Jb\u202e") == '"a\\x1b[2Jb\\u202e"'
    assert shown("\ud800") == '"\\ud800"'
    assert shown("x" * 99, limit=10) == '"xxxxxxx..."'
