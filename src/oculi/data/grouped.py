"""A row from several files of one name: the pictures, and what JSON or text says about them.

A folder of pictures with captions and a WebDataset archive are the same thing, packed or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from oculi.data.container import MAX_ROW_BYTES, Row
from oculi.data.content import first_twice, wrong
from oculi.data.parts import has_sources, name_pictures
from oculi.data.rows import decode_row
from oculi.data.sample import ImageSource, RowError
from oculi.errors import shown

PICTURES: Final = frozenset(("jpg", "jpeg", "png", "webp", "gif", "bmp"))
TEXTS: Final = frozenset(("txt", "caption"))
_KEYS: Final = ("image", "images", "frames", "file_name")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a row; `name` is without folders. `read` may raise RowError."""

    name: str
    size: int
    read: Callable[[], bytes]
    picture: ImageSource

    @property
    def suffix(self) -> str:
        return self.name.rpartition(".")[2].lower()


def assemble(key: str, members: Sequence[Member]) -> Row:
    """The row that the files under one key make; raises RowError naming the file at fault.

    The JSON's fields are the row's; a text file becomes `text`; the pictures take the place of the
    names under the JSON's `image`, `images` or `frames`, by name where the names are those of the
    files, else in order.
    """
    names = [member.name for member in members]
    if (twice := first_twice(names)) is not None:
        wrong(f"{shown(twice)} is there twice", key)
    pictures = [member for member in members if member.suffix in PICTURES]
    said, meant = _one(members, TEXTS, key), _one(members, frozenset(("json",)), key)
    row = _decoded(meant) if meant else {}
    if said and row.get("text") is None:
        row["text"] = _text(said).strip()
    if not said and not meant:
        wrong(f"nothing says what {shown(names[0])} shows: no .txt, .caption or .json", key)
    if not pictures and not meant:
        wrong(f"there is no picture to {shown(names[0])}", key)
    if row.get("id") is None:
        row["id"] = key
    return _with_pictures(row, pictures) if pictures else row


def _one(members: Sequence[Member], suffixes: frozenset[str], key: str) -> Member | None:
    """The member with such a suffix; among several the one that has no other suffix before it."""
    found = [member for member in members if member.suffix in suffixes]
    if len(found) > 1:
        found = [member for member in found if member.name.count(".") == 1] or found
    if len(found) > 1:
        wrong(f"{shown(found[0].name)} and {shown(found[1].name)} belong to one row", key)
    return found[0] if found else None


def _with_pictures(row: Row, pictures: Sequence[Member]) -> Row:
    if has_sources(row.get("messages")):
        return _in_parts(row, pictures)
    given = [key for key in _KEYS if row.get(key) is not None]
    key = given[0] if given else "images" if len(pictures) > 1 else "image"
    listed = row.get(key)
    names = listed if isinstance(listed, list) else [listed] if given else []
    if given and len(names) != len(pictures):
        wrong(f'"{key}" names {len(names)} of the {len(pictures)} pictures beside it')
    by_name = {member.name: member.picture for member in pictures}
    called = [name.rpartition("/")[2] if isinstance(name, str) else "" for name in names]
    if set(called) == set(by_name):
        found = [by_name[name] for name in called]
    else:
        found = [member.picture for member in pictures]
    rest = {name: value for name, value in row.items() if name not in _KEYS}
    if key == "file_name":
        key = "image"
    return rest | {key: found if len(found) > 1 or isinstance(listed, list) else found[0]}


def _in_parts(row: Row, pictures: Sequence[Member]) -> Row:
    """The row of which parts of messages name the pictures themselves, as OpenAI's and Qwen's do."""
    by_name = {member.name: member.picture for member in pictures}
    messages, found = name_pictures(row["messages"], by_name)
    if left := [name for name in by_name if name not in found]:
        wrong(f"no part of the messages names {shown(left[0])}, which lies beside them")
    return row | {"messages": messages}


def _decoded(member: Member) -> Row:
    try:
        return decode_row(_bytes(member), 1)
    except RowError as error:
        raise RowError(f"{shown(member.name)}: {error.reason}", error.id) from None


def _text(member: Member) -> str:
    try:
        return _bytes(member).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        wrong(f"{shown(member.name)}: not valid UTF-8 at byte {error.start + 1}")


def _bytes(member: Member) -> bytes:
    if member.size > MAX_ROW_BYTES:
        wrong(f"{shown(member.name)} is longer than {MAX_ROW_BYTES} bytes")
    return member.read()
