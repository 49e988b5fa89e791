"""Rows as they would be without compression, and what a cache keeps of them: what fusion attends over.

    the LLM's row    a  b  #  #  c  d          # a token of the compressed image
    the wide row     a  b  p  p  p  p  c  d    p a patch of the same image, uncompressed

Patches stand where their image stands, so "before" means the same in both rows: a token that is
generated later, a second image, a second turn come behind what is there, and nothing has to be computed
again.

Shapes: B rows, T tokens, Q text tokens of the row that has most, W places of the widest wide row, K
places with those of the cache, P patches of all images, N images, D the LLM's width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

UNSEEN = "the cache was filled without fusion: fill it with this model, not with its llm alone"


@dataclass(frozen=True)
class WideRows:
    """Where the text and the patches of one call are.

    Attributes:
        text_BQ: int64 into T, the text tokens of a row in order; rows with fewer repeat the first.
        wide_BQ: int64 into W, where they are in the wide row.
        rank_BT: int64 into Q, of every text token; of others some number.
        is_text_BT: bool.
        source_BW: int64 into B * Q + P + 1: what is at a place. First all text tokens, then all
            patches, then nothing.
        patches_P: int64 into B * W, the place of every patch.
        token_BW: int64, the LLM's place of what is there, with those of the cache before it; -1 for
            padding. Of a patch, the first of its image.
        images_BW: int64, the image of a patch or -1.
        segments_BW: int64, the sample in a packed row, -1 for padding; None for one sample a row.
        branches_BW: int64, the branch in a sample, 0 for patches; None where none branches.
    """

    text_BQ: Tensor
    wide_BQ: Tensor
    rank_BT: Tensor
    is_text_BT: Tensor
    source_BW: Tensor
    patches_P: Tensor
    token_BW: Tensor
    images_BW: Tensor
    segments_BW: Tensor | None
    branches_BW: Tensor | None = None

    def gather_text(self, embeds_BTD: Tensor) -> Tensor:
        """[B, Q, D], the text tokens."""
        return embeds_BTD.gather(1, _wide_index(self.text_BQ, embeds_BTD))

    def put_text(self, embeds_BTD: Tensor, text_BQD: Tensor) -> Tensor:
        """``embeds_BTD`` with the text tokens replaced."""
        spread_BTD = text_BQD.gather(1, _wide_index(self.rank_BT, text_BQD))
        return torch.where(self.is_text_BT[..., None], spread_BTD, embeds_BTD)

    def widen(self, text_BQD: Tensor, vision_PD: Tensor) -> Tensor:
        """[B, W, D]: the wide rows; zeros where there is nothing."""
        nothing = text_BQD.new_zeros(1, text_BQD.shape[-1])
        flat = torch.cat([text_BQD.flatten(0, 1), vision_PD, nothing])
        return flat.index_select(0, self.source_BW.flatten()).view(*self.source_BW.shape, -1)

    def spread(self, vision_PD: Tensor) -> Tensor:
        """[B, W, D]: patches at their places, zeros elsewhere."""
        empty = vision_PD.new_zeros(self.source_BW.numel(), vision_PD.shape[-1])
        filled = empty.index_copy(0, self.patches_P, vision_PD)
        return filled.view(*self.source_BW.shape, -1)


def wide_rows(
    image_ids: Tensor,
    image_grids: Tensor | None,
    tokens_per_image: Sequence[int],
    valid_BT: Tensor,
    segment_ids: Tensor | None = None,
    branch_ids: Tensor | None = None,
    start: int = 0,
) -> WideRows:
    """The wide rows of one call.

    Args:
        image_ids: [B, T] int64, image of a token or -1; ids count up over the batch.
        image_grids: [N, 2] int on the CPU, or None for no image. Of several rows, which row an image is
            in is asked of the device: one synchronisation.
        tokens_per_image: of the LLM, N numbers.
        valid_BT: bool, False for padding.
        segment_ids, branch_ids: [B, T], or None for one sample a row and none that branches.
        start: tokens of the LLM's row that are in the cache.
    """
    rows, length = image_ids.shape
    device = image_ids.device
    patches = [] if image_grids is None else [int(n) for n in image_grids.prod(-1).tolist()]
    is_text = image_ids < 0
    before = torch.nn.functional.pad(image_ids, (1, 0), value=-1)[:, :-1]
    first = ~is_text & (image_ids != before)
    number = len(patches)
    patches_N = torch.tensor([*patches, 0]).to(device, non_blocking=True)
    of_image = image_ids.masked_fill(~first, number)  # a place behind the last for all others
    width = is_text.long() + patches_N[of_image]
    begin = width.cumsum(1) - width
    rank = is_text.cumsum(1) - 1
    row_BT = torch.arange(rows, device=device)[:, None].expand_as(image_ids)
    token_BT = torch.arange(length, device=device).expand_as(image_ids)
    row_N = _per_image(of_image, row_BT, number)
    row_of = [0] * number if rows == 1 else row_N.tolist()
    wide, text = [length] * rows, [length] * rows
    for row, wider, shorter in zip(row_of, patches, tokens_per_image, strict=True):
        wide[row] += wider - shorter
        text[row] -= shorter
    W, Q = max(wide, default=0), max(text, default=0)

    image_P = torch.tensor([i for i, n in enumerate(patches) for _ in range(n)], dtype=torch.int64)
    inside_P = torch.tensor([j for n in patches for j in range(n)], dtype=torch.int64)
    image_P, inside_P = (x.to(device, non_blocking=True) for x in (image_P, inside_P))
    places_P = row_N[image_P] * W + _per_image(of_image, begin, number)[image_P] + inside_P

    def at_places(of_text: Tensor, of_patches: Tensor, fill: int) -> Tensor:
        """[B, W] of what is known per token [B, T] of text and per patch [P]."""
        placed = _place(begin.masked_fill(~is_text, W), of_text, W, fill)
        return placed.flatten().index_copy(0, places_P, of_patches).view(rows, W)

    def at_ranks(values_BT: Tensor) -> Tensor:
        return _place(rank.masked_fill(~is_text, Q), values_BT, Q, 0)

    def of_patches(values_BT: Tensor) -> Tensor:
        return _per_image(of_image, values_BT, number)[image_P]

    token = (token_BT + start).masked_fill(~valid_BT, -1)

    def of_ids(ids: Tensor | None, fill: int) -> Tensor | None:
        return None if ids is None else at_places(ids, of_patches(ids), fill)

    total = rows * Q
    return WideRows(
        text_BQ=at_ranks(token_BT),
        wide_BQ=at_ranks(begin),
        rank_BT=rank.clamp(0),
        is_text_BT=is_text,
        source_BW=at_places(
            row_BT * Q + rank, total + torch.arange(len(image_P), device=device), total + len(image_P)
        ),
        patches_P=places_P,
        token_BW=at_places(token, of_patches(token), -1),
        images_BW=at_places(torch.full_like(image_ids, -1), image_P, -1),
        segments_BW=of_ids(segment_ids, -1),
        branches_BW=of_ids(branch_ids, 0),
    )  # fmt: skip


def _per_image(of_image_BT: Tensor, values_BT: Tensor, number: int) -> Tensor:
    """[N], the value at each image's first token."""
    found = values_BT.new_zeros(number + 1)
    return found.scatter(0, of_image_BT.flatten(), values_BT.flatten())[:number]


def _place(index_BT: Tensor, values_BT: Tensor, size: int, fill: int) -> Tensor:
    """[B, size] with values at their index; those at index ``size`` are dropped."""
    found = values_BT.new_full((len(index_BT), size + 1), fill)
    return found.scatter(1, index_BT, values_BT)[:, :size]


def _wide_index(index: Tensor, like: Tensor) -> Tensor:
    return index[..., None].expand(-1, -1, like.shape[-1])


@dataclass
class Memory:
    """Keys and values of fusion, and what stands at their places.

    Attributes:
        tokens: T of all calls.
        token_BK, is_patch_BK: of every place; see ``WideRows.token_BW``.
        states: by layer of the fusion, keys and values [B, heads, K, d].
    """

    tokens: int = 0
    token_BK: Tensor | None = None
    is_patch_BK: Tensor | None = None
    states: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def extend(self, wide: WideRows, tokens: int) -> int:
        """Take in the places of a call of so many tokens; returns how many were there before."""
        before = 0 if self.token_BK is None else self.token_BK.shape[1]
        is_patch = wide.images_BW >= 0
        if self.token_BK is None or self.is_patch_BK is None:
            self.token_BK, self.is_patch_BK = wide.token_BW, is_patch
        else:
            self.token_BK = torch.cat([self.token_BK, wide.token_BW], 1)
            self.is_patch_BK = torch.cat([self.is_patch_BK, is_patch], 1)
        self.tokens += tokens
        return before

    def add(self, layer: str, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's keys and values of all places, those of this call last."""
        if layer in self.states:
            old = self.states[layer]
            keys, values = torch.cat([old[0], keys], -2), torch.cat([old[1], values], -2)
        self.states[layer] = keys, values
        return keys, values


class FusionLayer(CacheLayerMixin):
    """The fusion's memory as one more layer of the LLM's cache, behind those of its blocks.

    So it goes wherever the cache goes: ``generate``, beams (``reorder_cache``), repeated and chosen
    rows, ``crop`` for rejected drafts, ``reset``, a second turn. A cropped place stays and is masked,
    since one token of the LLM may be many places here, in each row others.

    Args:
        first: the cache's first layer. An offloaded cache fetches the next layer while one works, and
            behind the last block's it would otherwise find this one, which is never away.
    """

    is_sliding = False
    is_croppable = True
    # A cache is what all of its layers are: what the LLM's say must stand. Of a static cache that is not
    # one, transformers would drop the mask of a single token, and it would see places not yet written.
    is_compileable = True
    supports_early_init = False

    def __init__(self, first: CacheLayerMixin) -> None:
        super().__init__()
        self.first = first
        self.memory = Memory()
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: keys come through the memory."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Not for a block of the LLM.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("the LLM has more blocks than its configuration says")

    def get_seq_length(self) -> int:
        """Tokens of the LLM's row."""
        return self.memory.tokens

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As of a layer that grows."""
        return self.memory.tokens + query_length, 0

    def get_max_length(self) -> int:
        """None."""
        return -1

    def offload(self) -> None:
        """Stays where it is: it is small beside the LLM's."""

    def prefetch(self) -> None:
        """Fetch the first block's layer, whose turn is next."""
        self.first.prefetch()

    def reset(self) -> None:
        """Forget all."""
        self.memory = Memory()

    def crop(self, tokens_to_remove: int) -> None:
        """Mask what came with the last tokens, given as a number below zero."""
        memory = self.memory
        memory.tokens = max(0, memory.tokens - abs(tokens_to_remove))
        if memory.token_BK is not None:
            memory.token_BK = memory.token_BK.masked_fill(memory.token_BK >= memory.tokens, -1)

    def _rows(self, choose: Any) -> None:
        memory = self.memory
        if memory.token_BK is not None and memory.is_patch_BK is not None:
            memory.token_BK, memory.is_patch_BK = (
                choose(memory.token_BK), choose(memory.is_patch_BK),
            )  # fmt: skip
        memory.states = {n: (choose(k), choose(v)) for n, (k, v) in memory.states.items()}

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row ``beam_idx[i]`` was."""
        self._rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every row ``repeats`` times."""
        self._rows(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Only these rows."""
        self._rows(lambda x: x[indices])


def memory_of(cache: Cache | None, blocks: int) -> Memory:
    """The memory in a cache, which gets one if it is empty; without a cache, one for this call.

    Args:
        cache: of the LLM, or None.
        blocks: of the LLM.

    Raises:
        ValueError: the cache holds tokens that fusion has not seen.
    """
    if cache is None:
        return Memory()
    if len(cache.layers) > blocks:
        layer = cache.layers[blocks]
        if not isinstance(layer, FusionLayer):
            raise ValueError(f"the cache has more layers than the LLM's {blocks} blocks")
        length = (
            cache.get_seq_length()
        )  # a tensor where the cache is static: not asked for its value
        if isinstance(length, int) and length != layer.memory.tokens:
            raise ValueError(UNSEEN)
        return layer.memory
    if cache.layers and int(cache.get_seq_length()) > 0:
        raise ValueError(UNSEEN)
    while len(cache.layers) < blocks:  # they would come one by one
        cache.layers.append(cache.layer_class_to_replicate())
    cache.layers.append(FusionLayer(cache.layers[0]))
    return cache.layers[blocks].memory
