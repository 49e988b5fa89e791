"""`oculi data join`: the questions about one picture as one conversation.

Answers to questions about pictures are brief, and a picture takes many tokens: several pairs in one
sample are learnt from one pass over it (AuroraEdge-V, section 4.3, item 2). It is done once, on files,
because it needs all rows of a picture; the order of training then knows nothing of it.
"""

from __future__ import annotations

import hashlib
import itertools
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from oculi.data.container import Row
from oculi.data.formats import BadRow, FileSource
from oculi.data.images import ImageError
from oculi.data.kinds import find_files
from oculi.data.rowfile import (
    check_pictures,
    common_root,
    picture_key,
    remarks,
    root_hint,
    to_row,
    write_rows,
)
from oculi.data.sample import ImageSlot, Message, Sample
from oculi.data.turns import turns
from oculi.errors import DataError

MAX_TURNS: Final = 10

Progress = Callable[[int, int], None]


@dataclass
class Joined:
    """What `join` did. Rows in = rows out + rows that went into another + `repeated`."""

    out: str
    image_root: str
    rows: int = 0
    written: int = 0
    conversations: int = 0
    repeated: int = 0
    single: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    hint: str = ""

    def lines(self) -> Iterator[str]:
        """The report as text."""
        for bad in self.bad_rows:
            yield str(bad)
        yield f"rows {self.rows + len(self.bad_rows)}: {self.rows} good, {len(self.bad_rows)} bad"
        yield f"{self.out}: {self.written} rows, {self.conversations} of them joined from several"
        yield f"left out because the same row said it before: {self.repeated}"
        yield f"not to be joined (no picture, a later picture, no question): {self.single}"
        if self.hint:
            yield self.hint


@dataclass(slots=True)
class _Talk:
    """Rows, by number, that become one conversation; room for more is left by the limits."""

    rows: list[int]
    turns: int
    characters: int
    said: set[bytes]
    questions: set[bytes]


def join(
    paths: Sequence[Path],
    out: Path,
    *,
    image_root: Path | None = None,
    form: str | None = None,
    max_turns: int = MAX_TURNS,
    max_characters: int | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> Joined:
    """Write rows with the same pictures, system turn and tags as one conversation; others as they are.

    A conversation takes rows in their order as long as there is room; the next ones begin another.
    No question stands in it twice: a row that repeats one with the same answers is left out, one with
    other answers goes into another conversation. Rows longer than a limit stay alone. The result is a
    function of the files alone.

    Args:
        paths: files, patterns or folders. out: a JSON Lines file.
        image_root, form: as of a source in a recipe.
        max_turns: most questions of a conversation.
        max_characters: most characters of all its turns; None: any number.
        overwrite: replace `out`.
        on_progress: told how many rows are looked at, and of how many.

    Raises:
        DataError: a file cannot be read or has no rows that can be used, or `out` is taken.
    """
    if out.exists() and not overwrite:
        raise DataError(f"{out}: exists; choose another --out, or add --overwrite")
    files = list(itertools.chain.from_iterable(find_files(Path(path)) for path in paths))
    rows = [FileSource(file, image_root, form=form) for file in files]
    if out.exists() and any(out.samefile(file) for source in rows for file in source.files):
        raise DataError(f"{out}: is one of the files that are read; choose another --out")
    root = common_root(source.root for source in rows)
    found = Joined(str(out), str(root), bad_rows=[bad for each in rows for bad in each.bad_rows])
    talks = _group(_All(rows), found, max_turns, max_characters, on_progress)
    found.conversations = sum(len(talk.rows) > 1 for talk in talks)
    found.written = write_rows(out, (_written(_All(rows), talk) for talk in talks))
    found.hint = root_hint(out, root)
    return found


class _Open:
    """The conversations about one picture: those with room, and those where a pair was said."""

    def __init__(self) -> None:
        self.room: list[_Talk] = []  # in the order of their first rows
        self._said: dict[bytes, list[_Talk]] = {}

    def repeats(self, talk: _Talk) -> bool:
        """Whether one conversation has said all of it."""
        rarest = min((self._said.get(pair, []) for pair in talk.said), key=len)
        return any(talk.said <= other.said for other in rarest)

    def enter(self, said: set[bytes], talk: _Talk) -> None:
        """Note that these pairs stand in a conversation now."""
        for pair in said:
            self._said.setdefault(pair, []).append(talk)


class _All:
    """The rows of several files by one number."""

    def __init__(self, sources: Sequence[FileSource]) -> None:
        self.sources = sources
        self.ends = list(itertools.accumulate(map(len, sources)))

    def __len__(self) -> int:
        return self.ends[-1]

    def find(self, number: int) -> tuple[FileSource, int]:
        which = bisect_right(self.ends, number)
        return self.sources[which], number - (self.ends[which - 1] if which else 0)


def _group(
    rows: _All,
    found: Joined,
    max_turns: int,
    max_characters: int | None,
    on_progress: Progress | None,
) -> list[_Talk]:
    """All rows as conversations, in the order of their first rows."""
    talks: list[_Talk] = []
    of_picture: dict[bytes, _Open] = defaultdict(_Open)
    for number in range(len(rows)):
        source, own = rows.find(number)
        sample = source[own]
        if on_progress is not None and (number % 256 == 0 or number + 1 == len(rows)):
            on_progress(number + 1, len(rows))
        try:
            check_pictures(sample.images)
            key = _key(sample, source.row(own))
        except ImageError as error:
            file, _, line = sample.source.rpartition(":")
            found.bad_rows.append(BadRow(sample.id, int(line), str(error), file))
            continue
        found.rows += 1
        talk = _talk(number, sample)
        if key is None:
            found.single += 1
            talks.append(talk)
        elif of_picture[key].repeats(talk):
            found.repeated += 1
        elif _enter(talk, of_picture[key], max_turns, max_characters) is talk:
            talks.append(talk)
    if not talks:
        raise DataError(f"no row can be used; the first: {found.bad_rows[0]}")
    return talks


def _enter(talk: _Talk, others: _Open, max_turns: int, max_characters: int | None) -> _Talk:
    """Put rows into the first conversation that has room, or into one of their own; returns it."""
    fits = (t for t in others.room if _fits(t, talk, max_turns, max_characters))
    into = next(fits, talk)
    if into is talk:
        others.room.append(talk)
    else:
        _add(into, talk)
    others.enter(talk.said, into)
    if into.turns >= max_turns:
        others.room.remove(into)
    return into


def _key(sample: Sample, row: Row) -> bytes | None:
    """What rows of one conversation share; None where a row cannot be joined."""
    talk = [message for message in sample.messages if message.role != "system"]
    later = any(isinstance(part, ImageSlot) for m in talk[1:] for part in m.content)
    if not sample.images or later or not talk[0].text.strip():
        return None
    system = [message.text for message in sample.messages if message.role == "system"]
    tags = [row.get("stage"), row.get("stages")]
    shown = [picture_key(image) for image in sample.images]
    return _hash(repr((system, tags, sample.modality, shown)))


def _talk(number: int, sample: Sample) -> _Talk:
    asked = [m for m in sample.messages if m.role != "system"]
    pairs = [(q.text.strip(), a.text) for q, a in zip(asked[::2], asked[1::2], strict=True)]
    return _Talk(
        [number],
        turns(sample),
        sum(len(message.text) for message in sample.messages),
        {_hash(repr(pair)) for pair in pairs},
        {_hash(question) for question, _ in pairs},
    )


def _hash(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _fits(talk: _Talk, more: _Talk, max_turns: int, max_characters: int | None) -> bool:
    return (
        talk.turns + more.turns <= max_turns
        and (max_characters is None or talk.characters + more.characters <= max_characters)
        and not talk.questions & more.questions
    )


def _add(talk: _Talk, more: _Talk) -> None:
    talk.rows += more.rows
    talk.turns += more.turns
    talk.characters += more.characters
    talk.said |= more.said
    talk.questions |= more.questions


def _written(rows: _All, talk: _Talk) -> Row:
    """A conversation as a row; id and remarks are those of its first row."""
    source, own = rows.find(talk.rows[0])
    first, messages = source[own], list[Message]()
    for number in talk.rows[1:]:
        other, place = rows.find(number)
        messages += [_alone(m) for m in other[place].messages if m.role != "system"]
    sample = replace(first, messages=(*first.messages, *messages))
    return to_row(sample, remarks(source.row(own)))


def _alone(message: Message) -> Message:
    """A later turn: the pictures were shown in the first one."""
    parts = [part for part in message.content if isinstance(part, str)]
    if len(parts) < len(message.content):
        return Message(message.role, ("".join(parts).strip(),))
    return message
