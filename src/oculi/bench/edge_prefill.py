"""The prefill of ``aurora`` beside that of ``llava``: the same LLM, tower and pictures, as int8 graphs.

A prefill is what stands between pixels and the first logits: the vision graph, and the decoder graph's
first call. Both models are asked the same questions about the same pictures, by turns. Weights are
random: neither products nor times depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, PreTrainedConfig, Qwen2Config

from oculi.bench.goals import Goal, table
from oculi.edge import Runner, load
from oculi.edge.measure import Once, ask
from oculi.export.onnx.write import export_onnx
from oculi.model import OculiConfig, OculiForConditionalGeneration
from oculi.plan.attention import Autocast
from oculi.plan.build import meta_model
from oculi.plan.products import Products
from oculi.plan.sample import picture_grid, sample_batch
from oculi.recipe import ImageSpec, MlpSpec, ModelSpec
from oculi.recipes.tiny import llava_tiny
from oculi.recipes.tiny_aurora import aurora_tiny
from oculi.training.build import build_processor

Messages = Sequence[tuple[str, Sequence[Any]]]
UNCOMPRESSED, COMPRESSED = "llava", "aurora"


@dataclass(frozen=True)
class Size:
    """What both models of a pair share.

    Attributes:
        llm: changes to the testbed's LLM; none is that. tower: configuration instead of the testbed's.
        patch_size: in pixels. patches, tokens: of every picture, before and behind the compressor.
    """

    name: str
    llm: dict[str, int]
    tower: dict[str, Any] | None
    patch_size: int
    patches: int
    tokens: int


# As in the paper, four patches to a token. The large tower has as many parameters beside its LLM as
# SigLIP 2 so400m beside Qwen2.5-1.5B: a third.
TINY = Size("tiny", {}, None, 14, 36, 9)
LARGE = Size(
    "large",
    {
        "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 12,
        "num_attention_heads": 16, "num_key_value_heads": 8, "vocab_size": 16_384,
    },
    {
        "model_type": "siglip2_vision_model", "hidden_size": 512, "intermediate_size": 2048,
        "num_hidden_layers": 14, "num_attention_heads": 8, "num_patches": 256, "patch_size": 16,
        "vision_use_head": False,
    },
    16, 256, 64,
)  # fmt: skip


@dataclass(frozen=True)
class Prefill:
    """One model; seconds and multiply-accumulates.

    Attributes:
        recipe: whose model it is. parameters: millions.
        tokens: of a picture in the LLM. prompt: tokens of the longest prompt.
        macs: of the prefill of that prompt. seconds: median of a prefill.
        first_p50, first_p95: from the conversation (pictures decoded) to the first token.
    """

    recipe: str
    parameters: float
    tokens: int
    prompt: int
    macs: int
    seconds: float
    first_p50: float
    first_p95: float


@dataclass(frozen=True)
class Pair:
    """Both models of a size. ``questions``: that each was asked."""

    name: str
    patches: int
    questions: int
    uncompressed: Prefill
    compressed: Prefill

    @property
    def macs(self) -> float:
        """Products of the compressed model by those of the other."""
        return self.compressed.macs / self.uncompressed.macs

    @property
    def time(self) -> float:
        """Seconds of the compressed model's prefill by those of the other."""
        return self.compressed.seconds / self.uncompressed.seconds

    def to_json(self) -> dict[str, Any]:
        """For ``--json``."""
        return {**asdict(self), "macs": self.macs, "time": self.time}

    def goals(self) -> list[Goal]:
        """Fewer products are a gate, less time is advice."""
        return [
            Goal(f"{self.name}: MACs of a compressed prefill / uncompressed", self.macs, 1),
            Goal(f"{self.name}: its time / uncompressed", self.time, 1, advice=True),
        ]


def lines(pairs: Sequence[Pair]) -> list[str]:
    """For the terminal and the page."""
    heads = [
        "prefill of one picture and question, int8", "M parameters", "patches", "tokens", "prompt",
        "GMAC", "ms", "first token p50, ms", "p95, ms",
    ]  # fmt: skip
    rows = [
        [
            f"{pair.name}, {one.recipe}", f"{one.parameters:.1f}", str(pair.patches),
            str(one.tokens), str(one.prompt), f"{one.macs / 1e9:.3f}", f"{1e3 * one.seconds:.1f}",
            f"{1e3 * one.first_p50:.1f}", f"{1e3 * one.first_p95:.1f}",
        ]
        for pair in pairs
        for one in (pair.uncompressed, pair.compressed)
    ]  # fmt: skip
    found = [
        f"{pair.name}: the compressed prefill has {pair.macs:.2f} times the MACs and takes "
        f"{pair.time:.2f} times as long ({pair.questions} questions each, by turns, medians)."
        for pair in pairs
    ]
    return [*table(heads, rows), "", *found]


def specs(size: Size) -> dict[str, ModelSpec]:
    """The models of both recipes at one size, by recipe; they differ in compressor and fusion alone."""
    compressed = aurora_tiny().model
    changes = {
        "vision": compressed.vision.model_copy(update={"patch_size": size.patch_size}),
        "images": ImageSpec(min_patches=size.patches, max_patches=size.patches),
    }
    compress = MlpSpec(patches=size.patches, tokens=size.tokens)
    return {
        UNCOMPRESSED: llava_tiny().model.model_copy(update=changes),
        COMPRESSED: compressed.model_copy(update={**changes, "compress": compress}),
    }


def configuration(spec: ModelSpec, size: Size) -> OculiConfig:
    """Of a model as the recipe builds it, its LLM and tower of the given size."""
    config = meta_model(spec).config
    vision = dict(config.vision_config)
    if size.tower is not None:
        vision["tower"] = size.tower
    found: OculiConfig = OculiConfig(
        text_config=_llm(config.text_config, size.llm),
        vision_config=vision,
        image_attention=config.image_attention,
        compress_config=config.compress_config,
        fuse_config=config.fuse_config,
    )
    return found


def _llm(config: PreTrainedConfig, changes: dict[str, int]) -> PreTrainedConfig:
    values = {**config.to_dict(), **changes}
    values["layer_types"] = ["full_attention"] * values["num_hidden_layers"]
    return Qwen2Config(**values)


@torch.inference_mode()
def prefill_macs(config: OculiConfig, grid: tuple[int, int], text: int) -> int:
    """Multiply-accumulates of a prefill, counted from the operations of a model on the meta device.

    Attention is counted whole, what a mask hides too: onnxruntime computes all of it.

    Args:
        grid: rows and columns of patches of the picture. text: tokens beside it.
    """
    with torch.device("meta"):
        model = OculiForConditionalGeneration(config).eval()
    model.set_attn_implementation("sdpa")
    patch = int(config.vision_config["patch_size"])
    vision = int(model.tokens_per_image(torch.tensor([grid])))
    sample = sample_batch(grid, text, patch, "meta", vision)
    weights = dict.fromkeys((*model.parameters(), *model.buffers()), "model")
    products = Products(weights, pairs=0, length=0)  # no mask is of that length
    with Autocast(None), products.forward_pass():
        model(
            sample.tokens_BT,
            image_ids=sample.images_BT,
            prompt_mask=sample.prompt_BT,
            pixel_values=sample.patches_PC,
            image_grids=sample.grids_N2,
            past_key_values=DynamicCache(config=config.text_config),
            use_cache=True,
            logits_to_keep=1,
        )
    return sum(products.forward.values())


def compare_prefill(
    size: Size, talks: Sequence[Messages], folder: Path, threads: int, step: Callable[[], None]
) -> Pair:
    """Export both models of a size, and ask them by turns; the first question warms both up.

    Args:
        talks: conversations of one picture and one question each.
        folder: for the exported models.
        threads: of onnxruntime. step: told after every answer.
    """
    configs, runners = {}, {}
    for recipe, spec in specs(size).items():
        processor = build_processor(spec)
        config = configuration(spec, size)
        config.image_token_id = processor.image_token_id
        torch.manual_seed(0)
        model = OculiForConditionalGeneration(config).eval()
        configs[recipe] = config, sum(parameter.numel() for parameter in model.parameters())
        out = export_onnx(model, processor, folder / f"{size.name}-{recipe}", recipe, int8=True)
        del model  # two large ones need not fit at once
        runners[recipe] = load(out, threads)
    answers: dict[str, list[Once]] = {recipe: [] for recipe in runners}
    for number, talk in enumerate([talks[0], *talks]):
        for recipe, runner in runners.items():
            once = ask(runner, talk, 1)
            if number:
                answers[recipe].append(once)
            step()
    sides = {
        recipe: _side(recipe, *configs[recipe], size, runners[recipe], answers[recipe])
        for recipe in runners
    }
    return Pair(size.name, size.patches, len(talks), sides[UNCOMPRESSED], sides[COMPRESSED])


def _side(
    recipe: str,
    config: OculiConfig,
    parameters: int,
    size: Size,
    runner: Runner,
    answers: Sequence[Once],
) -> Prefill:
    tokens = size.patches if config.compress_config is None else size.tokens
    prompt = max(once.prompt for once in answers)
    images = ImageSpec(min_patches=size.patches, max_patches=size.patches)
    grid = picture_grid(size.patch_size, images, None)
    first = [once.times.first for once in answers]
    return Prefill(
        recipe=recipe,
        parameters=parameters / 1e6,
        tokens=tokens,
        prompt=prompt,
        macs=prefill_macs(config, grid, prompt - tokens),
        seconds=float(np.median([once.vision + once.times.prompt for once in answers])),
        first_p50=float(np.percentile(first, 50)),
        first_p95=float(np.percentile(first, 95)),
    )
