"""FlexAttention's block mask from spans: linear in tokens, no T x T table of who sees whom.

What a token may see is one stretch of keys, from the begin of its sample to itself or, inside an image,
to the image's end. The first and last key of each give the blocks of keys that a block of queries needs,
and those that all of its queries see whole, for which the kernel asks no further. Under ``mutual`` an
image also sees the prompt behind it but not the images between: there the stretch is an outer bound, and
the kernel asks the mask function about every pair in it.

Shapes: B rows, T tokens, Q queries, K keys; N = blocks of queries, M = blocks of keys.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

BLOCK = 128


@dataclass(frozen=True)
class Spans:
    """First and last key [B, Q] that each query may see; ``exact``: and all between them."""

    first: Tensor
    last: Tensor
    exact: bool

    def of_columns(self, columns_BM: Tensor) -> "Spans":
        """Of the queries in these columns alone [B, M]."""
        return Spans(self.first.gather(1, columns_BM), self.last.gather(1, columns_BM), self.exact)


def key_spans(
    policy: str,
    images_BT: Tensor,
    segments_BT: Tensor | None = None,
    prompt_BT: Tensor | None = None,
    branches: bool = False,
) -> Spans:
    """What ``mask_function`` of the same arguments allows, without a cache; see there.

    Args:
        branches: samples branch; what a branch does not see lies within its stretch.
    """
    rows, length = images_BT.shape
    index = torch.arange(length, device=images_BT.device).expand(rows, length)
    segments_BT = torch.zeros_like(images_BT) if segments_BT is None else segments_BT
    first, last = begins(segments_BT, index), index
    if policy == "causal":
        return Spans(first, last, exact=not branches)
    is_image = images_BT >= 0
    last = torch.where(is_image, _ends(images_BT, index), index)
    if policy == "bidirectional":
        return Spans(first, last, exact=not branches)
    assert prompt_BT is not None
    prompt = torch.where(prompt_BT.bool() & ~is_image, index, -1).cummax(1).values
    prompt = prompt.gather(
        1, _ends(segments_BT, index)
    )  # of the sample; or one before it, too small
    return Spans(first, torch.where(is_image, last.maximum(prompt), last), exact=False)


def begins(ids_BT: Tensor, index: Tensor) -> Tensor:
    """Index of the first token of the run of equal ids that each token is in."""
    changes = ids_BT != ids_BT.roll(1, 1)
    return torch.where(changes, index, 0).cummax(1).values


def skipped(branches_BT: Tensor, index: Tensor) -> Tensor:
    """Tokens of other branches between what a sample shares and the branch that a token is in."""
    begin = begins(branches_BT, index)
    first = torch.where(branches_BT == 1, begin, 0).cummax(1).values  # of the sample's branches
    return torch.where(branches_BT > 0, begin - first, 0)


def _ends(ids_BT: Tensor, index: Tensor) -> Tensor:
    """Index of the last one."""
    last = ids_BT.shape[1] - 1
    return last - begins(ids_BT.flip(1), index).flip(1)


def block_mask(
    function: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor], spans: Spans, keys: int
) -> BlockMask:
    """The block mask of queries with these spans over ``keys`` keys.

    Args:
        function: what ``mask_function`` returned, asked inside of blocks that are not seen whole.
        spans: as ``key_spans`` gave them for the same arguments.
    """
    queries = spans.first.shape[1]
    padding, far = -queries % BLOCK, keys + BLOCK

    def of_blocks(side: Tensor, fill: int) -> Tensor:
        return F.pad(side, (0, padding), value=fill).unflatten(1, (-1, BLOCK))

    # What a padded query sees must not widen a block; a block that has one is not seen whole.
    needed = of_blocks(spans.first, far).amin(2), of_blocks(spans.last, -1).amax(2)
    whole = of_blocks(spans.first, far).amax(2), of_blocks(spans.last, -1).amin(2)
    block = torch.arange(-(-keys // BLOCK), device=spans.first.device)
    start, end = block * BLOCK, block * BLOCK + BLOCK - 1
    needed_BNM = (end >= needed[0][..., None]) & (start <= needed[1][..., None])
    whole_BNM = (start >= whole[0][..., None]) & (end <= whole[1][..., None])
    if not spans.exact:
        whole_BNM = torch.zeros_like(whole_BNM)
    partial = _ordered(needed_BNM & ~whole_BNM)
    return BlockMask.from_kv_blocks(
        *partial,
        *_ordered(whole_BNM),
        BLOCK_SIZE=BLOCK,
        mask_mod=function,
        seq_lengths=(queries, keys),
    )


def _ordered(blocks_BNM: Tensor) -> tuple[Tensor, Tensor]:
    """Number of blocks of keys [B, 1, N], and their indices [B, 1, N, M], those that count first."""
    number = blocks_BNM.sum(-1, dtype=torch.int32)
    indices = blocks_BNM.int().argsort(dim=-1, descending=True, stable=True).int()
    return number[:, None], indices[:, None].contiguous()
