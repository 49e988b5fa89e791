"""The order of samples: a permutation per epoch, computed from the position alone."""

import numpy as np
import pytest

from oculi.data.order import random_words, sample_numbers, stage_seed

TOTALS = [1, 2, 3, 4, 5, 16, 17, 64, 1000, 1444]


def epoch(seed: int, number: int, total: int) -> list[int]:
    return sample_numbers(seed, number * total, total, total).tolist()


@pytest.mark.parametrize("total", TOTALS)
@pytest.mark.parametrize("number", [0, 1, 7])
def test_every_epoch_holds_each_sample_once(total: int, number: int) -> None:
    assert sorted(epoch(3, number, total)) == list(range(total))


def test_epochs_and_seeds_differ_and_look_random() -> None:
    orders = [epoch(seed, number, 1000) for seed in (0, 1) for number in (0, 1, 2)]
    for i, one in enumerate(orders):
        for other in [list(range(1000)), *orders[:i]]:
            # Of two independent orders about one place in a thousand agrees.
            assert sum(a == b for a, b in zip(one, other, strict=True)) < 10
    steps = np.diff(orders[0])
    assert abs(np.corrcoef(orders[0][:-1], orders[0][1:])[0, 1]) < 0.1
    assert len(set(steps.tolist())) > 500


def test_every_order_of_few_occurs() -> None:
    found = {tuple(epoch(seed, 0, 3)) for seed in range(60)}
    assert len(found) == 6


@pytest.mark.parametrize("total", [1, 5, 1444])
def test_a_stretch_equals_its_positions_one_by_one(total: int) -> None:
    start, count = 2 * total - 3 if total > 3 else 0, 2 * total + 5
    at_once = sample_numbers(9, start, count, total)
    singly = [int(sample_numbers(9, start + i, 1, total)[0]) for i in range(0, count, 7)]
    assert at_once[::7].tolist() == singly
    assert at_once.dtype == np.int64 and at_once.shape == (count,)


def test_nothing_is_remembered() -> None:
    first = sample_numbers(5, 100, 50, 77).tolist()
    sample_numbers(6, 0, 500, 77)
    np.random.seed(1)
    np.random.rand(5)
    assert sample_numbers(5, 100, 50, 77).tolist() == first
    assert sample_numbers(5, 0, 0, 77).tolist() == []


def test_millions_cost_no_memory() -> None:
    """Positions deep in a large set: no table of the epoch's order is made."""
    found = sample_numbers(0, 10**12, 1000, 30_400_000)
    assert found.min() >= 0 and found.max() < 30_400_000 and len(set(found.tolist())) == 1000


def test_golden() -> None:
    """Runs that are resumed with a newer oculi must meet the same samples.

    python -c "from oculi.data.order import *; print(sample_numbers(0, 0, 12, 1000).tolist())"
    """
    assert sample_numbers(0, 0, 12, 1000).tolist() == GOLDEN[0]
    assert sample_numbers(1, 995, 12, 1000).tolist() == GOLDEN[1]
    assert sample_numbers(7, 0, 10, 5).tolist() == GOLDEN[2]


GOLDEN = [
    [43, 61, 514, 160, 333, 983, 792, 37, 464, 623, 66, 558],
    [597, 844, 545, 947, 687, 845, 997, 888, 646, 49, 627, 908],
    [3, 1, 4, 0, 2, 1, 2, 0, 3, 4],
]


@pytest.mark.parametrize("total", [0, -1])
def test_no_samples(total: int) -> None:
    with pytest.raises(ValueError, match="an order over"):
        sample_numbers(0, 0, 1, total)


def test_random_words_are_a_pure_function_of_place_and_look_even() -> None:
    words = random_words(3, 0, 4000)
    assert words.dtype == np.uint64 and len(set(words.tolist())) == 4000
    assert random_words(3, 1000, 50).tolist() == words[1000:1050].tolist()
    assert random_words(4, 0, 10).tolist() != words[:10].tolist()
    assert abs(float((words >> np.uint64(11)).mean()) * 2.0**-53 - 0.5) < 0.02


def test_stages_of_neighbouring_seeds_share_no_order() -> None:
    seeds = [stage_seed(seed, stage) for seed in range(20) for stage in range(4)]
    assert len(set(seeds)) == len(seeds)
    assert stage_seed(0, 1) != stage_seed(1, 0)
