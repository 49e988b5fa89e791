"""Fusion in the decoder graph: its own layers over one row, whose sizes are those of the inputs.

``wide_rows`` reads from tensors how many patches and text tokens there are; a graph of free sizes
cannot, so here both come as inputs of as many rows. The rest is the module's own code: only its mask is
made of ``mask_function`` alone, as the LLM's is.

    vision graph ── whole, sizes ──┐                 past_fusion_* ─┐      ┌─ present_fusion_*
    runner ── embeds, text_places ─┴──── first call alone ────────── fusion ── embeds ── LLM

Shapes: T tokens of this call, Q of them text, N pictures of this call, P patches of all of them,
W = Q + P places, K places with those of the past, D the LLM's width, H heads of d.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from oculi.model import OculiForConditionalGeneration
from oculi.model.fusion_oculi import Fusion
from oculi.model.masks_oculi import MaskFunction
from oculi.model.wide_rows_oculi import Memory, WideRows

# What the decoder is given beside embeddings and the past. The first is the runner's, the others are
# put out by the vision graph.
INPUTS = ("text_places", "whole", "sizes")


def past_names(fusion: Fusion) -> list[str]:
    """Names of what fusion keeps for later tokens, without ``past_`` and ``present_``."""
    states = [name.replace(".", "_") for name in _layers(fusion)]
    kinds = [f"fusion_{state}_{kind}" for state in states for kind in ("key", "value")]
    return ["fusion_is_patch", *kinds]


def example(model: OculiForConditionalGeneration, tokens: int) -> dict[str, Tensor]:
    """Inputs to trace with, by name, for a row of so many tokens; sizes differ, values are not read."""
    text, pictures, patches = tokens - 3, 13, 18
    return {
        "text_places": torch.arange(text),
        "whole": torch.zeros(patches, model.width),
        "sizes": torch.ones(pictures, 2, dtype=torch.int64),
    }


def example_past(model: OculiForConditionalGeneration, like: Tensor) -> list[Tensor]:
    """The past to trace with, in the order of ``past_names``.

    Args:
        like: keys of a block of the LLM, [1, H, K, d].
    """
    fusion: Any = model.fusion
    places = 15
    cross = [(block.heads, model.width // block.heads) for block in fusion.cross]
    heads = [*cross, *[(like.shape[1], like.shape[3])] * len(fusion.decoder)]
    states = [torch.zeros(1, h, places, d) for h, d in heads for _ in ("key", "value")]
    return [torch.zeros(1, places, dtype=torch.bool), *states]


def fuse(
    fusion: Any,
    rotary: Any,
    policy: str,
    embeds_1TD: Tensor,
    given: dict[str, Tensor],
    past: list[Tensor],
) -> tuple[Tensor, list[Tensor]]:
    """As ``OculiForConditionalGeneration._fuse``, of one row without padding.

    Args:
        fusion, rotary, policy: the model's ``fusion``, its LLM's rotary embedding, its mask policy.
        given: ``text_places`` [Q] int64 into T; of the pictures of this call ``whole`` [P, D], their
            uncompressed tokens, and ``sizes`` [N, 2] int64, how many tokens and patches each has.
        past: in the order of ``past_names``; is_patch [1, K - W], states [1, H, K - W, d].

    Returns:
        the embeddings with fused text, and the past of the next call.
    """
    is_patch_1K, *states = past
    layers = _layers(fusion)
    memory = Memory(
        token_BK=torch.zeros_like(is_patch_1K, dtype=torch.int64),  # no place is padding
        is_patch_BK=is_patch_1K,
        states={name: (states[2 * i], states[2 * i + 1]) for i, name in enumerate(layers)},
    )
    whole_PD = given["whole"]
    wide = one_row(given["text_places"], given["sizes"], embeds_1TD.shape[1], whole_PD.shape[0])
    call = fusion.call(embeds_1TD, whole_PD, wide, memory, rotary, policy)
    assert memory.token_BK is not None and memory.is_patch_BK is not None
    call = replace(call, mask=partial(_mask, memory.token_BK.shape[1]), handed=_handed)
    fused_1TD = fusion.rewrite(embeds_1TD, call)
    kept = [state for name in layers for state in memory.states[name]]
    return fused_1TD, [memory.is_patch_BK, *kept]


def one_row(text_Q: Tensor, sizes_N2: Tensor, tokens: int, patches: int) -> WideRows:
    """``wide_rows`` of one row without padding and segments.

    Args:
        text_Q: int64, places of the text tokens in the row.
        sizes_N2: int64, tokens and patches of each picture, in the order of the row.
        tokens: T. patches: P.
    """
    q, p = torch.arange(text_Q.shape[0]), torch.arange(patches)
    ends_N2 = sizes_N2.cumsum(0)
    # Pictures are told by how many of their tokens stand before a text token.
    ahead_Q = text_Q - q
    behind_QN = ends_N2[None, :, 0] <= ahead_Q[:, None]  # whether the text comes behind the picture
    wide_Q = q + (behind_QN.long() * sizes_N2[None, :, 1]).sum(1)
    image_P = (ends_N2[None, :, 1] <= p[:, None]).sum(1)
    text_before_N = (~behind_QN).sum(0)
    places_P = p + text_before_N[image_P]
    places_W, W = torch.cat([wide_Q, places_P]), text_Q.shape[0] + patches
    is_text_T = torch.zeros(tokens, dtype=torch.int64).index_fill(0, text_Q, 1)

    def at_places(values_W: Tensor) -> Tensor:
        return torch.zeros(W, dtype=torch.int64).scatter(0, places_W, values_W)[None]

    return WideRows(
        text_BQ=text_Q[None],
        wide_BQ=wide_Q[None],
        rank_BT=(is_text_T.cumsum(0) - 1).clamp(0)[None],
        is_text_BT=is_text_T.bool()[None],
        source_BW=at_places(torch.arange(W)),
        patches_P=places_P,
        token_BW=at_places(torch.zeros_like(places_W)),
        images_BW=at_places(torch.cat([torch.full_like(q, -1), image_P])),
        segments_BW=None,
    )


def _layers(fusion: Fusion) -> list[str]:
    """Names of the layers in the memory."""
    stacks = {"cross": fusion.cross, "decoder": fusion.decoder}
    return [f"{name}.{i}" for name, stack in stacks.items() for i in range(len(stack))]


class _Keep:
    """Stands in for a cache: keeps keys and values, and lets the block go on."""

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        self.states = keys, values
        return self.states


def _handed(run: Callable[[Any], Any]) -> tuple[Tensor, Tensor]:
    """As ``keys_and_values``, which leaves the block by an exception: that confuses torch's tracer.

    What the block computes of them here is read by nobody, so it is not in the graph.
    """
    keep = _Keep()
    run(keep)
    return keep.states


def _mask(
    keys: int, function: MaskFunction, *, shape_BT: tuple[int, int], q_offset: int, **others: Any
) -> Tensor:
    """[1, 1, W, K] or, of text alone, [1, 1, Q, K] bool; see ``build_mask`` for the arguments."""
    zero = torch.zeros(1, 1, dtype=torch.int64)
    query, key = torch.arange(shape_BT[1]) + q_offset, torch.arange(keys)
    return function(zero, zero, query[:, None], key[None])[None, None]
