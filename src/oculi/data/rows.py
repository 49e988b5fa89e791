"""One row of a data file: from its bytes to a Sample.

LLaVA rows carry `conversations` of `from`/`value`, messages rows `messages` of `role`/`content`.
`<image>` marks a picture only where a picture can be: in a user turn of a row that has images,
and not in a row that marks them with `{"type": "image"}` parts. Everywhere else it is text, and
stays text. What a row holds besides is ignored.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

from oculi.data.images import ImageError, image_ref
from oculi.data.sample import ImageSlot, ImageSource, Message, Role, RowError, Sample
from oculi.errors import nearest, shown

Form = Literal["llava", "messages"]

PLACEHOLDER: Final = "<image>"
_TURNS: Final[dict[Form, str]] = {"llava": "conversations", "messages": "messages"}
_FIELDS: Final[dict[Form, tuple[str, str]]] = {
    "llava": ("from", "value"),
    "messages": ("role", "content"),
}
_ROLES: Final[dict[str, Role]] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
}
KNOWN = 'a LLaVA row has "conversations" (and "image"), a messages row "messages" (and "images")'
_ID = re.compile(rb'"id"\s*:\s*(?:"([^"\\\n]{1,200})"|(\d{1,20}))')


def parse_row(
    raw: bytes, path: Path, line: int, root: Path, form: Form, *, for_training: bool = True
) -> Sample:
    """Parse one row's bytes into a valid Sample; its images are not opened.

    Raises RowError (a DataError) naming file, line and id.
    """
    try:
        sample = build_sample(decode_row(raw, line), form, path, line, root)
    except RowError as error:
        raise RowError(error.reason, error.id, f"{path}:{line}") from None
    sample.validate(for_training=for_training)
    return sample


def _wrong(reason: str, id: str = "") -> NoReturn:
    raise RowError(reason, id)


def guess_id(raw: bytes) -> str:
    """Find the id of a row that does not parse; it helps to find the row in its file."""
    match = _ID.search(raw, 0, 4096)
    return (match[1] or match[2]).decode("utf-8", "replace") if match else ""


def _no_constant(name: str) -> NoReturn:
    _wrong(f"{name} is not JSON; use null or a number")


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        _wrong(f"the key {shown(twice)} is there twice in one object")
    return row


_DECODER = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant)


def decode_row(raw: bytes, line: int) -> dict[str, Any]:
    try:
        value = _DECODER.decode(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        _wrong(f"not valid UTF-8 at byte {error.start + 1} of the row")
    except json.JSONDecodeError as error:
        place = f"line {line + error.lineno - 1}, column {error.colno}"
        _wrong(f"not valid JSON: {error.msg} at {place}")
    except ValueError:
        _wrong("not valid JSON: a number is too long")
    except RecursionError:
        _wrong("nested too deeply")
    if not isinstance(value, dict):
        _wrong(f"the row is {_kind(value)}; it must be an object")
    return value


def _kind(value: object) -> str:
    if value is None:
        return "null"
    names = {str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value)) or ("a list" if isinstance(value, list) else "an object")


def recognise(row: dict[str, Any]) -> Form:
    for form, key in _TURNS.items():
        if key in row:
            return form
    keys = ", ".join(shown(key) for key in list(row)[:12]) or "none"
    _wrong(f"unknown format: the keys are {keys}; {KNOWN}", _id(row, ""))


def build_sample(row: dict[str, Any], form: Form, path: Path, line: int, root: Path) -> Sample:
    """Build the sample of a decoded row; raises RowError with the id as far as it is known."""
    id = _id(row, f"{path.name}:{line}")
    try:
        if _TURNS[form] not in row:
            other = recognise(row)
            _wrong(f'has "{_TURNS[other]}" where the rows before have "{_TURNS[form]}"')
        names = _image_names(row)
        images: tuple[ImageSource, ...] = tuple(image_ref(name, root) for name in names)
        messages = _messages(row[_TURNS[form]], form, bool(images))
    except ImageError as error:
        raise RowError(str(error), id) from None
    except RowError as error:
        raise RowError(error.reason, error.id or id) from None
    return Sample(id, messages, images, f"{path}:{line}")


def _id(row: dict[str, Any], default: str) -> str:
    value = row.get("id")
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, str | int):
        _wrong(f'"id" is {_kind(value)}; it must be a string or a whole number')
    return _text(str(value), '"id"')


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        _wrong(f"{where} is {_kind(value)}; it must be a string")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        _wrong(f"{where} holds half of a surrogate pair (\\ud800 to \\udfff)")
    return value


def _image_names(row: dict[str, Any]) -> list[str]:
    given = [(key, row[key]) for key in ("image", "images") if row.get(key) is not None]
    if len(given) > 1:
        _wrong('has both "image" and "images"; give one of them')
    if not given:
        return []
    key, value = given[0]
    if isinstance(value, str):
        return [_text(value, f'"{key}"')]
    if not isinstance(value, list):
        _wrong(f'"{key}" is {_kind(value)}; it must be a file name or a list of them')
    return [_text(name, f'"{key}"[{place}]') for place, name in enumerate(value)]


def _messages(turns: object, form: Form, has_images: bool) -> tuple[Message, ...]:
    key = _TURNS[form]
    if not isinstance(turns, list):
        _wrong(f'"{key}" is {_kind(turns)}; it must be a list of turns')
    if not turns:
        _wrong(f'"{key}" is empty')
    who, what = _FIELDS[form]
    marked = form == "messages" and any(map(_has_image_part, turns))
    slots = itertools.count()
    messages = []
    for number, turn in enumerate(turns, start=1):
        if not isinstance(turn, dict):
            _wrong(f"turn {number} is {_kind(turn)}; it must be an object")
        for field in (who, what):
            if field not in turn:
                _wrong(f'turn {number} has no "{field}"')
        name = _text(turn[who], f'"{who}" of turn {number}')
        role = _ROLES.get(name)
        if role is None:
            known = ", ".join(_ROLES)
            _wrong(f"turn {number} is by {shown(name)}; known: {known}{nearest(name, _ROLES)}")
        split = has_images and role == "user" and not marked
        where = f'"{what}" of turn {number}'
        content: list[str | ImageSlot] = []
        for part in _parts(turn[what], form, where, slots):
            if isinstance(part, ImageSlot):
                content.append(part)
            elif split:
                content += _split(part, slots)
            elif part:
                content.append(part)
        messages.append(Message(role, tuple(content)))
    return tuple(messages)


def _has_image_part(turn: object) -> bool:
    content = turn.get("content") if isinstance(turn, dict) else None
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") == "image" for part in content
    )


def _parts(
    content: object, form: Form, where: str, slots: Iterator[int]
) -> Iterator[str | ImageSlot]:
    """Yield a content's texts, uncut, and a slot for every image part."""
    if form == "llava" or not isinstance(content, list):
        yield _text(content, where)
        return
    for place, part in enumerate(content, start=1):
        at = f"{where}, part {place}"
        if not isinstance(part, dict):
            _wrong(f"{at} is {_kind(part)}; it must be an object with a type")
        kind = part.get("type")
        if kind == "text":
            yield _text(part.get("text"), f'{at}: "text"')
        elif kind == "image":
            yield _slot(part, at, next(slots))
        else:
            _wrong(f'{at} has the type {shown(str(kind))}; known: "text", "image"')


def _slot(part: dict[str, Any], at: str, number: int) -> ImageSlot:
    for key, value in part.items():
        # Columnar exporters write every part with the keys of all kinds, the others null, and
        # some number the images.
        if key == "type" or value is None or (key == "index" and value == number):
            continue
        if key == "index":
            _wrong(f"{at} asks for image {shown(str(value))}; image {number} comes next")
        _wrong(f'{at} has {shown(key)}; name the files in the row\'s "images"')
    return ImageSlot(number)


def _split(text: str, slots: Iterator[int]) -> Iterator[str | ImageSlot]:
    """Cut a text at its placeholders and leave the rest as it is, line breaks included."""
    for place, piece in enumerate(text.split(PLACEHOLDER)):
        if place:
            yield ImageSlot(next(slots))
        if piece:
            yield piece
