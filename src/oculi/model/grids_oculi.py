"""The grid of tokens that a vision part makes of a grid of patches, before any compressor.

    patches [rows, columns] ── vision part ── tokens [rows', columns'] ── compressor ── LLM

It is a function of the grid alone, and of a few numbers that stand in the processor's settings too: the
processor inserts as many placeholders before anything is computed. A part that makes a token of each
patch needs none of this.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .settings_oculi import called, chosen

Grid = tuple[int, int]


def fixed(rows: int, columns: int, side: int) -> Grid:
    """``side`` x ``side`` tokens, whatever the picture."""
    return side, side


def tiled(rows: int, columns: int, side: int, max_tiles: int) -> Grid:
    """A snapshot's tokens, then those of the picture's own patches, each row of them closed by one more.

    They are of two grids, so they count as one row.
    """
    high, wide = within_tiles(rows, columns, side, max_tiles)
    return 1, side * side + high * (wide + 1)


def within_tiles(rows: int, columns: int, side: int, max_tiles: int) -> Grid:
    """Rows and columns of patches at which a picture fills at most so many tiles.

    A picture that needs more is scaled down, by as little as some arrangement of tiles allows; one of a
    single row keeps it.

    Args:
        rows, columns: of the picture's patches.
        side: patches along a side of a tile.
        max_tiles: at least one.
    """
    if -(-rows // side) * -(-columns // side) <= max_tiles:
        return rows, columns
    shapes = [(high, max_tiles // high) for high in range(1, max_tiles + 1)]
    scale = max(min(h * side / rows, w * side / columns) for h, w in shapes)
    # A hair more, so that what fits to the patch is not rounded down by the last digit.
    high, wide = (max(1, int(n * scale + 1e-6)) for n in (rows, columns))
    return min(high, max_tiles * side), min(wide, max_tiles * side)


# What ``vision_tokens["kind"]`` of the image processor may name.
TOKEN_GRIDS: dict[str, Callable[..., Grid]] = {"fixed": fixed, "tiled": tiled}


def token_grid(settings: dict[str, Any] | None, rows: int, columns: int) -> Grid:
    """Rows and columns of the tokens of a picture.

    Args:
        settings: ``kind``, one of ``TOKEN_GRIDS``, and its numbers; None: a token a patch.
        rows, columns: of the picture's patches.

    Raises:
        ValueError: there is no such kind, or it takes no such numbers.
    """
    if settings is None:
        return rows, columns
    grid, numbers = chosen("vision_tokens", TOKEN_GRIDS, settings)
    return called("vision_tokens", grid, rows, columns, **numbers)


def token_grids(settings: dict[str, Any] | None, image_grids: Tensor) -> Tensor:
    """``token_grid`` of each image: [N, 2] int64 to [N, 2] int64."""
    if settings is None:
        return image_grids
    made = [token_grid(settings, rows, columns) for rows, columns in image_grids.tolist()]
    return torch.tensor(made, dtype=torch.int64, device=image_grids.device).reshape(-1, 2)
