"""Attention in blocks of queries, each with the keys that it may see: for training on a CPU.

A packed row is mostly places that a token may not see: other samples, and what comes later. Eager
attention computes all of them, in float32 wherever the mask is. Here a block of queries computes from
the first key that one of them sees to the last, in the dtype of its products:

    two samples in a row, blocks of 4 queries; ``x`` may be seen, ``.`` is computed for nothing, and what
    is blank is not computed at all

        x . . .
        x x . .
        x x x .
        x x x x
        x x x x x . .
        . . . . . x .
        . . . . . x x
              ...

It is an attention implementation as transformers has them, under the name ``blocked``: any LLM that can
switch between eager attention and SDPA takes it.

Shapes: B rows, H heads, H_kv of keys and values, G heads to each of these, T queries, K keys, d a head's
width, b the queries of a block.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

BLOCKED = "blocked"
BLOCK = 128  # queries; fewer compute less, and call more
# Keys begin and end at a multiple of this: each new shape of a product makes a kernel, and keeps it.
EVEN = 64


class Block(NamedTuple):
    """Queries ``start`` to ``stop`` and the keys ``first`` to ``last`` that they may see.

    Attributes:
        bias: [B, 1, 1, b, last - first], 0 where a query sees a key, else the least finite value.
    """

    start: int
    stop: int
    first: int
    last: int
    bias: Tensor


def blocked_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Softmax attention, as transformers calls it.

    Args:
        module: the attention layer.
        query: [B, H, T, d]. key, value: [B, H_kv, K, d].
        attention_mask: [B, 1, T, K] bool from ``blocked_mask``; None: every query sees all keys.
        scaling: of the scores; None: one over the root of d.
        dropout: of the weights.

    Returns:
        [B, T, H, d], and no weights.

    Raises:
        ValueError: the LLM caps its scores or has sinks.
    """
    if softcap is not None or s_aux is not None:
        raise ValueError(
            "blocked attention knows neither soft caps nor sinks, and this LLM has them: load it with "
            'attn_implementation="eager"'
        )
    rows, heads, _, width = query.shape
    groups = heads // key.shape[1]
    dtype = _dtype_of_products(query)  # else autocast would do it block by block
    query = (
        (query * (width**-0.5 if scaling is None else scaling)).to(dtype).unflatten(1, (-1, groups))
    )
    keys_t, value = key.to(dtype).transpose(2, 3), value.to(dtype)
    done = []
    for start, stop, first, last, bias in _blocks(attention_mask, query, key):
        # The heads of a group are more queries of one head: nothing is repeated for them.
        few = query[:, :, :, start:stop].reshape(rows, -1, groups * (stop - start), width)
        scores = (few @ keys_t[..., first:last]).unflatten(2, (groups, -1))
        # In place: neither product needs its result to go back.
        weights = scores.add_(bias).softmax(-1)
        weights = nn.functional.dropout(weights, dropout, module.training).flatten(2, 3)
        read = (weights @ value[:, :, first:last]).unflatten(2, (groups, -1))
        done.append(read.permute(0, 3, 1, 2, 4))
    return torch.cat(done, 1).flatten(2, 3), None


def blocked_mask(*args: Any, **kwargs: Any) -> Tensor:
    """[B, 1, T, K] bool, for the arguments of any mask function of transformers."""
    skips = {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}
    mask: Tensor = sdpa_mask(*args, **{**kwargs, **skips})
    return mask


def _dtype_of_products(states: Tensor) -> torch.dtype:
    device = states.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else states.dtype


def _blocks(mask: Tensor | None, query: Tensor, key: Tensor) -> list[Block]:
    """Those of a call; a mask keeps its own, as all layers share it."""
    if mask is None:
        return [Block(0, query.shape[3], 0, key.shape[2], query.new_zeros(1, 1, 1, 1, 1))]
    kept: dict[torch.dtype, list[Block]] = vars(mask).setdefault("blocks", {})
    if query.dtype not in kept:
        starts = range(0, mask.shape[2], BLOCK)
        kept[query.dtype] = [_block(mask, start, query.dtype) for start in starts]
    return kept[query.dtype]


def _block(mask: Tensor, start: int, dtype: torch.dtype) -> Block:
    allowed = mask[:, :, start : start + BLOCK]
    stop, first, last = start + allowed.shape[2], 0, mask.shape[3]
    if mask.shape[2] > BLOCK:
        seen = allowed.flatten(0, 2).any(0).nonzero()
        # A row of padding may see nothing; what it gives is not read, but it must be a number.
        first, last = (int(seen[0]), int(seen[-1]) + 1) if len(seen) else (0, 1)
        first, last = first // EVEN * EVEN, min(last + -last % EVEN, mask.shape[3])
    least = torch.finfo(dtype).min
    bias = torch.zeros(allowed[..., first:last].shape, dtype=dtype, device=mask.device)
    return Block(
        start, stop, first, last, bias.masked_fill_(~allowed[..., first:last], least)[:, None]
    )


AttentionInterface.register(BLOCKED, blocked_attention)
AttentionMaskInterface.register(BLOCKED, blocked_mask)
