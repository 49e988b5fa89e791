"""One turn alone: nothing of the history but the pictures, and a draw that depends on its place."""

from collections import Counter
from dataclasses import replace

import pytest

from helpers import Drawn, mixture, sample
from oculi.data.sample import ImageSlot, Message, Sample
from oculi.data.source import PlayroomRows
from oculi.data.turns import TurnDraws, plain, separable, side_by_side, single_turn, turns
from oculi.recipe import PlayroomSource

TALK = sample(
    "talk",
    ("#", "\nWhat is it?"), "a cup",
    "Which colour?", "red",
    ("And ", "#", "?"), "blue",
    images=(Drawn(8, 8, 1), Drawn(4, 4, 2)),
)  # fmt: skip


def test_the_first_turn_is_as_it_was_and_loses_later_pictures() -> None:
    alone = single_turn(TALK, 0)
    assert alone.messages == TALK.messages[:2] and alone.images == TALK.images[:1]
    assert (alone.id, alone.source) == (TALK.id, TALK.source)


def test_a_later_turn_keeps_the_pictures_and_nothing_that_was_said() -> None:
    colour, other = single_turn(TALK, 1), single_turn(TALK, 2)
    assert colour.messages[0].content == (ImageSlot(0), "\nWhich colour?")
    assert colour.messages[1].text == "red" and colour.images == TALK.images[:1]
    assert other.messages[0].content == (ImageSlot(0), "\nAnd ", ImageSlot(1), "?")
    assert other.images == TALK.images
    assert all(len(alone.messages) == 2 for alone in (colour, other))


def test_a_turn_that_begins_with_its_picture_is_not_moved_down() -> None:
    talk = sample("two", "Hi", "Hello", ("#", "what?"), "a cup", images=(Drawn(4, 4),))
    assert single_turn(talk, 1).messages == talk.messages[2:]
    pair = sample("three", ("#",), "a", ("#", "?"), "b", images=(Drawn(4, 4), Drawn(8, 4)))
    assert single_turn(pair, 1).messages[0].content == (ImageSlot(0), ImageSlot(1), "?")


def test_a_system_turn_stays_in_front() -> None:
    system = Message("system", ("Be brief.",))
    talk = Sample("s", (system, *TALK.messages), TALK.images)
    assert turns(talk) == 3
    assert single_turn(talk, 2).messages[0] == system
    assert single_turn(talk, 2).messages[2].text == "blue"


@pytest.mark.parametrize("talk", [s for s in mixture() if turns(s) > 1], ids=lambda s: s.id)
def test_every_turn_alone_is_a_valid_sample(talk: Sample) -> None:
    for number in range(turns(talk)):
        single_turn(talk, number).validate(for_training=True)
    with pytest.raises(ValueError, match="answered turns, none is"):
        single_turn(talk, turns(talk))


def test_draws_keep_their_share_and_take_every_turn_alike() -> None:
    draw = TurnDraws(seed=5, share=0.6)
    answers = Counter(draw(n, TALK).messages[-1].text for n in range(6000) if
                      len(draw(n, TALK).messages) == 2)  # fmt: skip
    assert abs(answers.total() / 6000 - 0.6) < 0.025
    assert set(answers) == {"a cup", "red", "blue"}
    assert max(answers.values()) - min(answers.values()) < 150


def test_draws_are_a_function_of_seed_and_position() -> None:
    one, other = TurnDraws(1, 0.5), TurnDraws(2, 0.5)
    drawn = [len(one(n, TALK).messages) for n in range(64)]
    assert drawn[::-1] == [len(one(n, TALK).messages) for n in reversed(range(64))]
    assert drawn != [len(other(n, TALK).messages) for n in range(64)]


def test_no_share_and_single_turns_change_nothing() -> None:
    short = mixture()[0]
    assert all(TurnDraws(0, 0.0)(n, TALK) is TALK for n in range(100))
    assert all(TurnDraws(0, 1.0)(n, short) is short for n in range(100))
    assert all(len(TurnDraws(0, 1.0)(n, TALK).messages) == 2 for n in range(100))


def test_a_conversation_without_pictures_stays_whole() -> None:
    """Its scene is told in words, mostly in the first turn."""
    told = sample("told", "A cup is red. What is red?", "a cup", "Which colour has it?", "red")
    draws = TurnDraws(0, 1.0, 1.0)
    assert all(draws(position, told) == told for position in range(20))


def test_a_sample_that_says_so_stays_whole() -> None:
    whole = replace(TALK, whole=True)
    assert all(TurnDraws(0, 1.0, 1.0)(position, whole) is whole for position in range(20))
    drawn = PlayroomRows(PlayroomSource(level=1, samples=1, questions=5))[0]
    assert turns(drawn) > 2 and TurnDraws(0, 1.0)(0, drawn) is drawn


FIRST = sample(
    "first", ("#", "\nWhat is it?"), "a cup", "Which colour?", "red", images=(Drawn(8, 8, 1),)
)


def test_turns_stand_side_by_side_where_all_pictures_come_first() -> None:
    assert separable(FIRST) and not separable(TALK)  # which shows one later
    assert not separable(sample("text", "Hi", "Hello"))
    assert not separable(sample("last", ("What is ", "#"), "a cup", images=(Drawn(4, 4),)))
    assert separable(replace(FIRST, messages=(Message("system", ("Be brief.",)), *FIRST.messages)))
    alone = side_by_side(FIRST)
    assert alone == [single_turn(FIRST, 0), single_turn(FIRST, 1)]


def test_separate_draws_keep_their_share_beside_single_ones() -> None:
    draws = TurnDraws(5, 0.3, separate=0.5)
    drawn = [draws(n, FIRST) for n in range(6000)]
    separate = sum(s.separate for s in drawn) / 6000
    single = sum(len(s.messages) == 2 for s in drawn) / 6000
    assert abs(separate - 0.5) < 0.025 and abs(single - 0.3) < 0.025
    assert all(s.messages == FIRST.messages for s in drawn if s.separate)
    assert draws(17, FIRST) == TurnDraws(5, 0.3, separate=0.5)(17, FIRST)


def test_where_turns_cannot_stand_side_by_side_one_is_learnt_alone() -> None:
    draws = TurnDraws(5, 0.0, separate=1.0)
    assert all(len(draws(n, TALK).messages) == 2 for n in range(50))
    whole = replace(TALK, whole=True)
    assert all(draws(n, whole) is whole for n in range(50))
    told = sample("told", "A cup is red. What is red?", "a cup", "Which colour has it?", "red")
    assert all(draws(n, told) is told for n in range(50))
    drawn = PlayroomRows(PlayroomSource(level=1, samples=1, questions=5))[0]
    assert draws(0, drawn) == replace(drawn, separate=True)


def test_plain_turns_side_by_side_lose_their_questions_one_by_one() -> None:
    draws = TurnDraws(5, 0.0, 0.25, separate=1.0)
    turned = [side_by_side(draws(n, FIRST)) for n in range(3000)]
    lost = [[len(turn.messages[0].content) == 1 for turn in both] for both in turned]
    for number in (0, 1):
        assert abs(sum(both[number] for both in lost) / 3000 - 0.25) < 0.03
    assert {tuple(both) for both in lost} == {(a, b) for a in (True, False) for b in (True, False)}
    for both in turned:
        for turn in both:
            turn.validate(for_training=True)
            assert turn.messages[0].content[0] == ImageSlot(0)
    whole = replace(FIRST, whole=True)
    assert draws(3, whole) == replace(whole, separate=True)


def test_a_plain_turn_is_the_pictures_and_the_answer() -> None:
    alone = plain(single_turn(TALK, 2))
    assert alone.messages[0].content == (ImageSlot(0), ImageSlot(1))
    assert alone.messages[1].text == "blue" and alone.images == TALK.images
    alone.validate(for_training=True)
    system = Message("system", ("Be brief.",))
    alone = plain(single_turn(Sample("s", (system, *TALK.messages), TALK.images), 1))
    assert alone.messages[0] == system and alone.messages[1].content == (ImageSlot(0),)
    text = sample("text", "Hi", "Hello")
    assert plain(text) is text


def test_plain_draws_take_their_share_of_single_turns_alone() -> None:
    """And leave the choice of single turns as it is without them."""
    bare, mixed = TurnDraws(5, 0.6), TurnDraws(5, 0.6, 0.25)
    before, after = ([draw(n, TALK) for n in range(6000)] for draw in (bare, mixed))
    assert [len(s.messages) for s in before] == [len(s.messages) for s in after]
    assert [s.messages[-1] for s in before] == [s.messages[-1] for s in after]
    single = [s for s in after if len(s.messages) == 2]
    asked = [any(isinstance(part, str) for part in s.messages[0].content) for s in single]
    assert abs(1 - sum(asked) / len(asked) - 0.25) < 0.03
    one = sample("caption", ("#", "Describe."), "a cup", images=(Drawn(4, 4),))
    assert all(TurnDraws(0, share, 1.0)(0, one) is one for share in (0.0, 1.0))
