"""Packing: every sample once, no row over its capacity, little padding."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from oculi.data.packing import pack


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 40))
def test_every_sample_once_and_capacity_kept(lengths: list[int], capacity: int) -> None:
    rows = pack(lengths, capacity)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    for row in rows:
        assert row == sorted(row) and row
        assert sum(lengths[i] for i in row) <= capacity or len(row) == 1
    # No two rows could have been one.
    totals = sorted(sum(lengths[i] for i in row) for row in rows)
    assert len(totals) < 2 or totals[0] + totals[1] > capacity


def test_an_oversize_sample_stands_alone() -> None:
    assert pack([3, 50, 4], 10) == [[1], [0, 2]]


def test_best_fit_decreasing() -> None:
    assert pack([12, 14, 6, 4], 20) == [[1, 2], [0, 3]]
    # The 2 fills the second row (12 + 16); the first one that has room would be that of the 20.
    assert pack([20, 16, 12, 2], 30) == [[1, 2, 3], [0]]


def test_the_fullest_row_comes_first_and_ties_keep_order() -> None:
    assert pack([5, 5, 9, 10], 10) == [[3], [0, 1], [2]]
    assert pack([], 10) == []


def test_equal_lengths_do_not_depend_on_anything_but_their_number() -> None:
    assert pack([4] * 7, 8) == [[0, 1], [2, 3], [4, 5], [6]]


@pytest.mark.parametrize("seed", range(3))
def test_little_of_a_realistic_batch_is_padding(seed: int) -> None:
    """256 samples: captions with pictures of 64 to 1024 patches, and text, in rows of 2048."""
    rng = random.Random(seed)
    lengths = [
        rng.randint(30, 600) if rng.random() < 0.2 else rng.randint(20, 80) + rng.randint(64, 1024)
        for _ in range(256)
    ]
    filled = [sum(lengths[i] for i in row) for row in pack(lengths, 2048)]
    micro = [filled[k : k + 4] for k in range(0, len(filled), 4)]
    padded = sum(max(part) * len(part) for part in micro)
    assert sum(lengths) / padded > 0.95
