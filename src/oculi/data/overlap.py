"""Pictures that two data sets share, or that one set holds twice: the same bytes, pixels or look.

Every picture is decoded once, as training does, and kept as a record of 448 bytes
(`oculi.data.fingerprint`). Digests give the pictures that are the same; among looks that differ
`oculi.data.overlap_near` finds those that are near. Pictures of one look are one there, so ten
thousand white pictures cost no more than one.

Kinds of pairs, the strictest that holds: `bytes`, the same file; `pixels`, the same pixels in
another file; `near`, as after scaling or another compression.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from oculi.data.formats import BadRow
from oculi.data.overlap_near import MAX_CANDIDATES, MAX_TOLERANCE, Ints, near
from oculi.data.overlap_pictures import Pictures, Place, Progress, read_pictures
from oculi.errors import DataError

T = TypeVar("T")
KINDS: Final = ("bytes", "pixels", "near")
# Of one picture's pairs so many are listed at most; a thousand white pictures make half a million.
MAX_LISTED: Final = 100


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture of A and one of B; of one set, a picture and a later one."""

    kind: str
    distance: float
    a: Place
    b: Place

    def __str__(self) -> str:
        return f"{self.kind:6}  {self.distance:4.2f}  {self.a}  =  {self.b}"


class _Groups:
    """Pictures of one digest as a group: its number for each, and the members of each.

    Pictures are counted through both sides, A first. Of one set, both sides are that set.
    """

    def __init__(self, digests_N2: NDArray[np.uint64], a: slice, b: slice) -> None:
        order = np.lexsort(digests_N2.T)
        ordered = digests_N2[order]
        new = np.ones(len(order), bool)
        new[1:] = (ordered[1:] != ordered[:-1]).any(1)
        self.first = order[new]  # lexsort is stable: the first member
        self.of = np.empty(len(order), np.int64)
        self.of[order] = np.cumsum(new) - 1
        count = len(self.first)
        self.a, self.b = (np.bincount(self.of[side], minlength=count) for side in (a, b))
        self._members = np.argsort(self.of[a], kind="stable")  # A begins at 0
        self._starts = np.concatenate([[0], np.cumsum(self.a)])

    def members(self, group: int, limit: int) -> Ints:
        """The first pictures of A in a group."""
        start = self._starts[group]
        return self._members[start : min(start + limit, self._starts[group + 1])]

    def pairs(self, alone: bool) -> int:
        """How many pairs the groups hold."""
        each = self.a * (self.a - 1) // 2 if alone else self.a * self.b
        return int(each.sum())


def overlap(
    a: Path,
    b: Path | None = None,
    *,
    image_roots: Sequence[Path] = (),
    forms: Sequence[str] = (),
    tolerance: float = 1.0,
    workers: int = 1,
    progress: Callable[[str], Progress | None] = lambda what: None,
) -> Overlap:
    """Compare the pictures of two sets, or those of one with each other.

    Args:
        a, b: a data file, a pattern or a folder each, of any format that can be trained on.
        image_roots, forms: as for `read_pictures`; one for both sides, or one for each.
        tolerance: how far near pictures may be apart, up to MAX_TOLERANCE; 0 leaves them out.
        workers: processes that decode.
        progress: makes a callback for (done, total) of what it is given the name of.

    Raises:
        DataError: too many roots or forms, an unknown form, a tolerance out of range, or a worker
            was killed. What cannot be read is in the result.
    """
    if not 0 <= tolerance <= MAX_TOLERANCE:
        raise DataError(f"the tolerance is {tolerance:g}; it must be 0 to {MAX_TOLERANCE:g}")
    sides = []
    paths = [a] if b is None else [a, b]
    roots = _for_each(image_roots, len(paths), "image roots")
    for path, root, form in zip(paths, roots, _for_each(forms, len(paths), "formats"), strict=True):
        show = progress(f"reading {path.name or path}")
        sides.append(read_pictures(path, root, form=form, workers=workers, on_progress=show))
    return Overlap(sides[0], sides[1] if b is not None else None, tolerance, progress("comparing"))


def _for_each(given: Sequence[T], sides: int, what: str) -> list[T | None]:
    """One for each side, from none, one for all, or one for each."""
    if len(given) > sides:
        raise DataError(f"{len(given)} {what} for {sides} data set{'s' * (sides > 1)}")
    if not given:
        return [None] * sides
    return [given[min(side, len(given) - 1)] for side in range(sides)]


class Overlap:
    """What `overlap` found. `ok` is whether every row and picture could be read.

    `counts` has all pairs of each kind; `pairs` yields those listed, of one picture MAX_LISTED.
    `cut` counts pictures so common that near ones of theirs may be missing.
    """

    def __init__(
        self,
        a: Pictures,
        b: Pictures | None,
        tolerance: float,
        on_progress: Progress | None = None,
    ) -> None:
        self.a, self._b, self.tolerance = a, b, tolerance
        records = a.take_records()
        if b is not None:
            records = np.concatenate([records, b.take_records()])
        in_a = slice(0, len(a))
        in_b = in_a if b is None else slice(len(a), len(records))
        self._second = in_b.start
        names = ("file", "pixels", "look")
        self._groups = [_Groups(records[name], in_a, in_b) for name in names]
        looks = self._groups[2]
        distinct = records[looks.first]
        del records  # a million take half a gigabyte
        found = near(
            distinct,
            np.flatnonzero(looks.a),
            np.flatnonzero(looks.b),
            tolerance,
            on_progress,
        )
        self.cut = found.cut
        order = np.lexsort((found.left, found.distance, found.right))
        self._left, self._distance = found.left[order], found.distance[order]
        self._ends = np.searchsorted(found.right[order], np.arange(len(looks.first) + 1))
        levels = self._groups if tolerance > 0 else self._groups[:2]
        self._levels = levels
        paired = levels[-1].a > (1 if b is None else 0)
        if tolerance > 0:
            paired |= np.diff(self._ends) > 0
        # Of each picture of B, whether it is in a pair.
        self._paired = paired[levels[-1].of[in_b]]
        self.counts = dict(zip(KINDS, self._count(), strict=True))

    @property
    def b(self) -> Pictures:
        """The other side; of one set, the set itself."""
        return self._b or self.a

    @property
    def ok(self) -> bool:
        return not self.bad_rows

    @property
    def bad_rows(self) -> list[BadRow]:
        return self.a.bad_rows + ([] if self._b is None else self._b.bad_rows)

    def _count(self) -> tuple[int, int, int]:
        same = [groups.pairs(self._b is None) for groups in self._groups]
        looks = self._groups[2]
        right = np.repeat(np.arange(len(looks.first)), np.diff(self._ends))
        others = int((looks.a[self._left] * looks.b[right]).sum())
        if self._b is None:
            others //= 2
        if self.tolerance <= 0:
            return same[0], same[1] - same[0], 0
        return same[0], same[1] - same[0], same[2] - same[1] + others

    @property
    def shared(self) -> int:
        """Pictures of B that A has too; of one set, pictures that are in a pair."""
        return int(self._paired.sum())

    def _partners(self, picture: int) -> Iterator[tuple[int, float, int]]:
        """Yield (kind, distance, picture of A) for a picture of B, the nearest first."""
        seen: set[int] = set()
        for kind, groups in enumerate(self._levels):
            # Those of the kinds before are among them, MAX_LISTED of each kind at most.
            group = groups.of[picture]
            for member in groups.members(group, MAX_LISTED * (kind + 1)).tolist():
                if member not in seen and self._counts_with(member, picture):
                    seen.add(member)
                    yield kind, 0.0, member
        look = self._groups[2].of[picture]
        for place in range(self._ends[look], self._ends[look + 1]):
            members = self._groups[2].members(self._left[place], MAX_LISTED).tolist()
            for member in members:
                if self._counts_with(member, picture):
                    yield 2, float(self._distance[place]), member

    def _counts_with(self, member: int, picture: int) -> bool:
        return self._b is not None or member < picture

    @cached_property
    def _listed(self) -> NDArray[Any]:
        """Kind, distance, picture of A and of B of the listed pairs, the nearest first."""
        columns = [("kind", "u1"), ("distance", "f4"), ("a", "i8"), ("b", "i8")]
        listed = [
            (kind, distance, a, b - self._second)
            for b in (np.flatnonzero(self._paired) + self._second).tolist()
            for kind, distance, a in itertools.islice(self._partners(b), MAX_LISTED)
        ]
        pairs = np.array(listed, dtype=columns)
        return pairs[np.lexsort((pairs["a"], pairs["b"], pairs["distance"], pairs["kind"]))]

    def pairs(self) -> Iterator[Pair]:
        """Yield the listed pairs: bytes, pixels, near by distance, each in order of B."""
        for kind, distance, a, b in self._listed:
            places = self.a.place(int(a)), self.b.place(int(b))
            yield Pair(KINDS[int(kind)], round(float(distance), 3), *places)

    def lines(self, show: int = 20) -> Iterator[str]:
        """Yield the report as text: pairs, counts, what could not be read."""
        for pair in itertools.islice(self.pairs(), show):
            yield str(pair)
        if len(self._listed) > show:
            yield f"... and {len(self._listed) - show} more: --out FILE.jsonl writes them"
        for note in self.notes():
            yield f"note: {note}"
        for bad in self.bad_rows:
            yield str(bad)
        if self._b is None:
            yield f"{self.a.name}: {len(self.a)} pictures, {self.shared} of them in a pair"
        else:
            yield (
                f"{self.a.name}: {len(self.a)} pictures; {self.b.name}: {len(self.b)} pictures, "
                f"{self.shared} of them also in the first"
            )
        counts = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        yield f"pairs: {counts}; {len(self.bad_rows)} rows or pictures could not be read"

    def notes(self) -> Iterator[str]:
        """Yield what is not listed or may be missing, and sides without a picture."""
        missing = sum(self.counts.values()) - len(self._listed)
        if missing:
            yield f"{missing} pairs are counted but not listed: at most {MAX_LISTED} of a picture are"
        if self.cut:
            yield (
                f"{self.cut} pictures have more than {MAX_CANDIDATES} candidates of like structure; "
                "only the nearest of those were compared, near pairs may be missing"
            )
        for side in [self.a] if self._b is None else [self.a, self._b]:
            if not len(side):
                yield f"{side.name} has no pictures that can be read"

    def to_json(self) -> dict[str, Any]:
        """The report as plain values for `json.dump`."""
        sides = {"a": self.a} if self._b is None else {"a": self.a, "b": self._b}
        names = {
            key: {"name": side.name, "rows": side.rows, "pictures": len(side)}
            for key, side in sides.items()
        }
        return names | {
            "ok": self.ok,
            "tolerance": self.tolerance,
            "counts": self.counts,
            "shared": self.shared,
            "notes": list(self.notes()),
            "pairs": [asdict(pair) for pair in self.pairs()],
            "bad_rows": [asdict(bad) for bad in self.bad_rows],
        }

    def write(self, path: Path) -> None:
        """Write the listed pairs as JSON Lines; raises DataError when the file cannot be written."""
        try:
            with path.open("w", encoding="utf-8") as file:
                for pair in self.pairs():
                    file.write(json.dumps(asdict(pair)) + "\n")
        except OSError as error:
            raise DataError(f"{path}: {error.strerror or 'cannot be written'}") from None
