"""The forms a row may have, in one table: how each is recognised, and how it becomes messages.

A form says nothing about files: the same row may lie in JSON, Parquet or an archive. Forms of one
family are variants that occur side by side in one file and cannot be confused there; rows of
another family are a mistake.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from oculi.data.container import Row
from oculi.data.content import (
    PLACEHOLDER,
    Turn,
    at_marks,
    field,
    in_front,
    kind,
    marked,
    role,
    row_pictures,
    text,
    turn_list,
    wrong,
)
from oculi.data.parts import chat_messages, has_sources
from oculi.data.sample import ImageSource, Message, RowError
from oculi.errors import DataError, nearest, shown

Built = tuple[tuple[Message, ...], Sequence[ImageSource]]

# Question, what is added to it where it is there, answer. All of them may have pictures.
_PAIRS: Final = (
    ("instruction", "input", "output"),
    ("instruction", "context", "response"),
    ("prompt", "", "response"),
    ("prompt", "", "completion"),
    ("question", "", "answer"),
    ("query", "", "response"),
)
_CAPTIONS: Final = ("text", "caption")


@dataclass(frozen=True, slots=True)
class Form:
    """A form of rows.

    Attributes:
        name: what reports and `--format` call it.
        family: of FAMILIES; forms of one family may stand in one file.
        tells: whether a row is of this form; the first form in the table that says so wins.
        fits: whether a row can be read as this form when it is asked for by name.
        build: makes messages and pictures from a row without nulls; raises RowError or ImageError.
    """

    name: str
    family: str
    tells: Callable[[Row], bool]
    fits: Callable[[Row], bool]
    build: Callable[[Row, Path], Built]


def recognise(row: Row) -> Form:
    """The form that a row's keys tell; raises RowError with the keys when they tell none.

    Keys whose value is null do not count: tables have every column in every row.
    """
    given = without_nulls(row)
    for form in FORMS:
        if form.tells(given):
            return form
    names = [shown(key) + ("" if key in given else " (null)") for key in list(row)[:12]]
    raise RowError(f"unknown format: the keys are {', '.join(names) or 'none'}; {KNOWN}")


def without_nulls(row: Row) -> Row:
    return {key: value for key, value in row.items() if value is not None}


def find_form(name: str) -> Form:
    """The form of this name; raises DataError with the nearest one."""
    for form in FORMS:
        if form.name == name:
            return form
    names = [form.name for form in FORMS]
    known = ", ".join(names)
    raise DataError(f"unknown format {shown(name)}; known: {known}{nearest(name, names)}")


def _has(*keys: str) -> Callable[[Row], bool]:
    return lambda row: all(key in row for key in keys)


# Conversations: from and value


def _turns(row: Row) -> list[Turn]:
    value = row["conversations"]
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], list):
        value = value[0]  # the released VoRA reader takes such a list apart too
    turns: list[Turn] = []
    for number, turn in enumerate(turn_list(value, "conversations"), start=1):
        for key in ("from", "value"):
            field(turn, key, number)
        by = role(turn, "from", number)
        turns.append((by, text(turn["value"], f'"value" of turn {number}')))
    return _with_system(row, turns)


def _with_system(row: Row, turns: list[Turn]) -> list[Turn]:
    """Put a system prompt that stands beside the turns in front of them."""
    prompt = row.get("system", "")
    if prompt == "" or turns[0][0] == "system":
        return turns
    return [("system", text(prompt, '"system"')), *turns]


def _conversations(row: Row, root: Path) -> Built:
    images = row_pictures(row, root)
    return at_marks(_turns(row), images), images


def _vora(row: Row, root: Path) -> Built:
    """As the released reader places frames: at `<image>`, or all at `<video>`, or in front."""
    images, turns = row_pictures(row, root), _turns(row)
    if marked(turns):
        return at_marks(turns, images), images
    if images and sum(said.count("<video>") for by, said in turns if by == "user") == 1:
        marks = PLACEHOLDER * len(images)
        turns = [
            (by, said.replace("<video>", marks) if by == "user" else said) for by, said in turns
        ]
        return at_marks(turns, images), images
    return in_front(turns, images, between=""), images


# Messages: role and content


def _messages(row: Row, root: Path) -> Built:
    messages, images = chat_messages(row["messages"], row_pictures(row, root), root)
    prompt = text(row.get("system", ""), '"system"')
    if prompt and messages[0].role != "system":
        messages = (Message("system", (prompt,)), *messages)
    return messages, images


def _by_url(row: Row) -> bool:
    return "messages" in row and has_sources(row["messages"])


# The Cauldron: user and assistant in one object


def _cauldron(row: Row, root: Path) -> Built:
    images = row_pictures(row, root)
    turns: list[Turn] = []
    for number, turn in enumerate(turn_list(row["texts"], "texts"), start=1):
        for key in ("user", "assistant"):
            said = text(field(turn, key, number), f'"{key}" of turn {number}')
            turns.append(("user" if key == "user" else "assistant", said))
    return in_front(_with_system(row, turns), images), images


# A question and its answer


def _pair(row: Row) -> tuple[str, str, str] | None:
    return next((pair for pair in _PAIRS if pair[0] in row and pair[2] in row), None)


def _asks(row: Row) -> bool:
    return _pair(row) is not None


def _instruction(row: Row, root: Path) -> Built:
    images = row_pictures(row, root)
    pair = _pair(row)
    assert pair is not None
    ask, more, answer = pair
    question = text(row[ask], f'"{ask}"')
    if more in row and text(row[more], f'"{more}"'):
        question = f"{question}\n{row[more]}" if question else row[more]
    turns = [*_history(row), ("user", question), ("assistant", text(row[answer], f'"{answer}"'))]
    turns = _with_system(row, turns)
    return (at_marks(turns, images) if marked(turns) else in_front(turns, images)), images


def _history(row: Row) -> list[Turn]:
    """Earlier turns as Alpaca rows give them: pairs of question and answer."""
    value = row.get("history", [])
    if not isinstance(value, list):
        wrong(f'"history" is {kind(value)}; it must be a list of [question, answer]')
    turns: list[Turn] = []
    for number, pair in enumerate(value, start=1):
        if not isinstance(pair, list) or len(pair) != 2:
            wrong(f'"history", part {number}: not a [question, answer]')
        turns.append(("user", text(pair[0], f'"history", part {number}')))
        turns.append(("assistant", text(pair[1], f'"history", part {number}')))
    return turns


# A picture and what it shows


def _caption_key(row: Row) -> str | None:
    return next((key for key in _CAPTIONS if key in row), None)


def _shows(row: Row) -> bool:
    keys = ("image", "images", "frames", "file_name")
    return _caption_key(row) is not None and any(key in row for key in keys)


def _caption(row: Row, root: Path) -> Built:
    images = row_pictures(row, root)
    if not images:
        wrong("a caption without a picture")
    key = _caption_key(row)
    assert key is not None
    turns: list[Turn] = [("user", ""), ("assistant", text(row[key], f'"{key}"'))]
    return in_front(turns, images), images


# What the keys of each family are, for people.
FAMILIES: Final = {
    "conversations": '"conversations"',
    "messages": '"messages"',
    "texts": '"texts"',
    "instruction": '"instruction" and "output", "prompt" and "response", "question" and "answer"',
    "caption": '"text" and a picture',
}
# The more a form's keys say, the earlier it stands.
FORMS: Final = (
    Form(
        "vora", "conversations",
        _has("frames", "conversations"), _has("conversations"), _vora,
    ),
    Form(
        "sharegpt", "conversations",
        _has("images", "conversations"), _has("conversations"), _conversations,
    ),
    Form(
        "llava", "conversations",
        _has("conversations"), _has("conversations"), _conversations,
    ),
    Form("openai", "messages", _by_url, _has("messages"), _messages),
    Form("messages", "messages", _has("messages"), _has("messages"), _messages),
    Form("cauldron", "texts", _has("texts"), _has("texts"), _cauldron),
    Form("instruction", "instruction", _asks, _asks, _instruction),
    Form("caption", "caption", _shows, lambda row: _caption_key(row) is not None, _caption),
)  # fmt: skip


def _known() -> str:
    names = {
        family: ", ".join(form.name for form in FORMS if form.family == family)
        for family in FAMILIES
    }
    return "known: " + "; ".join(f"{names[family]} ({keys})" for family, keys in FAMILIES.items())


KNOWN: Final = _known()
# What a container must read of a row: every key that some form or the data set's own rules use.
KEYS: Final = frozenset(
    itertools.chain(
        ("id", "stage", "stages", "system", "history", "image", "images", "frames", "file_name"),
        ("modality",),
        ("conversations", "messages", "texts"),
        _CAPTIONS,
        *_PAIRS,
    )
) - {""}
