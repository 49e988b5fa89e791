"""The pieces that row forms are made of: checked texts, pictures, and where pictures stand.

`<image>` marks a picture only where a picture can be: in a user's text of a row that has images.
Everywhere else it is text, and stays text.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

from oculi.data.container import Row
from oculi.data.images import picture
from oculi.data.sample import ImageSlot, ImageSource, Message, Role, RowError
from oculi.errors import nearest, shown

PLACEHOLDER: Final = "<image>"
ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "developer": "system",
}
Turn = tuple[Role, str]

_IMAGE_KEYS = ("image", "images", "frames")
_FILE_KEY = "file_name"  # what imagefolder's metadata calls it; beside another key it is a remark


def wrong(reason: str, id: str = "") -> NoReturn:
    raise RowError(reason, id)


def kind(value: object) -> str:
    """What a JSON or column value is, in words."""
    if value is None:
        return "null"
    for types, name in (
        (str, "a string"),
        (bytes, "bytes"),
        (bool, "a boolean"),
        (int | float, "a number"),
        (list, "a list"),
    ):
        if isinstance(value, types):
            return name
    return "an object"


def first_twice(names: Iterable[str]) -> str | None:
    """The first name that occurs again, if any does."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def text(value: object, where: str) -> str:
    if not isinstance(value, str):
        wrong(f"{where} is {kind(value)}; it must be a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        wrong(f"{where} holds half of a surrogate pair (\\ud800 to \\udfff)")
    return value


def row_pictures(row: Row, root: Path) -> list[ImageSource]:
    """The pictures that the row's own keys give, in their order; none is opened.

    Raises RowError or ImageError for what can be no picture: a wrong type, a URL, a path that
    leaves `root`.
    """
    given = [key for key in _IMAGE_KEYS if row.get(key) is not None]
    if len(given) > 1:
        wrong(f'has both "{given[0]}" and "{given[1]}"; give one of them')
    if not given:
        name = row.get(_FILE_KEY)
        return [] if name is None else [picture(text(name, f'"{_FILE_KEY}"'), root)]
    key = given[0]
    value = row[key]
    if isinstance(value, list):
        return [one_picture(each, f'"{key}"[{i}]', root) for i, each in enumerate(value)]
    if not _shows(value):
        wrong(f'"{key}" is {kind(value)}; it must be a file name or a list of them')
    return [one_picture(value, f'"{key}"', root)]


def one_picture(value: object, where: str, root: Path) -> ImageSource:
    """A picture from a file name, a data URL, its bytes, or datasets' {bytes, path}."""
    if isinstance(value, dict):
        data, name = value.get("bytes"), value.get("path")
        if data is None and name is None:
            wrong(f"{where} has neither bytes nor a path")
        if data is None:
            return picture(text(name, f'{where}: "path"'), root)
        if not isinstance(data, bytes):
            wrong(f'{where}: "bytes" is {kind(data)}; it must be the file\'s bytes')
        return picture(data, root, Path(name).name if isinstance(name, str) else _bare(where))
    if isinstance(value, str):
        return picture(text(value, where), root)
    if not _shows(value):
        wrong(f"{where} is {kind(value)}; it must be a file name")
    assert isinstance(value, bytes | ImageSource)
    return picture(value, root, _bare(where))


def _shows(value: object) -> bool:
    return isinstance(value, str | bytes | dict | ImageSource)


def _bare(where: str) -> str:
    return where.replace('"', "")


def turn_list(value: object, key: str) -> list[dict[str, Any]]:
    """A row's turns as objects; the columns of turns that datasets makes of them are turned back."""
    if isinstance(value, dict) and value and all(isinstance(v, list) for v in value.values()):
        columns = list(value.values())
        if len({len(column) for column in columns}) > 1:
            wrong(f'the lists in "{key}" differ in length')
        value = [dict(zip(value, turn, strict=True)) for turn in zip(*columns, strict=True)]
    if not isinstance(value, list):
        wrong(f'"{key}" is {kind(value)}; it must be a list of turns')
    if not value:
        wrong(f'"{key}" is empty')
    for number, turn in enumerate(value, start=1):
        if not isinstance(turn, dict):
            wrong(f"turn {number} is {kind(turn)}; it must be an object")
    return value


def role(turn: dict[str, Any], key: str, number: int) -> Role:
    """Who speaks in a turn; raises RowError for nobody we know."""
    name = text(field(turn, key, number), f'"{key}" of turn {number}')
    known = ROLES.get(name)
    if known is None:
        wrong(f"turn {number} is by {shown(name)}; known: {', '.join(ROLES)}{nearest(name, ROLES)}")
    return known


def field(turn: dict[str, Any], key: str, number: int) -> Any:
    if key not in turn:
        wrong(f'turn {number} has no "{key}"')
    return turn[key]


def marked(turns: Iterable[Turn]) -> bool:
    """Whether a user's text holds a placeholder."""
    return any(role == "user" and PLACEHOLDER in said for role, said in turns)


def at_marks(turns: Iterable[Turn], images: Sequence[ImageSource]) -> tuple[Message, ...]:
    """Messages with the pictures at the placeholders of the user's turns."""
    slots = itertools.count()
    return tuple(
        Message(role, tuple(split(said, slots)) if images and role == "user" else whole(said))
        for role, said in turns
    )


def in_front(
    turns: Iterable[Turn], images: Sequence[ImageSource], between: str = "\n"
) -> tuple[Message, ...]:
    """Messages with all pictures before the first user's text, and every text left as it is."""
    messages = []
    slots: tuple[ImageSlot, ...] = tuple(map(ImageSlot, range(len(images))))
    for role, said in turns:
        if slots and role == "user":
            messages.append(Message(role, (*slots, *whole(said and between + said))))
            slots = ()
        else:
            messages.append(Message(role, whole(said)))
    return tuple(messages)


def split(said: str, slots: Iterator[int]) -> Iterator[str | ImageSlot]:
    """Cut a text at its placeholders and leave the rest as it is, line breaks included."""
    for place, piece in enumerate(said.split(PLACEHOLDER)):
        if place:
            yield ImageSlot(next(slots))
        if piece:
            yield piece


def whole(said: str) -> tuple[str, ...]:
    return (said,) if said else ()
