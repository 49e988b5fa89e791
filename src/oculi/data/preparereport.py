"""What `oculi data prepare` says about the rows it has prepared."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from oculi.data.check import SIDES
from oculi.data.formats import BadRow
from oculi.data.sample import Sample
from oculi.data.shards import Shard, ShardedRows
from oculi.errors import shown

EXAMPLES = 10
_LENGTHS = tuple(2**power for power in range(4, 18))
_NAMES = re.compile(r'"[^"]*"|\d+')


@dataclass
class Report:
    """Counts, histograms (upper bound: number), and rows worth a look, each as "file:line id".

    `tokens` sums the good rows; `reasons` counts bad rows without the names in them; `duplicates`
    counts rows whose text and images occurred before.
    """

    good: int = 0
    bad: int = 0
    tokens: int = 0
    median: int = 0
    most: int = 0
    images: int = 0
    with_images: int = 0
    duplicates: int = 0
    reasons: dict[str, int] = field(default_factory=dict)
    lengths: dict[str, int] = field(default_factory=dict)
    sides: dict[str, int] = field(default_factory=dict)
    longest: list[dict[str, Any]] = field(default_factory=list)
    duplicate_examples: list[list[str]] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Plain values for `json.dump`."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """The report as Markdown."""
        yield f"rows {self.good + self.bad}: {self.good} good, {self.bad} bad (quarantine.jsonl)"
        yield (
            f"good rows: {self.with_images} with images, {self.good - self.with_images} without; "
            f"{self.images} images, {self.tokens} tokens, median {self.median}, longest {self.most}"
        )
        yield f"duplicates, the same text and images as a row before: {self.duplicates}"
        yield from _table("bad rows by reason", self.reasons)
        yield from _table("tokens of a row, images included", self.lengths)
        yield from _table("longest side of the images in pixels", self.sides)
        if self.longest:
            yield from ("", "The longest:", "")
            yield from (f"- {row['tokens']}: {row['row']}" for row in self.longest)
        if self.duplicate_examples:
            yield from ("", "The first duplicates:", "")
            yield from (f"- {' = '.join(rows)}" for rows in self.duplicate_examples)


def make_report(
    rows: ShardedRows[Shard],
    tokens_R: NDArray[np.int32],
    image_counts_R: NDArray[np.int32],
    image_sizes_I: NDArray[Any],
    contents_R: NDArray[np.uint64],
    reasons: Counter[str],
) -> Report:
    """The report about R good rows with I images; arrays as `oculi.data.prepared` has them.

    Args:
        rows: to name some of them.
        contents_R: a hash of what each row says and shows.
        reasons: of the bad rows, from `reason`.
    """
    duplicates, examples = _duplicates(contents_R)
    return Report(
        good=len(tokens_R),
        bad=reasons.total(),
        tokens=int(tokens_R.sum(dtype=np.int64)),
        median=int(np.median(tokens_R)),
        most=int(tokens_R.max()),
        images=len(image_sizes_I),
        with_images=int(np.count_nonzero(image_counts_R)),
        duplicates=duplicates,
        reasons=dict(reasons.most_common(EXAMPLES)),
        lengths=_histogram(tokens_R, _LENGTHS),
        sides=_histogram(np.maximum(image_sizes_I["width"], image_sizes_I["height"]), SIDES),
        longest=[{"tokens": int(tokens_R[i]), "row": _name(rows[i])} for i in _longest(tokens_R)],
        duplicate_examples=[[_name(rows[i]) for i in group] for group in examples],
    )


def reason(bad: BadRow) -> str:
    """Why a row is bad, without what differs from row to row."""
    return _NAMES.sub("...", bad.reason)


def _longest(tokens_R: NDArray[np.int32]) -> list[int]:
    count = min(EXAMPLES, len(tokens_R))
    least = np.partition(tokens_R, len(tokens_R) - count)[len(tokens_R) - count]
    found = np.flatnonzero(tokens_R >= least)
    return found[np.argsort(-tokens_R[found], kind="stable")][:count].tolist()


def _duplicates(contents_R: NDArray[np.uint64]) -> tuple[int, list[list[int]]]:
    """How many rows are as one before, and the first rows that are alike, by number."""
    order = np.argsort(contents_R, kind="stable")
    values = contents_R[order]
    again = np.flatnonzero(values[1:] == values[:-1])
    firsts = again[np.flatnonzero(np.diff(again, prepend=-2) > 1)]  # where a run of equals begins
    ranked = firsts[np.argsort(order[firsts], kind="stable")][:EXAMPLES]
    return len(again), [order[place : place + 2].tolist() for place in ranked]


def _histogram(values: NDArray[np.int32], bounds: Sequence[int]) -> dict[str, int]:
    labels = [*(f"<= {bound}" for bound in bounds), f"> {bounds[-1]}"]
    counts = np.bincount(np.searchsorted(bounds, values), minlength=len(labels))
    return {label: int(n) for label, n in zip(labels, counts, strict=True) if n}


def _name(sample: Sample) -> str:
    return f"{sample.source} {shown(sample.id)}"


def _table(title: str, counts: dict[str, int]) -> Iterator[str]:
    if counts:
        yield from ("", f"| {title} | |", "|---|--:|")
        yield from (f"| {key.replace('|', '/')} | {count} |" for key, count in counts.items())
