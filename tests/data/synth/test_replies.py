"""Replies of models: what fits is taken, and everything else has a reason and raises nothing else."""

import json
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datafiles import EXAMPLES, HOSTILE
from endpoint import caption, pairs
from oculi.data.synth.instructions import read_instructions
from oculi.data.synth.replies import BadReply, read_reply

CAPTION = read_instructions().strategy("brief-caption")
TWO = read_instructions().strategy("brief-vqa")
MANY = read_instructions().strategy("detailed-vqa")


def test_a_caption_answers_its_question() -> None:
    assert read_reply(caption(7), CAPTION, "What?") == [("What?", "A picture 7 pixels wide.")]
    assert read_reply('{"Caption": "  a \\n"}', CAPTION, "") == [("", "a")]
    assert read_reply(json.dumps({"Caption": HOSTILE}), CAPTION, "x") == [("x", HOSTILE)]


def test_pairs_stay_in_order() -> None:
    found = read_reply(pairs(("Which colour?", "red"), ("How many?", "two")), TWO, "")
    assert found == [("Which colour?", "red"), ("How many?", "two")]


@pytest.mark.parametrize("fence", ["```json\n{}\n```", "```\n{}\n```\n", " \n```JSON  \n{}\n  ```"])
def test_a_code_fence_is_taken_off(fence: str) -> None:
    said = fence.replace("{}", caption(3))
    assert read_reply(said, CAPTION, "q") == read_reply(caption(3), CAPTION, "q")


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("A cat on a mat.", "not valid JSON"),
        (f"Sure! {caption(1)}", "not valid JSON"),
        (f"```json\n{caption(1)}\n``` Is that all right?", "not valid JSON"),
        (caption(1)[:-1], "not valid JSON"),
        ('{"Caption": NaN}', "string"),
        ('{"Caption": ""}', "at least 1 character"),
        ('{"Caption": "   "}', "at least 1 character"),
        ('{"Caption": 3}', "string"),
        ('{"Caption": ["a"]}', "string"),
        ('{"caption": "a"}', "Caption"),
        ('{"Caption": "a", "Mood": "calm"}', "Mood"),
        ('["Caption"]', ""),
        ("null", ""),
        ("[" * 100_000, "not valid JSON: nested too deeply"),
        ("9" * 5000, ""),
        (json.dumps({"Caption": "a" * 401}), "401 characters, more than 400"),
        ('{"Caption": "\\ud800"}', ""),
    ],
)
def test_what_does_not_fit_says_why(reply: str, reason: str) -> None:
    with pytest.raises(BadReply) as caught:
        read_reply(reply, CAPTION, "q")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (pairs(("a?", "b")), "1 pairs where 2"),
        (pairs(("a?", "b"), ("c?", "d"), ("e?", "f")), "3 pairs where 2"),
        (pairs(("Colour?", "red"), ("colour?", "blue")), "the same question twice"),
        (pairs(("a?", "b"), ("c?", "")), "Pairs.1.Answer"),
        ('[{"Query": "a", "Answer": "b"}, {"Query": "c", "Answer": "d"}]', "dict"),
        ('{"Pairs": [{"question": "a", "Answer": "b"}]}', "Query"),
    ],
)
def test_pairs_that_do_not_fit_say_why(reply: str, reason: str) -> None:
    with pytest.raises(BadReply, match=reason):
        read_reply(reply, TWO, "")


def test_a_range_of_pairs() -> None:
    some = [(f"{i}?", "x") for i in range(12)]
    assert read_reply(pairs(*some), MANY, "") == some
    for wrong in (some[:3], [*some, ("more?", "x")]):
        with pytest.raises(BadReply, match="pairs where 4 to 12 were asked for"):
            read_reply(pairs(*wrong), MANY, "")


values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text() | st.integers(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["Caption", "Pairs", "Query", "Answer", "x"]), inner, max_size=3
        )
    ),
    max_leaves=8,
)


@settings(max_examples=EXAMPLES, deadline=None)
@given(reply=st.text() | values.map(json.dumps))
def test_nothing_but_a_reason_comes_of_any_reply(reply: str) -> None:
    for asked in (CAPTION, TWO, MANY):
        found = [("q", "nothing fits")]
        with suppress(BadReply):
            found = read_reply(reply, asked, "q")
        assert found and all(answer.strip() for _, answer in found)
