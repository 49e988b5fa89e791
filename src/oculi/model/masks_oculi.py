"""Who may attend to whom: one rule for training, prefill, decoding and export.

A packed row with two samples. Sample A: text ``a``, image 0 (``##``), text ``b``, image 1, text
``c``. Sample B: text ``d``. A row of the picture is a query, a column a key; ``x`` may attend.

    causal                     bidirectional              mutual (``a`` and ``b`` are prompt)

        a # # b # # c d            a # # b # # c d            a # # b # # c d
    a   x . . . . . . .        a   x . . . . . . .        a   x . . . . . . .
    #0  x x . . . . . .        #0  x x x . . . . .        #0  x x x x . . . .
    #0  x x x . . . . .        #0  x x x . . . . .        #0  x x x x . . . .
    b   x x x x . . . .        b   x x x x . . . .        b   x x x x . . . .
    #1  x x x x x . . .        #1  x x x x x x . .        #1  x x x x x x . .
    #1  x x x x x x . .        #1  x x x x x x . .        #1  x x x x x x . .
    c   x x x x x x x .        c   x x x x x x x .        c   x x x x x x x .
    d   . . . . . . . x        d   . . . . . . . x        d   . . . . . . . x

Images are blocks by *id*, not by runs of tokens, so two adjacent images stay apart (VoRA, section
3.3 and figure 3). ``mutual`` lets an image also read the prompt that follows it, never an answer:
what an answer's token has written must not flow back into the states that predict it.

A sample may branch: behind what its turns share (``p``, an image, branch 0) they stand side by side, and
none sees another. Here turn 1 is ``e`` ``f``, turn 2 ``g`` ``h``; under ``bidirectional``:

        p # # e f g h
    p   x . . . . . .
    #0  x x x . . . .
    #0  x x x . . . .
    e   x x x x . . .
    f   x x x x x . .
    g   x x x . . x .
    h   x x x . . x x

Shapes: B rows, T tokens of this call, K keys (T plus what the cache holds).
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from .spans_oculi import Spans, block_mask

POLICIES = ("causal", "bidirectional", "mutual")

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def mask_function(
    policy: str,
    images_BT: Tensor,
    segments_BT: Tensor | None = None,
    prompt_BT: Tensor | None = None,
    offset: int | Tensor = 0,
    branches_BT: Tensor | None = None,
) -> MaskFunction:
    """The policy as a function of (row, head, query, key) indices, as transformers and flex take it.

    Args:
        policy: one of ``POLICIES``.
        images_BT: int, the image a token belongs to, -1 for text. Ids are unique in a row.
        segments_BT: int, the sample a token belongs to, -1 for padding; None for one sample a row.
            Not together with a cache (``offset`` > 0).
        prompt_BT: bool, tokens of the prompt; needed by ``mutual``.
        offset: absolute index of this call's first token: the number of keys in the cache.
        branches_BT: int, 0 for what all of a sample see, k > 0 for what branch k alone sees; None: no
            sample branches. Not together with a cache either.

    Raises:
        ValueError: ``mutual`` without ``prompt_BT``, or with branches, of which an image would have to
            read several prompts.
    """
    if policy == "mutual" and branches_BT is not None:
        raise ValueError(
            "under the mask policy mutual images read the prompt: no sample may branch"
        )
    if policy == "mutual" and prompt_BT is None:
        raise ValueError(
            "the mask policy mutual needs prompt_mask, or answers would leak into image states: "
            "pass what OculiProcessor returned"
        )
    last = images_BT.shape[1] - 1

    def local(indices: Tensor) -> Tensor:
        # Keys from the cache and beyond (static caches are longer) have no id here; clamped, their
        # value is never used because `here` is False for them.
        return (indices - offset).clamp(0, last)

    def allowed(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        q, k = local(query), local(key)
        causal = key <= query
        result = causal
        here = (key >= offset) & (key <= offset + last)
        if policy != "causal":
            image_q = images_BT[row, q]
            block = (image_q >= 0) & (image_q == images_BT[row, k])
            if policy == "mutual":
                assert prompt_BT is not None
                block = block | (
                    (image_q >= 0) & prompt_BT[row, k].bool() & (images_BT[row, k] < 0)
                )
            result = causal | (block & here)
        if segments_BT is not None:
            result = result & (segments_BT[row, q] == segments_BT[row, k])
        if branches_BT is not None:
            branch_k = branches_BT[row, k]
            result = result & ((branch_k == 0) | (branch_k == branches_BT[row, q]))
        return result

    return allowed


def build_mask(
    text_config: Any,
    function: MaskFunction,
    attention_mask: Tensor | None,
    *,
    shape_BT: tuple[int, int],
    kv_length: int,
    q_offset: int | Tensor,
    kv_offset: int,
    plain: bool,
    dtype: torch.dtype,
    device: torch.device,
    spans: Callable[[], Spans] | None = None,
) -> Any:
    """The mask in the form that the LLM's attention implementation reads.

    Args:
        text_config: the LLM's configuration; its ``_attn_implementation`` picks the form.
        function: what ``mask_function`` returned.
        attention_mask: [B, K] int or bool, 0 for padding, or None.
        shape_BT: rows and tokens of this call.
        kv_length, q_offset, kv_offset: geometry of the cache.
        plain: the policy is plain causal here, so that an implementation may skip the tensor.
        spans: makes those of the queries, if there is neither a cache nor an ``attention_mask``: flex
            then builds its mask in time and memory that are linear in tokens.

    Returns:
        [B, 1, T, K] bool (sdpa) or float (eager), a block mask (flex), or None where ``plain``.

    Raises:
        ValueError: the implementation cannot express a block of bidirectional attention.
    """
    implementation = text_config._attn_implementation
    if "flash" in implementation and not plain:
        raise ValueError(
            f"attention implementation {implementation} has no bidirectional image blocks and no "
            'segments: load the model with attn_implementation="sdpa" or "flex_attention"'
        )
    if implementation == "flex_attention" and spans is not None:
        return block_mask(function, spans(), kv_length)
    rows, length = shape_BT
    return ALL_MASK_ATTENTION_FUNCTIONS[implementation](
        batch_size=rows,
        q_length=length,
        kv_length=kv_length,
        q_offset=q_offset,
        kv_offset=kv_offset,
        mask_function=function,
        attention_mask=None if attention_mask is None else attention_mask.bool(),
        allow_is_causal_skip=plain,
        dtype=dtype,
        device=device,
        config=text_config,
    )


def refuse_sliding_window(text_config: Any) -> None:
    """Raise ValueError for an LLM of which some blocks do not see all: there is one mask for them."""
    kinds = getattr(text_config, "layer_types", None)
    if kinds is None:  # a family whose blocks are all alike, as Mistral's
        kinds = ["sliding_attention"] if getattr(text_config, "sliding_window", None) else []
    others = sorted(set(kinds) - {"full_attention"})
    if others:
        raise ValueError(
            f"the LLM {text_config.model_type} has blocks with {', '.join(others)}; one image mask for "
            "all blocks would silently switch that off. Use a model with full attention, or set its "
            "sliding_window to null where no sample is longer"
        )
