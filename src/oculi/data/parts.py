"""Messages rows: role and content, where content is a text or a list of parts.

Part kinds of several houses meet here: Hugging Face's {"type": "image"} that takes the row's next
picture, Qwen's {"type": "image", "image": FILE}, OpenAI's {"type": "image_url", "image_url":
{"url": FILE_OR_DATA_URL}} and {"type": "input_image"}.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from oculi.data.content import field, kind, one_picture, role, split, text, turn_list, wrong
from oculi.data.sample import ImageSlot, ImageSource, Message
from oculi.errors import shown

_TEXT: Final = ("text", "input_text", "output_text")
_IMAGE: Final = ("image", "image_url", "input_image")
_SOURCES: Final = ("image", "image_url", "url", "path")  # keys under which a part names its picture
_REMARKS: Final = ("type", "detail", "text")


def chat_messages(
    value: object, given: Sequence[ImageSource], root: Path
) -> tuple[tuple[Message, ...], list[ImageSource]]:
    """Messages, and the pictures in the order in which they are shown.

    Args:
        value: the row's `messages`.
        given: the row's own pictures, which parts without a picture of their own take in order.
    """
    turns = turn_list(value, "messages")
    images = _Images(given, root)
    has_parts = any(map(_marks, turns))
    slots = itertools.count()
    messages = []
    for number, turn in enumerate(turns, start=1):
        for key in ("role", "content"):
            field(turn, key, number)
        by = role(turn, "role", number)
        # Where parts mark the pictures, the text cannot; and neither can it without pictures.
        marks = bool(given) and by == "user" and not has_parts
        content: list[str | ImageSlot] = []
        for part in _parts(turn["content"], f'"content" of turn {number}', images, slots):
            if isinstance(part, str) and marks:
                content += split(part, slots)
            elif part != "":
                content.append(part)
        messages.append(Message(by, tuple(content)))
    return tuple(messages), images.all()


def has_sources(value: object) -> bool:
    """Whether a part names its own picture, as OpenAI's do."""
    return isinstance(value, list) and any(
        part.get("type") in _IMAGE and _source(part) is not None
        for turn in value
        for part in _dicts(turn)
    )


def name_pictures(value: object, by_name: Mapping[str, ImageSource]) -> tuple[object, set[str]]:
    """Messages of which parts hold the pictures that they named, and which names those were.

    Args:
        by_name: pictures that lie beside the messages, by name without folders.
    """
    found: set[str] = set()

    def named(part: object) -> object:
        source = _source(part) if isinstance(part, dict) and part.get("type") in _IMAGE else None
        name = source.rpartition("/")[2] if isinstance(source, str) else ""
        if not isinstance(part, dict) or name not in by_name:
            return part
        found.add(name)
        rest = {key: each for key, each in part.items() if key not in _SOURCES}
        return rest | {"type": "image", "image": by_name[name]}

    def turned(turn: object) -> object:
        if not isinstance(turn, dict) or not isinstance(turn.get("content"), list):
            return turn
        return turn | {"content": [named(part) for part in turn["content"]]}

    made = [turned(turn) for turn in value] if isinstance(value, list) else value
    return made, found


class _Images:
    """The pictures of a row in the order of their slots."""

    def __init__(self, given: Sequence[ImageSource], root: Path) -> None:
        self.given, self.root, self.taken = list(given), root, 0
        self.shown: list[ImageSource] = []

    def take(self) -> int:
        """Show the next of the row's own pictures and return its number; it may be missing."""
        self.shown += self.given[self.taken : self.taken + 1]
        self.taken += 1
        return self.taken - 1

    def add(self, value: object, where: str) -> None:
        self.shown.append(one_picture(value, where, self.root))

    def all(self) -> list[ImageSource]:
        return self.shown + self.given[self.taken :]


def _dicts(turn: object) -> Iterator[dict[str, Any]]:
    content = turn.get("content") if isinstance(turn, dict) else None
    return (
        (part for part in content if isinstance(part, dict))
        if isinstance(content, list)
        else (iter(()))
    )


def _marks(turn: dict[str, Any]) -> bool:
    return any(part.get("type") in _IMAGE for part in _dicts(turn))


def _parts(
    content: object, where: str, images: _Images, slots: Iterator[int]
) -> Iterator[str | ImageSlot]:
    """Yield a content's texts, uncut, and a slot for every image part."""
    if not isinstance(content, list):
        yield text(content, where)
        return
    for place, part in enumerate(content, start=1):
        at = f"{where}, part {place}"
        if not isinstance(part, dict):
            wrong(f"{at} is {kind(part)}; it must be an object with a type")
        what = part.get("type")
        if what in _TEXT:
            yield text(part.get("text"), f'{at}: "text"')
        elif what in _IMAGE:
            _show(part, at, images)
            yield ImageSlot(next(slots))
        else:
            wrong(f'{at} has the type {shown(str(what))}; known: "text", "image", "image_url"')


def _source(part: dict[str, Any]) -> object:
    """What a part gives as its picture: a name, a data URL or bytes; None for nothing."""
    value = next((part[key] for key in _SOURCES if part.get(key) is not None), None)
    return value["url"] if isinstance(value, dict) and "url" in value else value


def _show(part: dict[str, Any], at: str, images: _Images) -> None:
    if part.get("modality") is not None:
        wrong(f'{at} has a "modality"; it is one of the whole row, beside "messages"')
    source = _source(part)
    if source is not None:
        images.add(source, at)
        return
    if part["type"] != "image":
        wrong(f'{at} has no "image_url"')
    number = images.take()
    for key, value in part.items():
        # Columnar exporters write every part with the keys of all kinds, the others null, and
        # some number the images.
        if key in _REMARKS or value is None or (key == "index" and value == number):
            continue
        if key == "index":
            wrong(f"{at} asks for image {shown(str(value))}; image {number} comes next")
        wrong(f'{at} has {shown(key)}; name the files in the row\'s "images"')
