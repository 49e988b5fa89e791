"""Where samples come from: files and Playroom behind one small interface, and several as one."""

from __future__ import annotations

import itertools
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from oculi.data.formats import FileSource as FileRows
from oculi.data.sample import ImageSlot, ImageSource, Message, Sample
from oculi.errors import DataError
from oculi.recipe import FileSource, PlayroomSource, SourceSpec

if TYPE_CHECKING:
    from oculi.testbed.playroom import Item


class Source(Protocol):
    """A fixed number of samples, each had by its number; safe to use from several processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class PlayroomRows(Sequence[Sample]):
    """Questions of a Playroom level as samples; nothing is stored."""

    def __init__(self, spec: PlayroomSource) -> None:
        self.spec = spec

    def __len__(self) -> int:
        return self.spec.samples

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        item = self.item(index)
        messages = (
            Message("user", (ImageSlot(0), "\n" + item.question.text)),
            Message("assistant", (item.question.answer,)),
        )
        name = f"playroom-{self.spec.level}-{self.spec.split}-{index}"
        return Sample(name, messages, (item.picture,), source=name)

    def item(self, index: int) -> Item:
        """Scene, picture and question number ``index``."""
        from oculi.testbed import playroom

        return playroom.item(self.spec.level, self.spec.split, index, self.spec.size)


class Concatenation(Sequence[Sample]):
    """Several sources, one after another; the order of training shuffles over all of them."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = list(sources)
        self._ends = list(itertools.accumulate(len(source) for source in self.sources))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect_right(self._ends, index)
        start = self._ends[which - 1] if which else 0
        return self.sources[which][index - start]


def open_source(spec: SourceSpec) -> Source:
    """The rows of one source.

    Raises:
        DataError: the file cannot be read, has no rows, or has bad ones (the first is named, and
            the command that lists them all).
    """
    if isinstance(spec, PlayroomSource):
        return PlayroomRows(spec)
    assert isinstance(spec, FileSource)
    root = Path(spec.image_root) if spec.image_root else None
    rows = FileRows(Path(spec.path), root)
    if rows.bad_rows:
        first = rows.bad_rows[0]
        raise DataError(
            f"{len(rows.bad_rows)} bad rows in {spec.path}, the first at line {first.line} "
            f"({first.reason}): list them with: oculi data check {spec.path}"
        )
    if not len(rows):
        raise DataError(f"{spec.path} holds no rows")
    return rows


def open_sources(specs: Sequence[SourceSpec]) -> Source:
    """All sources of a stage as one; raises DataError."""
    return Concatenation([open_source(spec) for spec in specs])


def pieces(
    messages: Sequence[Message], pictures: Sequence[object]
) -> list[tuple[str, list[object]]]:
    """Messages as (role, pieces), each image slot replaced by its entry of ``pictures``."""
    return [
        (message.role, [p if isinstance(p, str) else pictures[p.index] for p in message.content])
        for message in messages
    ]


def sizes(images: Sequence[ImageSource]) -> list[tuple[int, int]]:
    """(width, height) of pictures without decoding them."""
    return [image.size() for image in images]
