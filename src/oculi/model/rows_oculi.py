"""Only what is read: the label rows through the LM head, and, where it pays, through the last block.

In the last block every token still gives keys and values, but only label rows need a query, an output
projection and an MLP: nothing reads the others. No LLM class is forked for that. The block runs twice
through its own ``forward``, with a stand-in for the cache that every class hands keys and values to:

    1. all tokens [B, T, D]: the stand-in takes keys and values, rotated as the class does, and stops it
    2. label rows as one row [1, R, D]: the stand-in answers with keys and values of all B * T tokens,
       and a mask [1, 1, R, B * T] keeps rows of the batch apart

A class that hands nothing over simply runs to its end in 1, and its output is used.

Shapes: B rows, T tokens, R label rows, D the LLM's width.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

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


class _Give:
    """A cache that answers with keys and values [B, heads, T, d] of all tokens as one row."""

    def __init__(self, states: tuple[Tensor, Tensor]) -> None:
        self.states = tuple(state.transpose(0, 1).flatten(1, 2)[None] for state in states)

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.states


def mask_of_rows(function: MaskFunction, label_rows: Tensor, length: int) -> MaskFunction:
    """``function`` for queries ``label_rows`` and, as keys, all rows of ``length`` tokens as one."""

    def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        place = label_rows[query]
        batch_row = place // length
        inside = function(batch_row, head, place % length, key % length)
        return inside & (batch_row == key // length)

    return allowed


def pays(block: nn.Module, rows: int, batch: int, length: int, width: int) -> bool:
    """Whether the last block is cheaper for ``rows`` of ``batch * length`` tokens than for all.

    What is saved is its matrices' work on the other tokens; what is paid is attention over keys of other
    rows of the batch (two products, multiply-accumulates).
    """
    tokens = batch * length
    matrices = sum(p.numel() for p in block.parameters() if p.ndim == 2)
    return rows > 0 and (tokens - rows) * matrices > 2 * rows * (tokens - length) * width


@contextmanager
def only_rows(
    head: nn.Module,
    label_rows: Tensor,
    block: nn.Module | None,
    mask: Any,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Iterator[None]:
    """Let the LM head, and ``block`` if given, compute the label rows alone, inside the LLM's own
    forward: soft caps, scales and whatever else a family does to its logits stay in place.

    Args:
        head: the LM head.
        label_rows: [R] int64 into B * T.
        block: the last block, or None where its other outputs are read or it does not pay.
        mask: of the block's label rows over all keys, from ``mask_of_rows``.
        around: entered while the block computes the label rows.
    """
    done: list[bool] = []  # whether the block has chosen the rows already

    def select(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor] | None:
        if done:
            return None
        return (args[0].flatten(0, 1).index_select(0, label_rows)[None],)

    def rows_of_block(hidden_BTD: Tensor, *args: Any, **kwargs: Any) -> Any:
        assert block is not None
        # The class's own: whatever recomputes or compiles blocks would gain nothing here.
        forward = type(block).forward.__get__(block)
        if not _can_choose(hidden_BTD, args, kwargs):
            return forward(hidden_BTD, *args, **kwargs)
        take = _Take()
        try:
            return forward(hidden_BTD, **{**kwargs, "past_key_values": take})
        except _Handed:
            done.append(True)
        chosen = _choose(kwargs, len(hidden_BTD), label_rows)
        chosen |= {"attention_mask": mask, "past_key_values": _Give(take.states)}
        with around():
            return forward(_rows(hidden_BTD, label_rows), **chosen)

    handle = head.register_forward_pre_hook(select)
    with _forward_of(block, rows_of_block):
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


def _choose(kwargs: dict[str, Any], batch: int, label_rows: Tensor) -> dict[str, Any]:
    """The block's arguments for the label rows."""
    rotation = tuple(
        _rows(part.expand(batch, -1, -1), label_rows) for part in kwargs["position_embeddings"]
    )
    chosen = {**kwargs, "position_embeddings": rotation}
    if isinstance(positions := kwargs.get("position_ids"), Tensor):
        chosen["position_ids"] = _rows(positions.expand(batch, -1)[..., None], label_rows)[..., 0]
    return chosen


def _rows(states_BTD: Tensor, label_rows: Tensor) -> Tensor:
    return states_BTD.flatten(0, 1).index_select(0, label_rows)[None]
