"""Several samples in a row, so that little of a batch is padding.

Packs are formed among the samples of one optimizer step, a fixed window of the order: nothing is left
over, nothing has to be saved, and a step is a pure function of its number. Full rows would leave the
last one nearly empty; the rows of a step are filled evenly instead, because a row costs what the
longest row beside it costs, and not the capacity.
"""

from bisect import bisect_left, insort
from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """As few rows as best-fit decreasing needs, then as even as it can fill so many.

    Args:
        lengths: tokens of each sample.
        capacity: tokens of a row; a longer sample gets a row of its own.

    Returns:
        rows of sample numbers, the fullest first; within a row in ascending order.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    rows = _best_fit(lengths, order, capacity)
    fewest, enough = len(rows), capacity
    # MULTIFIT (Coffman, Garey and Johnson 1978): a smaller capacity for which the rows suffice.
    least = 1
    while least < enough:
        middle = (least + enough) // 2
        found = _best_fit(lengths, order, middle)
        if len(found) <= fewest:
            rows, enough = found, middle
        else:
            least = middle + 1
    rows.sort(key=lambda row: (-sum(lengths[i] for i in row), row[0]))
    return rows


def _best_fit(lengths: Sequence[int], order: Sequence[int], capacity: int) -> list[list[int]]:
    """Each sample, in this order, into the fullest row that has room for it."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # of every row, the least first
    for i in order:
        place = bisect_left(room, (lengths[i], -1))
        left, row = room.pop(place) if place < len(room) else (capacity, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(i)
        insort(room, (left - lengths[i], row))
    return [sorted(row) for row in rows]


def row_width(longest: int) -> int:
    """Places of each row of a batch: its longest row's tokens, up to a multiple of 16 where it is long.

    So that shapes come again: on a CPU each new shape of a product makes a kernel and keeps it between
    the blocks of memory that a step frees, which are then found ever more slowly (docs/log.md). With
    multiples of 32 less than 94 % of the places could be useful.
    """
    return longest if longest < 256 else longest + -longest % 16
