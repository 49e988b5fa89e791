"""Only what is read: the label rows through the LM head, and, where it pays, through the last block.

In the last block every token still gives keys and values, but only label rows need a query, an output
projection and an MLP: nothing reads the others. No LLM class is forked for that. The block runs twice
through its own ``forward``, with a stand-in for the cache that every class hands keys and values to:

    1. all tokens [B, T, D]: the stand-in takes keys and values, rotated as the class does, and stops it
    2. label rows [B, M, D], those of each row of the batch, filled up to the most that one has: the
       stand-in answers with the keys and values of 1, and the mask is [B, 1, M, T]

A class that hands nothing over simply runs to its end in 1, and its output is used.

Shapes: B rows, T tokens, R label rows, M of them in the row that has most, D the LLM's width.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .masks_oculi import MaskFunction


class _Handed(Exception):
    """Keys and values have reached the stand-in; nothing behind them is needed."""


class _Take:
    """A cache that keeps what it is given and stops the block."""

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.states = keys, values
        raise _Handed


def keys_and_values(run: Callable[[Any], Any]) -> tuple[Tensor, Tensor]:
    """Those that a block hands to its cache; ``run`` runs it with what stands in for one, up to there.

    Raises:
        RuntimeError: the block hands nothing over.
    """
    take = _Take()
    try:
        run(take)
    except _Handed:
        return take.states
    raise RuntimeError("the LLM's block hands no keys and values to its cache")


class Give:
    """A cache that answers with these keys and values, whatever it is given."""

    def __init__(self, states: tuple[Tensor, Tensor]) -> None:
        self.states = states

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.states


@dataclass(frozen=True)
class Chosen:
    """Label rows where they stand in the batch.

    Attributes:
        columns_BM: [B, M] int64 into T; rows that have fewer repeat their greatest.
        places_R: [R] int64 into B * M, in the order of ``label_rows``.
        length: T.
    """

    columns_BM: Tensor
    places_R: Tensor
    length: int

    @classmethod
    def of(cls, label_rows: Tensor, batch: int, length: int, most: int) -> "Chosen":
        """Of ``label_rows`` [R] int64 into B * T, of which one row has ``most``, the others fewer."""
        row_R, column_R = label_rows // length, label_rows % length
        mine_RB = row_R[:, None] == torch.arange(batch, device=label_rows.device)
        before_R = mine_RB.cumsum(0).gather(1, row_R[:, None])[:, 0] - 1  # of the same row
        places_R = row_R * most + before_R
        last_B = column_R.new_zeros(batch).scatter_reduce(0, row_R, column_R, "amax")
        columns = last_B.repeat_interleave(most).index_copy(0, places_R, column_R)
        return cls(columns.view(batch, most), places_R, length)

    def of_rows(self, states_BTD: Tensor) -> Tensor:
        """The label rows' [B, M, D]; ``states_BTD`` may have one row that stands for all."""
        states_BTD = states_BTD.expand(len(self.columns_BM), -1, -1)
        return states_BTD.flatten(0, 1).index_select(0, self.tokens).unflatten(0, self.shape)

    @property
    def shape(self) -> tuple[int, int]:
        """B and M."""
        rows, most = self.columns_BM.shape
        return rows, most

    @property
    def tokens(self) -> Tensor:
        """[B * M] int64 into B * T."""
        first_B = torch.arange(len(self.columns_BM), device=self.columns_BM.device) * self.length
        return (first_B[:, None] + self.columns_BM).flatten()

    def mask(self, function: MaskFunction) -> MaskFunction:
        """``function`` for label rows as queries."""

        def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return function(row, head, self.columns_BM[row, query], key)

        return allowed


def most_in_a_row(label_rows: Tensor, batch: int, length: int) -> int:
    """M; on a device, it has to be waited for."""
    if batch == 1:
        return len(label_rows)
    return int(torch.bincount(label_rows // length, minlength=1).max())


def pays(slots: int, tokens: int) -> bool:
    """Whether the last block is cheaper for ``slots`` of ``tokens``.

    What the second run saves on the others is their output projection and MLP; what it costs is the
    label rows' queries, keys and values once more.
    """
    return 0 < 2 * slots <= tokens


@contextmanager
def only_rows(
    head: nn.Module,
    label_rows: Tensor,
    block: nn.Module | None,
    chosen: Chosen | None,
    mask: Any,
    around: Callable[[Chosen], AbstractContextManager[None]],
) -> Iterator[None]:
    """Let the LM head, and ``block`` if given, compute the label rows alone, inside the LLM's own
    forward: soft caps, scales and whatever else a family does to its logits stay in place.

    Args:
        head: the LM head.
        label_rows: [R] int64 into B * T.
        block: the last block.
        chosen: the label rows as the block computes them; None where its other outputs are read, or
            it does not pay.
        mask: of these label rows, from ``Chosen.mask``.
        around: what to enter while the block computes them.
    """
    done: list[Tensor] = []  # where the label rows are, once the block has chosen them

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        index = done[0] if done else label_rows
        return (args[0].flatten(0, 1).index_select(0, index)[None],)

    def rows_of_block(hidden_BTD: Tensor, *args: Any, **kwargs: Any) -> Any:
        assert block is not None and chosen is not None
        # The class's own: whatever recomputes or compiles blocks would gain nothing here.
        forward = type(block).forward.__get__(block)
        if not _can_choose(hidden_BTD, args, kwargs):
            return forward(hidden_BTD, *args, **kwargs)
        take = _Take()
        try:
            return forward(hidden_BTD, **{**kwargs, "past_key_values": take})
        except _Handed:
            done.append(chosen.places_R)
        of_rows = _choose(kwargs, chosen)
        of_rows |= {"attention_mask": mask, "past_key_values": Give(take.states)}
        with around(chosen):
            return forward(chosen.of_rows(hidden_BTD), **of_rows)

    handle = head.register_forward_pre_hook(select)
    with _forward_of(block if chosen is not None else None, rows_of_block):
        try:
            yield
        finally:
            handle.remove()


@contextmanager
def _forward_of(block: Any, forward: Callable[..., Any]) -> Iterator[None]:
    """``forward`` in place of the block's; hooks, and whoever wraps the block, see no difference."""
    if block is None:
        yield
        return
    before = {
        key: vars(block)[key] for key in ("forward", "gradient_checkpointing") if key in vars(block)
    }
    block.forward = forward
    block.gradient_checkpointing = False  # it would take the stand-in for a real cache and drop it
    try:
        yield
    finally:
        del block.forward, block.gradient_checkpointing
        for key, value in before.items():
            setattr(block, key, value)


def _can_choose(hidden_BTD: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether what the block is given can be told by row: it is what Llama and its kin are given."""
    rotation = kwargs.get("position_embeddings")
    return (
        not args
        and "past_key_values" in kwargs
        and kwargs["past_key_values"] is None
        and isinstance(rotation, tuple)
        and all(part.ndim == 3 and part.shape[1] == hidden_BTD.shape[1] for part in rotation)
    )


def _choose(kwargs: dict[str, Any], chosen: Chosen) -> dict[str, Any]:
    """The block's arguments for the label rows."""
    rotation = tuple(chosen.of_rows(part) for part in kwargs["position_embeddings"])
    of_rows = {**kwargs, "position_embeddings": rotation}
    if isinstance(positions := kwargs.get("position_ids"), Tensor):
        of_rows["position_ids"] = chosen.of_rows(positions[..., None])[..., 0]
    return of_rows
