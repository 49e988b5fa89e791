"""The masks of one call, from ids and the cache's geometry, and the rows that the last block computes.

Shapes: B rows, T tokens, K keys, D the LLM's width, R label rows, M of them in the row that has most.
"""

from collections.abc import Sized
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache

from .masks_oculi import build_mask, mask_function
from .rows_oculi import Chosen, most_in_a_row, pays
from .spans_oculi import key_spans


def rows_of_last_block(
    text_config: Any,
    blocks: nn.ModuleList,
    label_rows: Tensor | None,
    most: int | None,
    tapped: Sized,
    cache: Cache | None,
    embeds: Tensor,
) -> Chosen | None:
    """The rows that the last block computes, None for all; see ``rows_oculi.py``.

    Args:
        text_config: of the LLM. blocks: its own.
        label_rows: [R] int64 into B * T, or None.
        most: M; None: to be counted.
        tapped: the blocks whose outputs are read.
        cache: None in training.
        embeds: [B, T, D].
    """
    last = len(blocks) - 1
    if label_rows is None or cache is not None or last in tapped:  # type: ignore[operator]
        return None
    if "flash" in text_config._attn_implementation or not len(label_rows):
        return None  # flash attention takes no mask
    rows, length = embeds.shape[:2]
    most = most_in_a_row(label_rows, rows, length) if most is None else most
    if not pays(rows * most, rows * length):
        return None
    return Chosen.of(label_rows, rows, length, most)


def masks_of_call(
    config: Any,
    embeds: Tensor,
    image_ids: Tensor | None,
    attention_mask: Tensor | None,
    segment_ids: Tensor | None,
    branch_ids: Tensor | None,
    prompt_mask: Tensor | None,
    cache: Cache | None,
    chosen: Chosen | None,
) -> tuple[Any, Any]:
    """The 4-D or block masks, of all tokens and of ``chosen`` ones in the last block.

    The model builds them itself, so that no path can lose the images.

    Args:
        config: of the model.
        embeds: [B, T, D].
        image_ids, attention_mask, segment_ids, branch_ids, prompt_mask, cache: as ``forward`` of the
            model has them.
        chosen: what ``rows_of_last_block`` returned.
    """
    rows, length = embeds.shape[:2]
    offset = cache.get_seq_length() if cache is not None else 0
    kv_length, kv_offset = cache.get_mask_sizes(length, 0) if cache is not None else (length, 0)
    policy = config.image_attention if image_ids is not None else "causal"
    plain = policy == "causal" and segment_ids is None
    if image_ids is None:
        image_ids = torch.full((rows, length), -1, device=embeds.device)
    if segment_ids is not None and attention_mask is not None:
        raise ValueError("pass segment_ids or attention_mask, not both")
    if branch_ids is not None and segment_ids is None:
        raise ValueError("branch_ids go with segment_ids: pass both, as a batch does")
    build = partial(build_mask, config.text_config, dtype=embeds.dtype, device=embeds.device)
    function = mask_function(policy, image_ids, segment_ids, prompt_mask, offset, branch_ids)
    spans = None
    if cache is None and attention_mask is None:
        branches = branch_ids is not None
        spans = partial(key_spans, policy, image_ids, segment_ids, prompt_mask, branches)
    mask = build(
        function,
        attention_mask,
        shape_BT=(rows, length),
        kv_length=kv_length,
        q_offset=offset,
        kv_offset=kv_offset,
        plain=plain,
        spans=spans,
    )
    if chosen is None:
        return mask, None
    mask_of_chosen = build(
        chosen.mask(function),
        attention_mask,
        shape_BT=chosen.shape,
        kv_length=length,
        q_offset=0,
        kv_offset=0,
        plain=False,
        spans=spans and (lambda: spans().of_columns(chosen.columns_BM)),
    )
    return mask, mask_of_chosen
