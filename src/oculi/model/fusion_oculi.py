"""Fusion: text reads the uncompressed vision tokens before the LLM does (AuroraEdge-V, section 3.5).

    vision part ── [P, D] ──┬── compressor ─────────────── [S, D] ──┐
                            │                                       ├── LLM
    text ─────── embedding ─┴─▶ cross ─▶ decoder ── [T, D], fused ──┘

The paper's equations 8 to 16 are blank in its text; this is the reading that fits its tables 4 and 7
(T text tokens, V vision tokens of the pictures before them):

    8, 9      H = T + softmax(Q K' / sqrt(d)) U W_o,  Q = norm(T) W_q,  K, U = norm(V) W_k, norm(V) W_v
    10        cross:     F_c(T, V) = H + W_2 gelu(W_1 norm(H)),  W_1 four times as wide
    11 to 15  decoder:   F_d(T, V), [V; T] through a block of the LLM's own class, of which text is kept
    16        combined:  F_d(F_c(T, V), V)

[V; T] is in the order of the conversation (``wide_rows_oculi.py``), so a text token reads the pictures
before it and, in the decoder, the text before it: prompt and generated tokens alike. A token with no
picture before it in its sample stays as it is, to the bit. Of the last decoder layer nothing but text
is read, so patches give it keys and values and no more.

Shapes: as in ``wide_rows_oculi.py``; H heads of d.
"""

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .masks_oculi import MaskFunction, build_mask, mask_function
from .patch_embed_oculi import RMSNorm
from .rows_oculi import Give, keys_and_values
from .settings_oculi import called
from .spans_oculi import Spans, begins, key_spans, skipped
from .wide_rows_oculi import Memory, WideRows

# What ``fuse_config["kind"]`` may name, and the stacks that text goes through, in order.
FUSIONS: dict[str, tuple[str, ...]] = {
    "cross": ("cross",),
    "decoder": ("decoder",),
    "combined": ("cross", "decoder"),
}
WIDENING = 4  # of the cross block's MLP


@dataclass(frozen=True)
class Call:
    """What one forward pass of the fusion works on.

    Attributes:
        wide, memory: where things are, and keys and values of all calls.
        before: places in the memory before this call's.
        vision_PD: the uncompressed tokens.
        function: who may attend to whom, over places.
        seen_BQ: bool, text tokens with a picture before them in their sample.
        positions_BW: of the rotation, from 0 in every sample.
        rotary: (states, positions) -> cosines and sines, the LLM's.
        mask: (function, queries, spans) -> the mask as the LLM's attention takes it.
        handed: takes the keys and values that a block hands to its cache, as ``keys_and_values``.
    """

    wide: WideRows
    memory: Memory
    before: int
    vision_PD: Tensor
    function: MaskFunction
    seen_BQ: Tensor
    positions_BW: Tensor
    rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    mask: Callable[..., Any]
    handed: Callable[[Callable[[Any], Any]], tuple[Tensor, Tensor]] = keys_and_values

    @property
    def places_BQ(self) -> Tensor:
        """Of the text tokens among all places."""
        return self.wide.wide_BQ + self.before


class CrossBlock(nn.Module):
    """Text reads patches, then goes through an MLP of four times its width: 12 D * D parameters.

    Args:
        width: D. heads: H.
        eps: of the norms.

    Raises:
        ValueError: the width is no multiple of the heads.
    """

    def __init__(self, width: int, heads: int, eps: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"fusion: a width of {width} cannot be parted into {heads} heads")
        self.heads = heads
        self.text_norm, self.vision_norm, self.mlp_norm = (RMSNorm(width, eps) for _ in range(3))
        linear = partial(nn.Linear, bias=False)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (
            linear(width, width) for _ in range(4)
        )
        self.up_proj, self.down_proj = (
            linear(width, WIDENING * width), linear(WIDENING * width, width),
        )  # fmt: skip

    def init_weights(self) -> None:
        """Normal with the deviation that keeps the scale; zeros where text is written to.

        So text is the LLM's own at the start, and what fusion adds grows from nothing.
        """
        for module in (self.q_proj, self.k_proj, self.v_proj, self.up_proj):
            nn.init.normal_(module.weight, std=module.in_features**-0.5)
        for module in (self.o_proj, self.down_proj):
            nn.init.zeros_(module.weight)
        for norm in (self.text_norm, self.vision_norm, self.mlp_norm):
            nn.init.ones_(norm.weight)

    def forward(self, text_BQD: Tensor, call: Call, name: str) -> Tensor:
        """Text [B, Q, D] that has read the patches before it; ``name`` is the layer's in the memory."""
        vision_PD = self.vision_norm(call.vision_PD.to(text_BQD.dtype))
        sides = (call.wide.spread(proj(vision_PD)) for proj in (self.k_proj, self.v_proj))
        keys, values = call.memory.add(name, *(self._heads(side) for side in sides))
        assert call.memory.is_patch_BK is not None and call.memory.token_BK is not None
        row = torch.arange(len(keys), device=keys.device)[:, None, None]
        key = torch.arange(keys.shape[-2], device=keys.device)
        allowed = call.function(row, row * 0, call.places_BQ[..., None], key)
        patch_BK = call.memory.is_patch_BK & (call.memory.token_BK >= 0)
        # Who sees nothing sees all instead, which is dropped: a softmax of nothing is NaN.
        mask_BQK = (allowed & patch_BK[:, None]) | ~call.seen_BQ[..., None]
        query = self._heads(self.q_proj(self.text_norm(text_BQD)))
        read = F.scaled_dot_product_attention(
            query, keys.to(query.dtype), values.to(query.dtype), attn_mask=mask_BQK[:, None]
        )
        text_BQD = text_BQD + self.o_proj(read.transpose(1, 2).flatten(2))
        widened = F.gelu(self.up_proj(self.mlp_norm(text_BQD)))
        result: Tensor = text_BQD + self.down_proj(widened)
        return result

    def _heads(self, states_BXD: Tensor) -> Tensor:
        return states_BXD.unflatten(2, (self.heads, -1)).transpose(1, 2)


class _Add:
    """Stands in for a cache: a block's keys and values go into the memory, and all come back."""

    def __init__(self, memory: Memory, name: str) -> None:
        self.memory, self.name = memory, name

    def update(self, keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        return self.memory.add(self.name, keys, values)


class Fusion(nn.Module):
    """The fusion module: ``cross`` and ``decoder`` are its stacks of layers.

    Args:
        block: a block of the LLM; decoder layers are copies of it, weights and all. The first one, as
            in section 4.1.
        text_config: of the LLM.
        kind: ``cross``, ``decoder`` or ``combined``.
        layers: of every stack; the paper has one.

    Raises:
        ValueError: the kind is unknown, the width is no multiple of the heads, or the LLM's blocks are
            not given rotary positions and a cache, as Llama's and its kin are.
    """

    # Of the last decoder layer text alone is computed: nothing else is read. Plans may count it whole.
    text_alone = True

    def __init__(
        self, block: nn.Module, text_config: PreTrainedConfig, kind: str, layers: int = 1
    ) -> None:
        super().__init__()
        if kind not in FUSIONS:
            raise ValueError(f'fusion: kind "{kind}" is none of {", ".join(FUSIONS)}')
        if layers < 1:
            raise ValueError(f"fusion: {layers} layers are none; leave fusion out instead")
        stacks = FUSIONS[kind]
        made: dict[str, Callable[[], nn.Module]] = {
            "cross": lambda: CrossBlock(
                text_config.hidden_size,
                text_config.num_attention_heads,
                getattr(text_config, "rms_norm_eps", 1e-6),
            ),
            "decoder": lambda: copy_block(block),
        }
        self.cross, self.decoder = (
            nn.ModuleList(made[name]() for _ in range(layers if name in stacks else 0))
            for name in ("cross", "decoder")
        )
        self.text_config = text_config

    def init_weights(self) -> None:
        """Those of cross blocks; decoder layers are copies, and stay."""
        for block in self.cross:
            block.init_weights()  # type: ignore[operator]

    def forward(
        self,
        embeds_BTD: Tensor,
        vision_PD: Tensor,
        wide: WideRows,
        memory: Memory,
        rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        policy: str,
    ) -> Tensor:
        """Rewrite the text.

        Args:
            embeds_BTD: the LLM's input, compressed images among the text; those stay.
            vision_PD: uncompressed tokens of the images of this call, projected to the LLM's width.
            wide: where they are. memory: what came before; gets what this call adds.
            rotary: the LLM's, (states, positions) to cosines and sines.
            policy: how patches attend to each other, where a decoder has several layers; they never
                see text behind them.
        """
        return self.rewrite(
            embeds_BTD, self.call(embeds_BTD, vision_PD, wide, memory, rotary, policy)
        )

    def rewrite(self, embeds_BTD: Tensor, call: Call) -> Tensor:
        """``forward`` of what ``call`` returned for the same embeddings."""
        own_BQD = text_BQD = call.wide.gather_text(embeds_BTD)
        for i, block in enumerate(self.cross):
            text_BQD = block(text_BQD.to(_dtype(block)), call, f"cross.{i}")
        if len(self.cross):
            text_BQD = self._keep(call, text_BQD, own_BQD)
        if len(self.decoder):
            text_BQD = self._keep(call, self._decode(text_BQD, call), own_BQD)
        return call.wide.put_text(embeds_BTD, text_BQD)

    @staticmethod
    def _keep(call: Call, text_BQD: Tensor, own_BQD: Tensor) -> Tensor:
        """Its own embedding for what has no picture before it."""
        return torch.where(call.seen_BQ[..., None], text_BQD.to(own_BQD.dtype), own_BQD)

    def call(
        self,
        embeds_BTD: Tensor,
        vision_PD: Tensor,
        wide: WideRows,
        memory: Memory,
        rotary: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
        policy: str,
    ) -> Call:
        """What ``rewrite`` works on; the memory takes in the places of this call."""
        before = memory.extend(wide, embeds_BTD.shape[1])
        assert memory.token_BK is not None and memory.is_patch_BK is not None
        valid_BK, W = memory.token_BK >= 0, wide.source_BW.shape[1]
        policy = "bidirectional" if policy == "mutual" else policy
        patches = (memory.is_patch_BK & valid_BK).cumsum(1)
        positions = (valid_BK.cumsum(1) - 1).clamp(0)[:, before:]
        seen_BW = patches[:, before:] > 0
        if wide.segments_BW is not None:
            index = torch.arange(W, device=patches.device).expand_as(wide.segments_BW)
            start = begins(wide.segments_BW, index)
            positions = index - start
            if wide.branches_BW is not None:
                positions = positions - skipped(wide.branches_BW, index)
            seen_BW = patches > torch.where(
                start > 0, patches.gather(1, (start - 1).clamp(0)), torch.zeros_like(start)
            )
        seen_BW = seen_BW & (wide.token_BW >= 0)
        function = mask_function(
            policy, wide.images_BW, wide.segments_BW, None, before, wide.branches_BW
        )
        mask = partial(
            build_mask,
            self.text_config,
            attention_mask=valid_BK if wide.segments_BW is None else None,
            kv_length=before + W,
            kv_offset=0,
            plain=False,
            device=embeds_BTD.device,
        )
        seen_BQ = seen_BW.gather(1, wide.wide_BQ)
        return Call(
            wide, memory, before, vision_PD, function, seen_BQ, positions, rotary, mask
        )  # fmt: skip

    def _decode(self, text_BQD: Tensor, call: Call) -> Tensor:
        """Text [B, Q, D] behind the decoder layers."""
        dtype = _dtype(self.decoder)
        states_BWD = call.wide.widen(text_BQD.to(dtype), call.vision_PD.to(dtype))
        around = call.rotary(states_BWD, call.positions_BW)
        rows, length = states_BWD.shape[:2]
        *others, last = self.decoder if self.text_alone else (*self.decoder, None)
        if others:
            mask = call.mask(
                call.function, shape_BT=(rows, length), q_offset=call.before, dtype=dtype
            )
        for i, layer in enumerate(others):
            add = _Add(call.memory, f"decoder.{i}")
            states_BWD = _run(layer, states_BWD, mask, around, call.positions_BW, add)
        if last is None:
            text = call.wide.wide_BQ[..., None].expand(-1, -1, states_BWD.shape[-1])
            return states_BWD.gather(1, text)
        keys = call.handed(partial(_run, last, states_BWD, None, around, call.positions_BW))
        keys = call.memory.add(f"decoder.{len(others)}", *keys)
        return self._text_alone(last, states_BWD, keys, call)

    def _text_alone(
        self, layer: nn.Module, states_BWD: Tensor, keys: tuple[Tensor, Tensor], call: Call
    ) -> Tensor:
        """The layer's output of text tokens, with keys and values of all places."""
        where = call.wide.wide_BQ
        text_BQD = states_BWD.gather(1, where[..., None].expand(-1, -1, states_BWD.shape[-1]))
        places_BQ = call.places_BQ

        def of_text(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return call.function(row, head, places_BQ[row, query], key)

        spans = None
        if call.before == 0 and call.wide.segments_BW is not None:
            spans = partial(_spans_of_text, call.wide)
        mask = call.mask(
            of_text, shape_BT=where.shape, q_offset=0, dtype=states_BWD.dtype, spans=spans
        )
        positions = call.positions_BW.gather(1, where)
        around = call.rotary(text_BQD, positions)
        return _run(layer, text_BQD, mask, around, positions, Give(keys))


def copy_block(block: nn.Module) -> nn.Module:
    """A block of the LLM with weights of its own; it shares the configuration, which says how to attend.

    Raises:
        ValueError: the class's blocks take no rotary positions or no cache.
    """
    takes = inspect.signature(type(block).forward).parameters
    if missing := {"position_embeddings", "past_key_values"} - takes.keys():
        raise ValueError(
            f"fusion: {type(block).__name__} takes no {' or '.join(sorted(missing))}, so it cannot be a "
            "decoder layer; use fusion.kind=cross, or an LLM of Llama's or Qwen2's kind"
        )
    shared = [getattr(module, "config", None) for module in block.modules()]
    memo = {id(config): config for config in shared if isinstance(config, PreTrainedConfig)}
    return copy.deepcopy(block, memo)


def _run(
    layer: nn.Module,
    states: Tensor,
    mask: Any,
    around: tuple[Tensor, Tensor],
    positions: Tensor,
    cache: Any,
) -> Tensor:
    # The class's own forward: gradient checkpointing around it would drop what stands in for a cache.
    output = type(layer).forward(
        layer, states, attention_mask=mask, position_embeddings=around, position_ids=positions,
        past_key_values=cache, use_cache=True,
    )  # fmt: skip
    found: Tensor = output[0] if isinstance(output, tuple) else output
    return found


def _spans_of_text(wide: WideRows) -> Spans:
    branches = wide.branches_BW is not None
    spans = key_spans("causal", wide.images_BW, wide.segments_BW, None, branches)
    return Spans(
        spans.first.gather(1, wide.wide_BQ), spans.last.gather(1, wide.wide_BQ), spans.exact
    )


def _dtype(module: nn.Module) -> torch.dtype:
    return next(module.parameters()).dtype


def new_fusion(fusion: dict[str, Any] | None, llm: Any, block: nn.Module) -> Fusion | None:
    """The module that ``fuse_config`` names, None for none; raises ValueError as it does."""
    return None if fusion is None else called("fusion", Fusion, block, llm.config, **fusion)
