"""Packing: every sample once, no row over its capacity, little padding."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oculi.data.packing import pack, row_width


def best_fit(lengths: list[int], capacity: int) -> list[int]:
    """Tokens of each row by best-fit decreasing, as the textbook has it."""
    rows: list[int] = []
    for length in sorted(lengths, reverse=True):
        fitting = [r for r in range(len(rows)) if rows[r] + length <= capacity]
        if fitting:
            rows[max(fitting, key=lambda r: rows[r])] += length
        else:
            rows.append(length)
    return rows


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 40))
def test_every_sample_once_and_capacity_kept(lengths: list[int], capacity: int) -> None:
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert row == sorted(row) and row
        assert sum(lengths[i] for i in row) <= capacity or len(row) == 1
    totals = [sum(lengths[i] for i in row) for row in rows]
    assert totals == sorted(totals, reverse=True)
    wanted = best_fit(lengths, capacity)
    assert len(totals) <= len(wanted)
    assert max(totals, default=0) <= max(wanted, default=0)


def test_an_oversize_sample_stands_alone() -> None:
    assert pack([3, 50, 4], 10) == [[1], [0, 2]]


def test_no_row_more_than_best_fit_needs_and_all_of_them_even() -> None:
    assert pack([12, 14, 6, 4], 20) == [[0, 2], [1, 3]]  # 18 and 18, not 20 and 16
    assert pack([20, 16, 12, 2], 30) == [
        [1, 2],
        [0, 3],
    ]  # 28 and 22: 22 and 28 is the best there is
    assert pack([5] * 5, 20) == [[0, 1, 2], [3, 4]]  # not four and one


def test_the_fullest_row_comes_first_and_ties_keep_order() -> None:
    assert pack([5, 5, 9, 10], 10) == [[0, 1], [3], [2]]
    assert pack([], 10) == []


def test_equal_lengths_do_not_depend_on_anything_but_their_number() -> None:
    assert pack([4] * 7, 8) == [[0, 1], [2, 3], [4, 5], [6]]


def useful(batch: int, capacity: int, patches: int, micro_rows: int) -> list[float]:
    """Share of useful tokens of 20 steps: a third text, the rest one picture with text."""
    rng = random.Random(f"{batch} {capacity} {patches}")
    shares = []
    for _ in range(20):
        lengths = [
            rng.randint(20, 300)
            if rng.random() < 1 / 3
            else rng.randint(12, 80) + rng.randint(16, patches)
            for _ in range(batch)
        ]
        filled = [sum(lengths[i] for i in row) for row in pack(lengths, capacity)]
        micro = [filled[k : k + micro_rows] for k in range(0, len(filled), micro_rows)]
        shares.append(sum(lengths) / sum(row_width(max(part)) * len(part) for part in micro))
    return shares


@pytest.mark.parametrize("micro_rows", [4, 8])
@pytest.mark.parametrize("patches", [64, 256, 1024])
@pytest.mark.parametrize("batch", [32, 256])
def test_of_a_realistic_mixture_six_percent_at_most_is_padding(
    batch: int, patches: int, micro_rows: int
) -> None:
    """In the mean and in the worst step, wherever a row holds two of the longest samples."""
    for capacity in (512, 1024, 2048, 4096, 8192):
        if capacity >= 2 * (patches + 80) or capacity == 2048:
            shares = useful(batch, capacity, patches, micro_rows)
            assert min(shares) >= 0.94, (capacity, min(shares))
            assert sum(shares) / len(shares) >= 0.97
