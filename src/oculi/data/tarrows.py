"""WebDataset archives: a row is the run of members that share a name up to the first dot.

Headers are walked here rather than by `tarfile`, for the places of members, to go on after damage,
and because nothing in an archive may follow a link, name a path or ask for memory. Pictures are
read when they are shown, out of the archive.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Final

from oculi.data.container import Container, Found, Row, RowRef, attempt
from oculi.data.grouped import Member, assemble
from oculi.data.sample import ImageRef, RowError
from oculi.errors import shown

MAX_SPAN: Final = 2**30  # of one row with its pictures
_BLOCK: Final = 512
_LONGEST: Final = 2**20  # of an extended header
_CHUNK: Final = 2**20
_ZEROS: Final = bytes(_BLOCK)
_CUT = "the archive ends inside a member: cut off"
_END = "the archive ends without its end mark: cut off"
_BEFORE = "the archive is damaged just before this row"
_AFTER = "the archive is damaged in or just after this row"


class _Damage(Exception):
    """A header that cannot be one; the text says why."""


@dataclass(frozen=True, slots=True)
class _Entry:
    """One member as its headers describe it, and why it cannot be used, if so."""

    name: str
    start: int
    data: int
    size: int
    folder: bool
    problem: str

    @property
    def end(self) -> int:
        return self.data + (self.size + _BLOCK - 1) // _BLOCK * _BLOCK

    @property
    def key(self) -> str:
        folder, slash, name = self.name.rpartition("/")
        return folder + slash + name.partition(".")[0]

    @property
    def hidden(self) -> bool:
        return self.folder or self.name.rpartition("/")[2].startswith(".")


class TarRows(Container):
    """An uncompressed tar archive."""

    kind: ClassVar[str] = "WebDataset"
    unit: ClassVar[str] = "row"

    def rows(self) -> Iterator[Found]:
        try:
            yield from self._scan()
        finally:
            self.close()  # so that the first read looks whether the file has changed

    def _scan(self) -> Iterator[Found]:
        number, at = 0, 0
        group: list[_Entry] = []
        doubt = ""  # of the group at hand: a member of it may be lost
        while True:
            entry, problem, after = None, "", None
            try:
                entry = self._entry(at)
            except _Damage as damage:
                problem, after = str(damage), self._resume(at)
            if group and (entry is None or entry.key != group[0].key):
                doubt = doubt or (_AFTER if problem and problem not in (_CUT, _END) else "")
                number += 1
                yield self._found(group, number, doubt)
                group, doubt = [], ""
            if problem:
                number += 1
                yield Found(RowRef(at, 0, number), None, problem)
                doubt = _BEFORE
            if entry is not None:
                if not entry.hidden:
                    group.append(entry)
                after = self.done = entry.end
            if after is None:
                return
            at = after

    def read(self, ref: RowRef) -> Row:
        entries, at = [], ref.offset
        while at < ref.offset + ref.length:
            try:
                entry = self._entry(at)
            except _Damage as damage:
                raise RowError(str(damage)) from None
            if entry is None:
                break
            if not entry.hidden:
                entries.append(entry)
            at = entry.end
        return self._row(entries)

    def _found(self, group: list[_Entry], number: int, doubt: str) -> Found:
        start, key = group[0].start, group[0].key
        length = group[-1].end - start
        ref = RowRef(start, min(length, MAX_SPAN), number)
        if doubt:
            return Found(ref, None, doubt, key)
        if length > MAX_SPAN:
            return Found(ref, None, f"the row is longer than {MAX_SPAN} bytes", key)
        return attempt(ref, partial(self._row, group), key)

    def _row(self, group: list[_Entry]) -> Row:
        for entry in group:
            if entry.problem:
                raise RowError(f"member {shown(entry.name, 200)} {entry.problem}", entry.key)
        return assemble(group[0].key, [self._member(entry) for entry in group])

    def _member(self, entry: _Entry) -> Member:
        name = entry.name.rpartition("/")[2]
        picture = ImageRef(path=self.path, span=(entry.data, entry.size), name=entry.name)
        return Member(name, entry.size, partial(self._at, entry.data, entry.size), picture)

    def _entry(self, at: int) -> _Entry | None:
        """The member whose headers begin at a place; None at the end of the archive."""
        start = at
        extra: dict[str, str] = {}
        while True:
            block = self._at(at, _BLOCK)
            if len(block) < _BLOCK:
                raise _Damage(_CUT if block or extra else _END)
            if block == _ZEROS:
                return None
            size = _checked(block)
            kind, at = block[156:157], at + _BLOCK
            if kind not in b"xgLK":
                break
            if size > _LONGEST:
                raise _Damage(f"an extended header of {size} bytes")
            extra |= _extended(kind, self._at(at, size))
            at += (size + _BLOCK - 1) // _BLOCK * _BLOCK
        name = extra.get("path") or _name(block)
        if "size" in extra:
            size = _decimal(extra["size"])
        folder = kind == b"5" or (kind in b"0\0" and name.endswith("/"))
        if kind not in b"07\0":
            size = 0  # of links and devices, what the field says does not follow
        sparse = any(key.startswith("GNU.sparse") for key in extra)
        problem = _refused(name, kind, sparse or kind == b"S")
        if at + size > self.size:
            problem = "is cut off by the end of the archive"
            size = max(0, self.size - at)  # no place behind the end, which may be past any offset
        return _Entry(name, start, at, size, folder, problem)

    def _resume(self, at: int) -> int | None:
        """The place of the next sound header after damage, None when there is none."""
        at = (at // _BLOCK + 1) * _BLOCK
        while chunk := self._at(at, _CHUNK):
            for place in range(0, len(chunk) - _BLOCK + 1, _BLOCK):
                block = chunk[place : place + _BLOCK]
                if block[257:262] == b"ustar" and _sound(block):
                    return at + place
            at += _CHUNK
        return None


def _refused(name: str, kind: bytes, sparse: bool) -> str:
    """Why a member is not used; nothing is ever unpacked, but such a name is no accident."""
    if name.startswith("/"):
        return "has an absolute path"
    if ".." in name.split("/"):
        return 'has a path through ".."'
    if kind in b"12":
        return "is a link"
    if sparse:
        return "is a sparse file"
    return "" if kind in b"057\0" else "is no regular file"


def _checked(block: bytes) -> int:
    """The size field of a sound header."""
    if not _sound(block):
        raise _Damage("no sound header of a member here: the archive is damaged")
    return _number(block[124:136])


def _sound(block: bytes) -> bool:
    try:
        wanted = _number(block[148:156])
    except _Damage:
        return False
    return wanted == sum(block) - sum(block[148:156]) + 8 * 32


def _number(field: bytes) -> int:
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    try:
        value = int(field.partition(b"\0")[0].strip() or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise _Damage("a header with a broken number")
    return value


def _decimal(said: str) -> int:
    if not (said.isascii() and said.isdecimal() and len(said) < 20):
        raise _Damage("an extended header with a broken size")
    return int(said)


def _name(block: bytes) -> str:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0" and block[345]:
        name = block[345:500].partition(b"\0")[0] + b"/" + name
    return name.decode("utf-8", "replace")


def _extended(kind: bytes, data: bytes) -> dict[str, str]:
    """What an extended header changes about the member after it."""
    if kind == b"L":
        return {"path": data.partition(b"\0")[0].decode("utf-8", "replace")}
    if kind != b"x":
        return {}
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        length, space, _ = data[at : at + 8].partition(b" ")
        if not (space and length.isdigit() and int(length) > len(length) + 1):
            if data[at:].strip(b"\0"):
                raise _Damage("a broken extended header")
            break
        key, _, value = data[at + len(length) + 1 : at + int(length) - 1].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "replace")
        at += int(length)
    return found
