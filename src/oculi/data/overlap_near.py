"""Which of many looks are near each other, without comparing all of them with all.

1. Candidates. Two hashes of 8 bands that differ in at most 7 of 128 bits agree in a whole band
   (pigeonhole; M. Norouzi et al., Fast Search in Hamming Space with Multi-Index Hashing, 2012),
   and copies that differ in more mostly do too. So each band is a sorted table, and only looks that
   share a band are compared, first by their hashes. A band of zeros says nothing and is no key;
   plain pictures, of which few bands say anything, also share a table of mean colours.
2. Verification. Of two candidates the looks themselves decide, by three distances.

With n looks in buckets of b this takes O(n log n + n b) time and 48 bytes a look. Were hashes
uniform, b would be n / 65,536 for each of 8 bands: 15 of a million.

Shapes: N looks, Q queries, C candidates.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

Progress = Callable[[int, int], None]
Ints = NDArray[np.integer[Any]]

# Grey levels between looks at tolerance 1; measured, see docs/data.md.
LUMA_LIMIT: Final = 6.0  # root mean square over the 16 x 16 cells
CHROMA_LIMIT: Final = 6.0  # the same over the 8 x 8 cells and both differences
CELL_LIMIT: Final = 16.0  # of the one luma cell that differs most: what is small but plain to see
MAX_TOLERANCE: Final = 2.0

BANDS: Final = 8
# Of 128 bits. Copies differ in 0 to 10, two photographs in 40 to 70.
_RADIUS: Final = 15
# A look that has as few bands, or fewer, is plain.
_PLAIN: Final = 4
# One look is verified against so many candidates at most, the nearest by their hashes.
MAX_CANDIDATES: Final = 5000
_BLOCK, _CHUNK, _VERIFIED = 128, 2**21, 4096


@dataclass
class Near:
    """Pairs of looks: numbers `left` and `right`, `distance` (1 is the limit at tolerance 1).

    `cut` counts the looks on the right that had more candidates than are verified.
    """

    left: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    right: Ints = field(default_factory=lambda: np.zeros(0, np.int64))
    distance: NDArray[np.float32] = field(default_factory=lambda: np.zeros(0, np.float32))
    cut: int = 0


def near(
    looks: NDArray[Any],
    left: Ints,
    right: Ints,
    tolerance: float = 1.0,
    on_progress: Progress | None = None,
) -> Near:
    """Pairs of a look of `left` and another of `right` whose distance is at most `tolerance`.

    Args:
        looks: RECORD, [N], of different looks.
        left, right: numbers of looks, each ascending. A pair that both orders would give (all of
            `left` and `right` being the same) comes in both.
        on_progress: called with the looks of `right` done and their number.
    """
    found = Near()
    if not len(left) or not len(right) or tolerance <= 0:
        return found
    index = _Index(looks, left, tolerance)
    parts = []
    for start in range(0, len(right), _BLOCK):
        block = right[start : start + _BLOCK]
        query, other, cut = index.candidates(block)
        found.cut += cut
        distances = _distances(looks, other, block[query])
        good = distances <= tolerance
        parts.append((other[good], block[query][good], distances[good]))
        if on_progress is not None:
            on_progress(start + len(block), len(right))
    found.left, found.right, found.distance = map(np.concatenate, zip(*parts, strict=True))
    return found


def _distances(looks: NDArray[Any], one: Ints, other: Ints) -> NDArray[np.float32]:
    """[C] float32: the largest of the three distances, each in units of its limit."""
    result = np.zeros(len(one), np.float32)
    for start in range(0, len(one), _VERIFIED):
        some = slice(start, start + _VERIFIED)
        luma, chroma = (
            looks[name][one[some]].astype(np.float32) - looks[name][other[some]]
            for name in ("luma", "chroma")
        )
        result[some] = np.maximum.reduce(
            [
                np.sqrt(np.square(luma).mean((1, 2))) / LUMA_LIMIT,
                np.sqrt(np.square(chroma).mean((1, 2, 3))) / CHROMA_LIMIT,
                np.abs(luma).max((1, 2)) / CELL_LIMIT,
            ]
        )
    return result


class _Table:
    """Looks sorted by a key."""

    def __init__(self, keys: Ints, numbers: Ints) -> None:
        order = np.argsort(keys, kind="stable")
        self.keys, self.numbers = keys[order], numbers[order].astype(np.int32)

    def find(self, keys_Q: Ints) -> Iterator[tuple[Ints, Ints]]:
        """Yield (query, look) for all equal keys, some millions at a time."""
        low = np.searchsorted(self.keys, keys_Q, "left")
        count = np.searchsorted(self.keys, keys_Q, "right") - low
        ends = np.cumsum(count)
        start = 0
        while start < len(keys_Q):
            room = ends[start] - count[start] + _CHUNK
            stop = max(start + 1, int(np.searchsorted(ends, room, "right")))
            counts = count[start:stop]
            query = np.repeat(np.arange(start, stop), counts)
            within = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
            yield query, self.numbers[np.repeat(low[start:stop], counts) + within]
            start = stop


class _Index:
    """The tables of the looks on the left."""

    def __init__(self, looks: NDArray[Any], left: Ints, tolerance: float) -> None:
        self._looks = looks
        self._limits = tolerance * np.array([LUMA_LIMIT, CHROMA_LIMIT, CHROMA_LIMIT])
        bands = self._bands(left)
        self._tables = [_Table(band[band > 0], left[band > 0]) for band in bands]
        plain = left[_is_plain(bands)]
        (keys,) = self._cells(plain, (0, 0, 0))
        self._plain = _Table(keys, plain)

    def candidates(self, right_Q: Ints) -> tuple[Ints, Ints, int]:
        """(query, look) [C] each, without repetition, and how many queries had too many."""
        hashes = self._looks["hash"]
        mine = hashes[right_Q]
        kept: tuple[Ints, ...] = (np.zeros(0, np.int64),) * 3
        cut = np.zeros(len(right_Q), bool)
        for query, other in self._sharing(right_Q):
            bits = np.bitwise_count(mine[query] ^ hashes[other]).sum(1, dtype=np.uint8)
            good = (bits <= _RADIUS) & (right_Q[query] != other)
            some = (query[good], other[good], bits[good])
            if len(some[0]):
                query, other, bits = map(np.concatenate, zip(kept, some, strict=True))
                kept = _nearest(query, other, bits, cut)
        return kept[0], kept[1], int(cut.sum())

    def _sharing(self, right_Q: Ints) -> Iterator[tuple[Ints, Ints]]:
        """Yield (query, look) for all that share a band or a cell of colours."""
        bands = self._bands(right_Q)
        for table, band in zip(self._tables, bands, strict=True):
            asked = np.flatnonzero(band)
            for query, other in table.find(band[asked]):
                yield asked[query], other
        asked = np.flatnonzero(_is_plain(bands))
        signs = itertools.product((-1, 1), repeat=3)
        for keys in self._cells(right_Q[asked], *signs):
            for query, other in self._plain.find(keys):
                yield asked[query], other

    def _bands(self, numbers: Ints) -> NDArray[np.uint16]:
        """[8, N] uint16"""
        hashes = np.ascontiguousarray(self._looks["hash"][numbers])
        return np.ascontiguousarray(hashes.view(np.uint16).reshape(-1, BANDS).T)

    def _cells(self, numbers: Ints, *signs: tuple[int, ...]) -> Iterator[Ints]:
        """Yield the cells of the mean colours moved by the limits times each of `signs`.

        Cells are at least twice as wide as a limit, so two colours within the limits lie in cells
        that one of the eight corners around either of them touches.
        """
        looks = self._looks
        means = np.zeros((len(numbers), 3))
        for start in range(0, len(numbers), _VERIFIED):
            some = slice(start, start + _VERIFIED)
            means[some, 0] = looks["luma"][numbers[some]].mean((1, 2))
            means[some, 1:] = looks["chroma"][numbers[some]].mean((1, 2))
        width = np.maximum(8, 2 * self._limits)
        for sign in signs:
            cells = np.floor((means + np.array(sign) * self._limits) / width).astype(np.int64) + 2
            yield cells @ np.array([4096, 64, 1])


def _is_plain(bands: NDArray[np.uint16]) -> NDArray[np.bool_]:
    return (bands > 0).sum(0) <= _PLAIN


def _nearest(
    query: Ints, other: Ints, bits: Ints, cut: NDArray[np.bool_]
) -> tuple[Ints, Ints, Ints]:
    """Each pair once, and of each query the nearest candidates; marks in `cut` who had more."""
    order = np.lexsort((other, bits, query))
    query, other, bits = query[order], other[order], bits[order]
    # Found again through another band, a pair has the same bits and follows itself.
    new = np.ones(len(query), bool)
    new[1:] = (query[1:] != query[:-1]) | (other[1:] != other[:-1])
    query, other, bits = query[new], other[new], bits[new]
    rank = np.arange(len(query)) - np.searchsorted(query, query, "left")
    cut[query[rank >= MAX_CANDIDATES]] = True
    few = rank < MAX_CANDIDATES
    return query[few], other[few], bits[few]
