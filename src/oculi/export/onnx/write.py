"""``oculi export --to onnx``: the folder that ``oculi.edge`` runs."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from oculi import durable
from oculi.edge import folder as files
from oculi.errors import CheckpointError, OculiError
from oculi.export.hf import check_free
from oculi.export.onnx import fused
from oculi.export.onnx.graphs import (
    DecoderGraph,
    VisionGraph,
    check_exportable,
    decoder_inputs,
)
from oculi.export.onnx.quantise import quantise_graph
from oculi.export.onnx.template import chat_ids
from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.model.lora import has_lora

OPSET = 23  # the first with Attention, RotaryEmbedding and RMSNormalization
INLINE = 256 * 2**20  # weights of a graph beyond this many bytes lie in a file of their own
PARTS = 5
Progress = Callable[[int, int], None]

CARD = """# {name}

A model made with oculi, as graphs for onnxruntime ({precision} weights). Ask it, without torch:

    python -m oculi.edge answer PATH_OF_THIS_FOLDER --image picture.png "What is this?"
"""


def export_onnx(
    model: OculiForConditionalGeneration,
    processor: OculiProcessor,
    out: Path,
    name: str,
    int8: bool = False,
    on_progress: Progress | None = None,
) -> Path:
    """Write the folder; it appears under its name when it is complete and on the disk.

    Args:
        model: merged; it is put into float32 and onto the CPU, and stays so.
        int8: quantise the weights of matrices.
        on_progress: told parts done and their number.

    Raises:
        CheckpointError: the model has LoRA or a part without a graph, or ``out`` exists.
        OculiError: onnx or onnxscript is not installed.
    """
    if has_lora(model):
        raise CheckpointError("the model still has LoRA: merge it before exporting (oculi merge)")
    check_exportable(model)
    check_free(out)
    _need_onnx()
    said = on_progress or _nothing
    said(0, PARTS)
    model.float()
    model.cpu()
    model.eval()
    settings = _settings(model, processor, name, "int8" if int8 else "float32")
    partial = out.with_name(out.name + durable.PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    durable.reach("write", partial)
    said(1, PARTS)
    with _sdpa(model):
        _save(trace_vision(model), partial / files.VISION, int8)
        said(2, PARTS)
        _save(trace_decoder(model), partial / files.DECODER, int8)
    said(3, PARTS)
    embeddings: Any = model.get_input_embeddings()
    table = embeddings.weight.detach().numpy()
    half = int8 and np.abs(table).max() < np.finfo(np.float16).max
    np.save(partial / files.EMBEDDINGS, table.astype(np.float16) if half else table)
    tokenizer = processor.tokenizer.backend_tokenizer.to_str()
    (partial / files.TOKENIZER).write_text(tokenizer, encoding="utf-8")
    text = json.dumps(settings.to_json(), indent=1)
    (partial / files.SETTINGS).write_text(text + "\n", encoding="utf-8")
    card = CARD.format(name=name, precision=settings.precision)
    (partial / "README.md").write_text(card, encoding="utf-8")
    files.write_manifest(partial)
    said(4, PARTS)
    durable.sync_tree(partial)
    if out.exists():
        out.rmdir()
    durable.move(partial, out)
    said(5, PARTS)
    return out


def _nothing(done: int, total: int) -> None:
    """Told to nobody."""


@contextlib.contextmanager
def _sdpa(model: OculiForConditionalGeneration) -> Iterator[None]:
    """Attention as scaled_dot_product_attention, which becomes one operator; then as it was."""
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _need_onnx() -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise OculiError(f"{error.name} is not installed: pip install 'oculi[export]'") from None
    del onnx


def _settings(
    model: OculiForConditionalGeneration, processor: OculiProcessor, name: str, precision: str
) -> files.Settings:
    cut = processor.image_processor
    generation = model.generation_config
    eos = generation.eos_token_id or processor.tokenizer.eos_token_id
    return files.Settings(
        format=files.FORMAT,
        name=name,
        precision=precision,
        pictures=files.Pictures(
            patch_size=cut.patch_size, mode=cut.mode, size=cut.size, min_patches=cut.min_patches,
            max_patches=cut.max_patches, image_mean=list(cut.image_mean),
        ),
        chat=chat_ids(processor),
        eos_ids=[eos] if isinstance(eos, int) else list(eos),
        suppressed_ids=list(generation.suppress_tokens or []),
        positions=model.config.text_config.max_position_embeddings,
    )  # fmt: skip


def trace_vision(model: OculiForConditionalGeneration) -> Any:
    """The vision graph as an ``onnx_ir.Model``: ``patches`` to ``tokens`` and what fusion reads."""
    graph = VisionGraph(model).eval()
    channels = 3 * model.vision.patch_size**2
    # No size is 1 or twice another, lest the tracer takes one for the other.
    patches = torch.zeros(5, 7, channels, dtype=torch.uint8)
    free = torch.export.Dim.DYNAMIC
    return _trace(graph, (patches,), ({0: free, 1: free},), ["patches"], graph.outputs)


def trace_decoder(model: OculiForConditionalGeneration) -> Any:
    """The decoder graph as an ``onnx_ir.Model``; see ``DecoderGraph``."""
    shape, layers = _cache_shape(model), model.config.text_config.num_hidden_layers
    names = decoder_inputs(model)
    free = torch.export.Dim.DYNAMIC
    tokens = 7
    by_name = {
        "embeds": torch.zeros(1, tokens, model.width),
        "image_ids": torch.full((1, tokens), -1),
        "prompt": torch.ones(1, tokens, dtype=torch.bool),
    }
    first = [by_name[name] if name in names else None for name in by_name]
    past = [torch.zeros(shape) for _ in range(2 * layers)]
    sizes = [{1: free} if one is not None else None for one in first]
    kinds = [f"{i}_{kind}" for i in range(layers) for kind in ("key", "value")]
    given: dict[str, torch.Tensor] = {}
    fusion_past: list[torch.Tensor] = []
    if model.fusion is not None:
        given, fusion_past = fused.example(model, tokens), fused.example_past(model, past[0])
        kinds += fused.past_names(model.fusion)
    return _trace(
        DecoderGraph(model).eval(),
        (*first, given, past, fusion_past),
        (
            *sizes,
            {name: {0: free} for name in given},
            [{2: free}] * len(past),
            [{one.ndim // 2: free} for one in fusion_past],  # [1, K] and [1, H, K, E]
        ),
        [*names, *(f"past_{kind}" for kind in kinds)],
        ["logits", *(f"present_{kind}" for kind in kinds)],
    )


def _cache_shape(model: OculiForConditionalGeneration) -> tuple[int, int, int, int]:
    """[1, H, 3, E] of a block's keys, as the LLM's own cache has them for three tokens."""
    with torch.no_grad():
        ids = torch.zeros(1, 3, dtype=torch.int64)
        cache = model.llm(input_ids=ids, use_cache=True).past_key_values
    one, heads, length, width = cache.layers[0].keys.shape
    return one, heads, length, width


def _trace(
    graph: torch.nn.Module, inputs: Any, sizes: Any, input_names: list[str], output_names: list[str]
) -> Any:
    """An ``onnx_ir.Model``; raises CheckpointError where torch cannot make one."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                graph, inputs, dynamo=True, opset_version=OPSET, verbose=False,
                dynamic_shapes=sizes, input_names=input_names, output_names=output_names,
            )  # fmt: skip
    except torch.onnx.errors.OnnxExporterError as error:
        reason = str(error.__cause__ or error).strip().splitlines()[0][:200]
        raise CheckpointError(
            f"torch cannot make a graph of this model's {type(graph).__name__}: {reason}"
        ) from error
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    assert program is not None
    return program.model


def _save(graph: Any, path: Path, int8: bool) -> None:
    """Write a graph; weights that protobuf cannot hold (2 GB) go beside it, well below that already."""
    import onnx_ir as ir

    if int8:
        quantise_graph(graph)
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values())
    beside = f"{path.name}.data" if size > INLINE else None
    ir.save(graph, path, external_data=beside)
