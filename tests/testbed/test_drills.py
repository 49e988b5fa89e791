"""Drills: every answer follows from the text, and different requests ask for the same field."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from oculi.testbed import drills
from oculi.testbed.questions import Question
from oculi.testbed.vocabulary import Dice

N = 400


def said(question: Question) -> str:
    """The answer in words, also of multiple choice."""
    if not question.options:
        return question.answer
    assert len(set(question.options)) == len(question.options)
    return question.options["ABCD".index(question.answer)]


def test_a_record_is_asked_for_in_many_ways() -> None:
    requests = defaultdict(set)
    for index in range(6 * N):
        text, asked = drills.record(5, Dice(index))
        answers: dict[str, str] = {}
        assert len(asked) == 5
        for question in asked:
            assert question.answer in text
            assert answers.setdefault(question.kind, question.answer) == question.answer
            requests[question.kind].add(question.text)
        assert set(answers) == {"name", "group", "keywords"}
    assert {"What is this?", "Name the emoji.", "Describe the image."} <= requests["name"]
    assert not requests["name"] & (requests["group"] | requests["keywords"])
    assert all(len(found) > 12 for found in requests.values())


def read(question: Question, table: dict[str, int]) -> str:
    """The right answer, from the words and numbers that the question names."""
    first = question.text.split("\n")[0]
    named = [key for key in table if re.search(rf"\b{key}\b", first)]
    numbers = re.findall(r"\d+", first)
    by = table.__getitem__
    rules = {
        "value": lambda: str(table[named[0]]),
        "key": lambda: next(key for key in table if str(table[key]) in numbers),
        "largest": lambda: max(table, key=by),
        "smallest": lambda: min(table, key=by),
        "larger": lambda: max(named, key=by),
        "smaller": lambda: min(named, key=by),
        "difference": lambda: str(abs(table[named[0]] - table[named[1]])),
        "total": lambda: str(len(table)),
    }
    return rules[question.kind]()


def test_words_are_listed_and_looked_up_truly() -> None:
    answers = defaultdict(list)
    for index in range(3 * N):
        text, asked = drills.words(4, Dice(index))
        listed = re.split(r"[,;]? |\n", text)
        for question in asked:
            first, answer = question.text.split("\n")[0], said(question)
            named = [word for word in listed if re.search(rf"\b{word}\b", first)]
            rules = {
                "member": lambda: "yes" if named else "no",  # noqa: B023
                "total": lambda: str(len(listed)),  # noqa: B023
                "first": lambda: listed[0],  # noqa: B023
                "last": lambda: listed[-1],  # noqa: B023
                "after": lambda: listed[listed.index(named[0]) + 1],  # noqa: B023
                "before": lambda: listed[listed.index(named[0]) - 1],  # noqa: B023
            }
            if question.kind != "member" and "one" in named:  # "Name the one after ..."
                continue
            assert answer == rules[question.kind](), (text, question)
            answers[question.kind].append(answer)
    assert 0.4 < answers["member"].count("yes") / len(answers["member"]) < 0.6


def test_a_table_is_read_truly() -> None:
    for index in range(N):
        text, asked = drills.table(8, Dice(index))
        table = {key: int(n) for key, n in re.findall(r"(\w+)(?: |: | = | has )(\d+)", text)}
        assert len(asked) == 8 and 2 <= len(table) <= 5
        assert all(said(question) == read(question, table) for question in asked)


def test_pairs_are_found_and_counted_truly() -> None:
    yes, members, missing = 0, 0, 0
    for index in range(N):
        text, asked = drills.pairs(7, Dice(index))
        rows = re.split(r", |\n|; ", text)
        assert asked and all(len(row.split()) == 2 for row in rows)
        for question in asked:
            first, answer = question.text.split("\n")[0], said(question)
            if question.kind == "count":
                word = next(w for row in rows for w in row.split() if re.search(rf"\b{w}\b", first))
                assert answer == str(sum(word in row.split() for row in rows))
            elif question.kind == "member":
                there = any(re.search(rf"\b{row}\b", first) for row in rows)
                assert answer == ("yes" if there else "no")
                yes, members = yes + there, members + 1
            elif question.kind in ("first", "last"):
                assert answer == rows[0 if question.kind == "first" else -1]
            else:
                about = next((row for row in rows if re.search(rf"\b{row}\b", first)), None)
                step = 1 if question.kind == "after" else -1
                assert answer == (rows[rows.index(about) + step] if about else drills.NONE)
                missing += about is None
    assert 0.45 < yes / members < 0.7 and missing > N / 10


def test_short_words_are_looked_up_truly_or_are_not_there() -> None:
    answers = defaultdict(list)
    for index in range(N):
        text, asked = drills.lookup(8, Dice(index))
        lettered = dict(re.findall(r"([A-F])[.)] (\w+)", text))
        listed = list(lettered.values()) or re.findall(r"\w+", text)[1:]
        assert 3 <= len(set(listed)) == len(listed) <= 6 and len(asked) == 8
        for question in asked:
            first, answer = question.text.split("\n")[0], said(question)
            answers[question.kind].append(answer)
            if question.kind == "option":
                assert answer == lettered[re.findall(r"\b[A-F]\b", first)[-1]]
            elif question.kind == "member":
                asked_for = [w for w in drills._SHORT if re.search(rf"\b{w}\b", first)]
                assert (answer == "yes") == any(w in listed for w in asked_for), (text, question)
            elif answer != drills.NONE and question.kind != "letter":
                spot = listed.index(answer) + (-1 if question.kind == "after" else 1)
                assert re.search(rf"\b{listed[spot]}\b", first), (text, question)
            elif question.kind == "letter" and answer != drills.NONE:
                assert re.search(rf"\b{lettered[answer]}\b", first), (text, question)
    assert set(answers) == {"member", "after", "before", "letter", "option"}
    assert 0.45 < answers["member"].count("yes") / len(answers["member"]) < 0.7
    for kind in ("after", "before", "letter"):
        assert 0.2 < answers[kind].count(drills.NONE) / len(answers[kind]) < 0.6


def test_letters_and_options_go_both_ways() -> None:
    kinds = set()
    for index in range(N):
        text, asked = drills.options(5, Dice(index))
        words = dict(re.findall(r"([A-D])[.)] (\w+)", text))
        assert 2 <= len(words) <= 4
        for question in asked:
            kinds.add(question.kind)
            word, letter = question.answer, question.answer
            if question.kind == "option":
                letter = re.findall(r"\b[A-D]\b", question.text)[-1]
            else:
                word = next(w for w in words.values() if re.search(rf"\b{w}\b", question.text))
            assert words[letter] == word
    assert kinds == {"letter", "option"}


def test_the_chosen_word_is_told_and_each_letter_is_as_often_right() -> None:
    letters = defaultdict(int)
    for index in range(N):
        text, asked = drills.chosen(5, Dice(index))
        assert len(asked) == 5
        for question in asked:
            letters[question.answer] += 1
            assert re.search(rf"\b{said(question)}\b", text)
            others = set(question.options) - {said(question)}
            assert not any(re.fullmatch(rf".*\b{other}\b[.]?", text) for other in others)
    assert set(letters) == set("ABCD") and max(letters.values()) < 1.3 * min(letters.values())


@pytest.mark.parametrize(
    "make",
    [drills.record, drills.table, drills.pairs, drills.options, drills.lookup, drills.chosen],
)
def test_the_text_is_told_once_and_drills_repeat(make) -> None:  # type: ignore[no-untyped-def]
    text, asked = make(4, Dice(7))
    talk = drills.told(text, asked, Dice(8))
    assert text in talk[0][1] and all(text not in prompt for _, prompt, _ in talk[1:])
    assert [(kind, answer) for kind, _, answer in talk] == [(q.kind, q.answer) for q in asked]
    assert make(4, Dice(7)) == (text, asked) != make(4, Dice(9))
