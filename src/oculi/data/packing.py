"""Several samples in a row, so that little of a batch is padding.

Packs are formed among the samples of one optimizer step, a fixed window of the order: nothing is left
over, nothing has to be saved, and a step is a pure function of its number.
"""

from collections.abc import Sequence


def pack(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing.

    Args:
        lengths: tokens of each sample.
        capacity: tokens of a row; a longer sample gets a row of its own.

    Returns:
        rows of sample numbers, the fullest first; within a row in ascending order.
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        fitting = [r for r in range(len(rows)) if room[r] >= lengths[i]]
        if fitting:
            row = min(fitting, key=lambda r: (room[r], r))
            rows[row].append(i)
            room[row] -= lengths[i]
        else:
            rows.append([i])
            room.append(capacity - lengths[i])
    order = sorted(range(len(rows)), key=lambda r: (room[r], r))
    return [sorted(rows[r]) for r in order]
