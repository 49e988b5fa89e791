"""The two graphs of a model, as modules that torch.export can read.

Nothing of the model is written anew where its own code can be traced: the LLM runs through its class,
the mask through ``mask_function``. What is written anew is what reads a size from a tensor, which a
graph with free sizes cannot; each such function is an entry of a table, and a part without one is
refused.

Shapes: R rows and Q columns of patches of one picture, P = R * Q, C = 3 * patch_size**2, S vision
tokens, T tokens of this call, K keys (T plus the cache), H key heads, E their width, D the LLM's width,
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, isqrt, log2
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from oculi.errors import CheckpointError
from oculi.export.onnx import fused
from oculi.model import OculiForConditionalGeneration
from oculi.model.compress_learned_oculi import ConvCompressor, MaxPoolCompressor, MlpCompressor
from oculi.model.compress_oculi import TokenMerging, match, means
from oculi.model.masks_oculi import mask_function
from oculi.model.patch_embed_oculi import PatchEmbed, unpatchify
from oculi.model.tower_oculi import VisionTower


def embed_patches(part: PatchEmbed, patches_PC: Tensor, rows: int, columns: int) -> Tensor:
    """Tokens [P, D] of one picture, as ``PatchEmbed.forward`` makes them of several."""
    features_PW = part.norm(part.patch(part.normalise(patches_PC)))
    row = torch.arange(rows)[:, None].expand(rows, columns).flatten()
    column = torch.arange(columns)[None].expand(rows, columns).flatten()
    # Sizes as tensors: torch's exporter knows no division by a free number.
    positions_PW = part.positions(row, column, row[-1:] + 1, column[-1:] + 1)
    return part.projection(features_PW + positions_PW)


def run_tower(part: VisionTower, patches_PC: Tensor, rows: int, columns: int) -> Tensor:
    """Tokens [P, D] of one picture, as ``TowerReader.states`` and the connector make them."""
    read = _fixed_state if part.reader.grid else _naflex_state if part.reader.naflex else _any_state
    state_PM = read(part, patches_PC, rows, columns)
    if part.final_norm:
        state_PM = part.reader.norm(state_PM)
    return part.connector(state_PM.to(next(part.connector.parameters()).dtype))


def _fixed_state(part: VisionTower, patches_PC: Tensor, rows: int, columns: int) -> Tensor:
    """State [P, M] of a tower of one size.

    The picture is resized without asking whether it must be: to its own size that changes nothing.
    """
    reader = part.reader
    assert reader.grid is not None
    side = (reader.grid[0] * reader.patch_size, reader.grid[1] * reader.patch_size)
    image = unpatchify(patches_PC, rows, columns, part.patch_size).float()[None]
    image = F.interpolate(image, side, mode="bilinear", antialias=True)
    state_1SM = reader._run(image, reader.grid)[part.layer]
    grid = state_1SM.transpose(1, 2).unflatten(2, reader.grid).float()
    back = F.interpolate(grid, (rows, columns), mode="bilinear", align_corners=False)
    return back.flatten(2)[0].T


def _any_state(part: VisionTower, patches_PC: Tensor, rows: int, columns: int) -> Tensor:
    """State [P, M] of a tower whose positions are computed (native AIMv2)."""
    image = unpatchify(patches_PC, rows, columns, part.patch_size)[None]
    return part.reader._run(image, (rows, columns))[part.layer][0]


def _naflex_state(part: VisionTower, patches_PC: Tensor, rows: int, columns: int) -> Tensor:
    """State [P, M] of SigLIP 2 NaFlex, as ``Siglip2VisionModel.forward`` makes it of one picture.

    Its table of positions is resized by products with matrices, because it reads the size off a tensor.
    """
    tower: Any = part.tower
    p, embed = part.patch_size, tower.embeddings
    pixels_P3pp = part.reader._normalise(patches_PC.unflatten(1, (3, p, p)))
    flat_PC = pixels_P3pp.permute(0, 2, 3, 1).flatten(1)  # NaFlex patches are channels-last
    table_side = embed.position_embedding_size
    table_ssM = embed.position_embedding.weight.unflatten(0, (table_side, table_side)).float()
    down, across = (_resize_matrix(table_side, size) for size in (rows, columns))
    positions_RQM = torch.einsum("rs,stm,qt->rqm", down, table_ssM, across)
    states = embed.patch_embedding(flat_PC) + positions_RQM.flatten(0, 1)
    states = states[None]
    for block in tower.encoder.layers[: part.layer]:
        states = block(states, None)
    return states[0]


def _resize_matrix(source: int, target: int) -> Tensor:
    """[target, source]: a linear filter that is widened where it makes smaller.

    As ``F.interpolate(mode="bilinear", antialias=True)`` weighs along one side.
    """
    step = source / torch.arange(1, target + 1)[-1:]
    centre_t1 = ((torch.arange(target) + 0.5) * step)[:, None]
    away_ts = (torch.arange(source) + 0.5 - centre_t1).abs() / step.clamp(min=1)
    weight_ts = (1 - away_ts).clamp(min=0)
    return weight_ts / weight_ts.sum(1, keepdim=True)


def merge_tokens(part: TokenMerging, tokens_PD: Tensor, rows: int, columns: int) -> Tensor:
    """Tokens [S, D] of one picture.

    Every round halves, up to the one after which fewer than one in ``factor`` would be left: so there
    are as many rounds whatever the picture's size.
    """
    left = rows * columns
    # As part.count, but of no negative number, whose quotient ONNX rounds the other way.
    kept = (left + part.factor - 1) // part.factor
    tokens_1PD = tokens_PD[None].float()
    owners_1P = torch.arange(left)[None]
    current = tokens_1PD
    for halvings in range(1, ceil(log2(part.factor)) + 1):
        fewer = left // 2 if 2**halvings <= part.factor else left - kept
        owners_1P = match(current, fewer, _top).gather(1, owners_1P)
        left = left - fewer
        current = means(tokens_1PD, owners_1P, left)
    return current[0].to(tokens_PD.dtype)


def _top(scores_1n: Tensor, count: int) -> Tensor:
    """Places of the highest; ONNX's TopK takes the first of equals, and has no stable sort beside it."""
    return scores_1n.topk(count, dim=1).indices


def compress_places(part: MlpCompressor, tokens_PD: Tensor, rows: int, columns: int) -> Tensor:
    """Tokens [S, D] of one picture by the learned compressor's own ``compressed``."""
    return part.compressed(_fill_places(part, tokens_PD, rows * columns)[None])[0]


def pool_places(part: MaxPoolCompressor, tokens_PD: Tensor, rows: int, columns: int) -> Tensor:
    """Tokens [S, D] of one picture; onnxruntime's own MaxPool gives no infinities."""
    filled_LD = _fill_places(part, tokens_PD, rows * columns)
    windows, side = isqrt(part.tokens), isqrt(part.patches)
    cut = filled_LD.view(windows, side // windows, windows, side // windows, -1)
    pooled_SD = cut.amax((1, 3)).flatten(0, 1)
    return pooled_SD.masked_fill(pooled_SD == part.filled, 0.0)


def _fill_places(part: Any, tokens_PD: Tensor, patches: int) -> Tensor:
    """[L, D]: the places of a learned compressor, those behind the patches filled.

    Places behind the patches read the row behind them. Of a picture of more patches than places all
    point beyond it, which onnxruntime refuses; it would be cut without a word otherwise.
    """
    last = torch.arange(1) + patches  # as a tensor: torch's exporter compares no free numbers
    index_L = torch.arange(part.patches).minimum(last) + (last > part.patches) * (last + 1)
    filled_1D = tokens_PD.new_full((1, tokens_PD.shape[1]), part.filled)
    return torch.cat([tokens_PD, filled_1D]).index_select(0, index_L)


def _tower_problem(part: VisionTower) -> str:
    """Why a tower cannot be exported, or nothing."""
    if part.reader.grid is None and part.patch_size != part.reader.patch_size:
        return "a tower of any grid below patches that are not its own"
    if part.patch_size > part.reader.patch_size:
        return "a tower below patches that are larger than its own"
    return ""


# Patches of one picture to tokens, by the class of the part.
VISION: dict[type, Callable[..., Tensor]] = {PatchEmbed: embed_patches, VisionTower: run_tower}
PROBLEMS: dict[type, Callable[..., str]] = {VisionTower: _tower_problem}
COMPRESS: dict[type, Callable[..., Tensor]] = {
    TokenMerging: merge_tokens,
    MlpCompressor: compress_places,
    ConvCompressor: compress_places,
    MaxPoolCompressor: pool_places,
}


class VisionGraph(nn.Module):
    """One picture: patches [R, Q, C] uint8 to tokens [S, D] float32, and what ``fused`` reads of it.

    That is the vision part's own tokens [P, D], and how many of both there are, [1, 2] int64.
    """

    def __init__(self, model: OculiForConditionalGeneration) -> None:
        super().__init__()
        self.vision, self.compress = model.vision, model.compress
        self.outputs = ["tokens"] if model.fusion is None else ["tokens", "whole", "sizes"]

    def forward(self, patches: Tensor) -> tuple[Tensor, ...]:
        rows, columns = patches.shape[:2]
        whole = VISION[type(self.vision)](self.vision, patches.flatten(0, 1), rows, columns)
        tokens = whole
        if self.compress is not None:
            tokens = COMPRESS[type(self.compress)](self.compress, whole, rows, columns)
        sizes = torch.stack(
            [torch.scalar_tensor(x.shape[0], dtype=torch.int64) for x in (tokens, whole)]
        )
        return (tokens, whole, sizes[None])[: len(self.outputs)]


class Past:
    """Stands in for transformers' cache: keys and values of the past are inputs, all are outputs.

    Args:
        states: keys and values by turns, [1, H, K - T, E] each.
    """

    is_compileable = False

    def __init__(self, states: list[Tensor]) -> None:
        self._states = states
        self.present: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Past and new states of a block, [1, H, K, E]."""
        old_key, old_value = self._states[2 * layer : 2 * layer + 2]
        self.present[layer] = torch.cat([old_key, key], 2), torch.cat([old_value, value], 2)
        return self.present[layer]

    def get_seq_length(self, layer: int = 0) -> int:
        """Tokens of the past."""
        return self._states[0].shape[2]


class DecoderGraph(nn.Module):
    """Fusion, if any, and the LLM, for the prompt and for each token of the answer alike.

    ``forward`` takes embeddings [1, T, D], the picture of each token [1, T] int64 (-1 for text),
    whether it is of the prompt [1, T] bool (``mutual`` alone), what fusion reads by name
    (``fused.fuse``), keys and values of the past, and the past of fusion; it gives logits [1, V] of the
    last position alone, then keys and values of all, then what fusion keeps.
    """

    def __init__(self, model: OculiForConditionalGeneration) -> None:
        super().__init__()
        self.llm, self.fusion, self.policy = model.llm, model.fusion, model.config.image_attention
        self.rotary = getattr(model.get_decoder(), "rotary_emb", None)

    def forward(
        self,
        embeds: Tensor,
        image_ids: Tensor | None,
        prompt: Tensor | None,
        given: dict[str, Tensor],
        past: list[Tensor],
        fusion_past: list[Tensor],
    ) -> tuple[Tensor, ...]:
        fusion_present: list[Tensor] = []
        if given:
            embeds, fusion_present = fused.fuse(
                self.fusion, self.rotary, self.policy, embeds, given, fusion_past
            )
        length, offset = embeds.shape[1], past[0].shape[2]
        query, key = torch.arange(length) + offset, torch.arange(length + offset)
        if image_ids is None:  # the policy is causal, and asks for no pictures
            image_ids = torch.full((1, 1), -1)
        allowed = mask_function(self.policy, image_ids, None, prompt, offset)
        zero = torch.zeros(1, 1, dtype=torch.int64)
        mask_TK = allowed(zero, zero, query[:, None], key[None])
        cache = Past(past)
        output = self.llm(
            inputs_embeds=embeds,
            attention_mask=mask_TK[None, None],
            position_ids=query[None],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        states = [state for layer in sorted(cache.present) for state in cache.present[layer]]
        return output.logits[:, -1].float(), *states, *fusion_present


def decoder_inputs(model: OculiForConditionalGeneration) -> list[str]:
    """Names of the decoder's inputs beside the past."""
    by_policy = {"causal": [], "bidirectional": ["image_ids"], "mutual": ["image_ids", "prompt"]}
    given = () if model.fusion is None else fused.INPUTS
    return ["embeds", *by_policy[model.config.image_attention], *given]


def check_exportable(model: OculiForConditionalGeneration) -> None:
    """Raise CheckpointError for what has no graph; sliding windows no model of ours has."""
    config = model.config
    if config.routed_lora:
        raise CheckpointError(
            "routed LoRA has no graph yet: its layers choose rows by modality. Serve this model with "
            "oculi chat or transformers"
        )
    problem = ""
    if type(model.vision) not in VISION:
        problem = f"the vision part {type(model.vision).__name__}"
    elif find := PROBLEMS.get(type(model.vision)):
        problem = find(model.vision)
    if model.compress is not None and type(model.compress) not in COMPRESS:
        problem = f"the compressor {type(model.compress).__name__}"
    rope = getattr(config.text_config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        problem = f"an LLM with rotary positions of the type {rope['rope_type']}"
    if problem:
        raise CheckpointError(
            f"{problem} has no graph yet, so this model cannot be exported to ONNX"
        )
