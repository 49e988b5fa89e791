"""Which sample comes when: a pure function of seed and position.

No list of the epoch's order is kept and nothing is replayed after a resume. An epoch is a permutation
by a Feistel network (cycle walking; Black and Rogaway 2002), so order[position] costs a few integer
operations and no memory, for a thousand rows as for thirty million.
"""

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 6
_GOLDEN_RATIO = np.uint64(0x9E3779B97F4A7C15)  # splitmix64's step from one state to the next
_MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


def sample_numbers(seed: int, start: int, count: int, total: int) -> NDArray[np.int64]:
    """Samples at positions ``start`` to ``start + count`` of an endless order over ``total`` samples.

    Every epoch (``total`` positions) holds each sample once, in an order of its own.

    Returns:
        [count] int64.

    Raises:
        ValueError: ``total`` is not positive.
    """
    if total <= 0:
        raise ValueError(f"an order over {total} samples")
    positions = np.arange(start, start + count, dtype=np.int64)
    epochs, within = np.divmod(positions, total)
    result = np.empty(count, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        result[chosen] = _permute(within[chosen].astype(np.uint64), total, seed, int(epoch))
    return result


def stage_seed(seed: int, stage: int) -> int:
    """The seed of stage number ``stage`` of a run: no two stages of any two runs share an order."""
    return int(np.random.SeedSequence([seed, stage]).generate_state(1, np.uint64)[0] >> 1)


def random_words(seed: int, start: int, count: int) -> NDArray[np.uint64]:
    """Entries ``start`` to ``start + count`` of an endless random sequence: [count] uint64."""
    key = np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
    counter = np.arange(start, start + count, dtype=np.uint64)
    with np.errstate(over="ignore"):
        return _mix(key + counter * _GOLDEN_RATIO)


def _permute(values: NDArray[np.uint64], total: int, seed: int, epoch: int) -> NDArray[np.int64]:
    half_bits = max(1, ((total - 1).bit_length() + 1) // 2)
    state = np.random.SeedSequence([seed, epoch, total]).generate_state(_ROUNDS, np.uint64)
    keys = state.astype(np.uint64)
    values = _feistel(values, keys, half_bits)
    while (outside := values >= total).any():  # the network permutes a power of 4: walk back inside
        values[outside] = _feistel(values[outside], keys, half_bits)
    return values.astype(np.int64)


def _feistel(
    values: NDArray[np.uint64], keys: NDArray[np.uint64], half_bits: int
) -> NDArray[np.uint64]:
    bits = np.uint64(half_bits)
    mask = np.uint64((1 << half_bits) - 1)
    left, right = values >> bits, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << bits) | right


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """splitmix64's finaliser: every output bit depends on every input bit."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (values ^ (values >> np.uint64(31))) & _MASK
