"""Where samples come from: files and Playroom behind one small interface, and several as one."""

from __future__ import annotations

import itertools
import shlex
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from oculi.data.formats import FileSource as FileRows
from oculi.data.kinds import is_prepared
from oculi.data.phrasings import find_phrasings
from oculi.data.prepared import PreparedRows, open_prepared
from oculi.data.sample import ImageSlot, ImageSource, Message, Sample
from oculi.errors import DataError
from oculi.recipe import FileSource, LanguageSource, PlayroomSource, SourceSpec

MAX_PLACES = 2**62  # the order of training counts in 64 bits

if TYPE_CHECKING:
    from oculi.testbed.playroom import Item
    from oculi.testbed.questions import Question


class Source(Protocol):
    """A fixed number of samples, each had by its number; safe to use from several processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample: ...


class _Drawn(Sequence[Sample]):
    """Samples that the program makes when they are asked for; nothing is stored."""

    spec: PlayroomSource | LanguageSource

    def __len__(self) -> int:
        return min(self.spec.samples, self.spec.limit or self.spec.samples)

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._made(index)

    @abstractmethod
    def _made(self, index: int) -> Sample:
        """Sample number ``index``, of those that there are."""


class PlayroomRows(_Drawn):
    """Questions of a Playroom level as samples; nothing is stored.

    Raises:
        DataError: the level has no such split or kind of question.
    """

    spec: PlayroomSource

    def __init__(self, spec: PlayroomSource) -> None:
        from oculi.testbed import playroom

        playroom.check(spec.level, spec.split)
        if spec.kinds:
            playroom.of_kinds(spec.level, spec.split, spec.kinds, 0)  # an unknown one is said here
        self.spec = spec

    def _made(self, index: int) -> Sample:
        item = self.item(index)
        messages: list[Message] = []
        for question in self._questions(item):
            text = (question.text,) if messages else (ImageSlot(0), "\n" + question.text)
            messages += [Message("user", text), Message("assistant", (question.answer,))]
        name = f"playroom-{self.spec.level}-{self.spec.split}-{item.picture.index}"
        return Sample(name, tuple(messages), (item.picture,), source=name, whole=True)

    def _questions(self, item: Item) -> list[Question]:
        if self.spec.questions == 1:
            return [item.question]
        from oculi.testbed.interview import more

        return [item.question, *more(item, self.spec.questions - 1, self.spec.kinds)]

    def item(self, index: int) -> Item:
        """Scene, picture and question number ``index`` of those of the kinds asked for."""
        from oculi.testbed import playroom

        if self.spec.kinds:
            index = playroom.of_kinds(self.spec.level, self.spec.split, self.spec.kinds, index)
        return playroom.item(self.spec.level, self.spec.split, index, self.spec.size)


class LanguageRows(_Drawn):
    """Dialogues of the testbed's language as samples without pictures; nothing is stored."""

    spec: LanguageSource

    def __init__(self, spec: LanguageSource) -> None:
        self.spec = spec

    def _made(self, index: int) -> Sample:
        from oculi.testbed import language

        messages = []
        for turn in language.dialogue(self.spec.split, index):
            messages += [Message("user", (turn.prompt,)), Message("assistant", (turn.answer,))]
        name = f"language-{self.spec.split}-{index}"
        return Sample(name, tuple(messages), (), source=name)


@dataclass(frozen=True, slots=True)
class _Share:
    """The places of one source in a mixture: its rows `whole` times, and then `extra` of them."""

    rows: int
    whole: int
    extra: int

    @classmethod
    def of(cls, rows: int, weight: float) -> _Share:
        whole = int(weight)
        extra = int((weight - whole) * rows + 0.5)
        return cls(rows, whole, extra if whole else max(extra, 1))

    def __len__(self) -> int:
        return self.whole * self.rows + self.extra

    def row(self, place: int) -> int:
        """The row at a place; the extra ones lie evenly over the source."""
        rest = place - self.whole * self.rows
        return place % self.rows if rest < 0 else rest * self.rows // self.extra


class Mixture(Sequence[Sample]):
    """Several sources, one after another; the order of training shuffles over all of them.

    A source of weight w and n rows takes about w * n places, at least one: every row of it stands
    in floor(w) or ceil(w) of them, the same ones in every epoch. Which row a place holds is a
    function of its number alone.

    Args:
        sources: with at least one row each.
        weights: one for each, above 0; None: all 1.
    """

    def __init__(self, sources: Sequence[Source], weights: Sequence[float] | None = None) -> None:
        self.sources = list(sources)
        weights = [1.0] * len(self.sources) if weights is None else weights
        self._shares = [
            _Share.of(len(source), weight)
            for source, weight in zip(self.sources, weights, strict=True)
        ]
        self._ends = list(itertools.accumulate(map(_Share.__len__, self._shares)))
        if self._ends[-1] > MAX_PLACES:
            raise DataError(
                f"the mixture has {self._ends[-1]} places, more than {MAX_PLACES}: lower the weights"
            )

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Sample:  # type: ignore[override]
        if not 0 <= index < len(self):
            raise IndexError(index)
        which, row = self.place(index)
        return self.sources[which][row]

    def place(self, index: int) -> tuple[int, int]:
        """Which source, and which of its rows, stands at a place of the mixture."""
        which = bisect_right(self._ends, index)
        start = self._ends[which - 1] if which else 0
        return which, self._shares[which].row(index - start)


def open_source(spec: SourceSpec) -> Source:
    """The rows of one source; raises DataError as `open_file` does."""
    match spec:
        case PlayroomSource():
            return PlayroomRows(spec)
        case LanguageSource():
            return LanguageRows(spec)
        case FileSource():
            return open_file(spec)


def open_file(spec: FileSource) -> FileRows | PreparedRows:
    """The rows of data files, or of a folder that they were prepared into.

    Raises:
        DataError: the file cannot be read, has no rows, or has bad ones (the first is named, and
            the commands that list them or leave them out); or prepared data is not as it was.
    """
    path, root = Path(spec.path), spec.image_root
    asked = find_phrasings(spec.phrasings, spec.phrasings_seed)
    if is_prepared(path):
        return open_prepared(
            path, spec.limit, asked, format=spec.format, tag=spec.tag, image_root=root
        )
    rows = FileRows(
        path, Path(root) if root else None, form=spec.format, tag=spec.tag, limit=spec.limit,
        phrasings=asked,
    )  # fmt: skip
    if rows.bad_rows:
        raise DataError(
            f"{len(rows.bad_rows)} bad rows in {spec.path}, the first: {rows.bad_rows[0]}; list "
            f"them with: {_check_command(spec)}; or leave them out with: oculi data prepare"
        )
    if not len(rows):
        raise DataError(f"{spec.path} holds no rows")
    return rows


def _check_command(spec: FileSource) -> str:
    words = ["oculi", "data", "check", spec.path]
    words += ["--image-root", spec.image_root] if spec.image_root else []
    words += ["--format", spec.format] if spec.format else []
    return shlex.join(words)


def open_sources(specs: Sequence[SourceSpec]) -> Source:
    """All sources of a stage as one; raises DataError."""
    return Mixture([open_source(spec) for spec in specs], [spec.weight for spec in specs])


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
