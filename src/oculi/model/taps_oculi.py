"""What objectives read while the model runs: a reducer's result, and nothing else.

Of the LLM's blocks a reducer is given their output on vision tokens; under ``VISION`` it is given what
the LLM is given of the images.

Shapes: B rows, T tokens, D the LLM's width, S vision tokens of the whole batch, N images of s each.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .recompute_oculi import recomputing

Reducer = Callable[[Any], Any]
VISION = "vision"  # the tap that reads ``Seen``


@dataclass(frozen=True)
class Seen:
    """What the LLM is given of the images.

    Attributes:
        tokens_SD: of all images in order, as the LLM reads them.
        counts: tokens of each image.
        pooled_ND: one embedding of each whole image, from a vision part that makes it; or None.
    """

    tokens_SD: Tensor
    counts: tuple[int, ...]
    pooled_ND: Tensor | None = None

    def of_each(self) -> list[tuple[Tensor, Tensor]]:
        """Tokens [s, D] and embedding [D] of each image; the mean of its tokens where there is none."""
        tokens = self.tokens_SD.split(self.counts)
        if self.pooled_ND is None:
            return [(each, each.mean(0)) for each in tokens]
        return list(zip(tokens, self.pooled_ND, strict=True))


@contextmanager
def tapping(
    taps: Mapping[int, Reducer],
    blocks: nn.ModuleList,
    rows: Tensor,
    embeds: Tensor,
    results: dict[int | str, Any],
) -> Iterator[None]:
    """Hooks that hand a block's output on vision tokens to its reducer and keep only the result.

    The output itself is kept in any case, by the next block; the copy of its vision tokens and what
    the reducer makes of them is computed again, but for narrow products such as a head's.

    Args:
        taps: reducers by block; -1 is the input of block 0.
        blocks: the LLM's.
        rows: [S] int64 into B * T, the vision tokens.
        embeds: [B, T, D], that input.
        results: gets what the reducers return, by block.
    """

    def reduce(block: int, hidden_BTD: Tensor) -> Any:
        return taps[block](hidden_BTD.flatten(0, 1).index_select(0, rows))

    if torch.is_grad_enabled():
        reduce = recomputing(reduce, "selective")

    def hook(block: int) -> Callable[..., None]:
        def read(module: nn.Module, args: Any, output: Any) -> None:
            results[block] = reduce(block, output[0] if isinstance(output, tuple) else output)

        return read

    if -1 in taps:
        results[-1] = reduce(-1, embeds)
    handles = [blocks[i].register_forward_hook(hook(i)) for i in taps if i >= 0]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
