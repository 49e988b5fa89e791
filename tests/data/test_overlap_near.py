"""The search finds exactly what comparing all with all would, where hashes allow it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from oculi.data import overlap_near
from oculi.data.fingerprint import RECORD, perceptual_hash
from oculi.data.overlap_near import CELL_LIMIT, CHROMA_LIMIT, LUMA_LIMIT, MAX_CANDIDATES, near


def records(luma: NDArray[Any], chroma: NDArray[Any] | None = None) -> NDArray[Any]:
    made = np.zeros(len(luma), RECORD)
    made["luma"] = luma
    made["chroma"] = 128 if chroma is None else chroma
    made["hash"] = [np.frombuffer(perceptual_hash(each), np.uint64) for each in made["luma"]]
    return made


def crowd(count: int, seed: int = 0) -> NDArray[Any]:
    """Looks in families: slight changes of a few structures and flat greys."""
    draw = np.random.default_rng(seed)
    basis = draw.normal(0, 40, (count // 10, 4, 4)).repeat(4, 1).repeat(4, 2)
    basis[::3] = 0
    basis += draw.integers(60, 190, (count // 10, 1, 1))
    luma = basis[draw.integers(0, len(basis), count)] + draw.normal(0, 3, (count, 16, 16))
    chroma = 128 + draw.normal(0, 4, (count, 1, 1, 2)) + draw.normal(0, 1, (count, 8, 8, 2))
    return records(luma.clip(0, 255).astype(np.uint8), chroma.clip(0, 255).astype(np.uint8))


def all_with_all(looks: NDArray[Any], left: NDArray[Any], right: NDArray[Any]) -> set[Any]:
    found = set()
    for j in right:
        luma = looks["luma"][left].astype(float) - looks["luma"][j]
        chroma = looks["chroma"][left].astype(float) - looks["chroma"][j]
        good = (np.square(luma).mean((1, 2)) <= LUMA_LIMIT**2) & (
            np.abs(luma).max((1, 2)) <= CELL_LIMIT
        )
        good &= np.square(chroma).mean((1, 2, 3)) <= CHROMA_LIMIT**2
        found |= {(int(i), int(j)) for i in left[good] if i != j}
    return found


@pytest.mark.parametrize("blocks", [(128, 2**21), (3, 7)], ids=["usual", "tiny"])
def test_as_comparing_all_with_all(blocks: tuple[int, int], monkeypatch: Any) -> None:
    monkeypatch.setattr(overlap_near, "_BLOCK", blocks[0])
    monkeypatch.setattr(overlap_near, "_CHUNK", blocks[1])
    looks = crowd(300)
    every = np.arange(300)
    for left, right in ((every, every), (every[:100], every[50:]), (every[:1], every)):
        found = near(looks, left, right)
        pairs = list(zip(found.left.tolist(), found.right.tolist(), strict=True))
        assert len(set(pairs)) == len(pairs)
        wanted = all_with_all(looks, left, right)
        assert set(pairs) <= wanted and len(pairs) >= 0.99 * len(wanted) > 0
        assert found.cut == 0 and (found.distance <= 1).all()


def test_flat_looks_meet_across_the_borders_of_cells() -> None:
    """Every grey against every other; their hashes are all zero."""
    looks = records(np.arange(256)[:, None, None].repeat(16, 1).repeat(16, 2))
    found = near(looks, np.arange(256), np.arange(256))
    assert set(np.abs(found.left - found.right).tolist()) == set(range(1, 7))
    assert len(found.left) == 2 * sum(256 - step for step in range(1, 7))


def test_a_crowd_of_like_looks_is_cut_and_counted(monkeypatch: Any) -> None:
    monkeypatch.setattr(overlap_near, "MAX_CANDIDATES", 10)
    looks = records(np.random.default_rng(0).integers(126, 131, (50, 16, 16)))
    found = near(looks, np.arange(50), np.arange(50))
    assert found.cut == 50 and len(found.left) == 500
    assert MAX_CANDIDATES >= 1000


def test_nothing_to_compare_and_progress() -> None:
    looks = crowd(30)
    none = np.zeros(0, np.int64)
    assert len(near(looks, none, np.arange(30)).left) == 0
    assert len(near(looks, np.arange(30), np.arange(30), tolerance=0).left) == 0
    seen: list[tuple[int, int]] = []
    near(looks, np.arange(30), np.arange(30), on_progress=lambda *done: seen.append(done))
    assert seen[-1] == (30, 30)


def test_the_search_looks_at_few(monkeypatch: Any) -> None:
    """All with all would be 16 million."""
    draw = np.random.default_rng(0)
    luma = draw.integers(0, 256, (4000, 4, 4)).repeat(4, 1).repeat(4, 2)
    looks = records(luma)
    verified = 0
    distances = overlap_near._distances

    def counted(looks: Any, one: Any, other: Any) -> Any:
        nonlocal verified
        verified += len(one)
        return distances(looks, one, other)

    monkeypatch.setattr(overlap_near, "_distances", counted)
    near(looks, np.arange(4000), np.arange(4000))
    assert verified < 50_000
