"""How many tokens a picture becomes, from its grid of patches alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from oculi.model.grids_oculi import token_grid, token_grids, within_tiles

SIZES = st.integers(1, 800)


def tiles(grid: tuple[int, int], side: int) -> int:
    return -(-grid[0] // side) * -(-grid[1] // side)


@given(SIZES, SIZES, st.integers(1, 24), st.integers(1, 30))
def test_what_is_scaled_down_fits_and_keeps_its_shape(
    rows: int, columns: int, side: int, most: int
) -> None:
    found = within_tiles(rows, columns, side, most)
    assert tiles(found, side) <= most and min(found) >= 1
    if tiles((rows, columns), side) <= most:
        assert found == (rows, columns)
        return
    assert found[0] <= rows and found[1] <= columns
    # Each side is the rounded-down one of a single scale, unless it is one patch already.
    sides = [(size, old) for size, old in zip(found, (rows, columns), strict=True) if size > 1]
    scale = max((size / old for size, old in sides), default=0.0)
    assert all(abs(size - old * scale) <= 1 + 1e-3 for size, old in sides)


@pytest.mark.parametrize(
    ("grid", "most", "wanted"),
    [
        ((48, 48), 4, (48, 48)),
        ((714, 714), 12, (72, 72)),  # 10,000 pixels: 3 x 3 tiles hold more of a square than 2 x 6
        ((1, 286), 12, (1, 286)),
        ((1, 286), 4, (1, 96)),
        ((286, 1), 4, (96, 1)),
        ((100, 100), 1, (24, 24)),
    ],
)
def test_by_hand(grid: tuple[int, int], most: int, wanted: tuple[int, int]) -> None:
    assert within_tiles(*grid, 24, most) == wanted


def test_kinds() -> None:
    assert token_grid(None, 5, 7) == (5, 7)
    assert token_grid({"kind": "fixed", "side": 24}, 1, 700) == (24, 24)
    all_of = {"kind": "tiled", "side": 24, "max_tiles": 4}
    assert token_grid(all_of, 30, 40) == (1, 576 + 30 * 41)
    assert token_grid(all_of, 1, 286) == (1, 576 + 97)
    grids = torch.tensor([[30, 40], [1, 286]])
    assert token_grids(all_of, grids).tolist() == [[1, 1806], [1, 673]]
    assert token_grids(all_of, grids[:0]).shape == (0, 2)
    with pytest.raises(ValueError, match='"other" is none of fixed, tiled'):
        token_grid({"kind": "other"}, 1, 1)
