"""What the fusion module is worth to a trained model: its score with the wrong pictures, and its time.

Only the fusion's input is shuffled. The LLM still gets the right picture's compressed tokens, so what is
lost is what text reads of the uncompressed ones; a module that costs nothing then is idle.

Shapes: P patches of all images, N images, p patches of one, D the LLM's width.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from oculi.ablate.asking import right
from oculi.data.loader import encode_sample
from oculi.data.source import PlayroomRows
from oculi.errors import AblationError
from oculi.eval.evaluate import evaluate
from oculi.eval.tasks import open_task
from oculi.export.exported import load_exported
from oculi.model import OculiForConditionalGeneration
from oculi.recipe import PlayroomSource

WARM, TIMED = 2, 20


@contextmanager
def shuffled(model: OculiForConditionalGeneration) -> Iterator[None]:
    """Within, fusion reads at each picture's place the one before; at first, the last call's last.

    Raises:
        AblationError: pictures have different numbers of patches, so that they cannot change places.
    """
    kept: list[Tensor] = []

    def hook(module: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        embeds, vision_PD, wide, *others = args
        if not len(vision_PD):
            return args
        counts = torch.bincount(wide.images_BW[wide.images_BW >= 0])
        if int(counts.min()) != int(counts.max()):
            raise AblationError(
                "pictures of different sizes cannot change places: ask a task whose pictures are alike"
            )
        images_NpD = vision_PD.view(len(counts), -1, vision_PD.shape[1])
        before = kept.pop() if kept else images_NpD[-1]
        kept.append(images_NpD[-1])
        moved = torch.cat([before[None], images_NpD[:-1]])
        return embeds, moved.flatten(0, 1), wide, *others

    handle = model.fusion.register_forward_pre_hook(hook)
    try:
        yield
    finally:
        handle.remove()


def score_shuffled(stage: Path, task: str, out: Path, limit: int | None) -> dict[str, Any]:
    """``score`` and ``correct`` of an exported model whose fusion reads other pictures.

    Args:
        stage: the exported folder. task: as ``oculi eval`` names it.
        out: folder for the answers. limit: number of questions.

    Raises:
        AblationError: the model has no fusion, or pictures differ in size.
    """
    model, processor = load_exported(stage)
    if model.fusion is None:
        raise AblationError(f"{stage} has no fusion module whose input could be shuffled")
    with shuffled(model):
        result = evaluate(model, processor, open_task(task), out, limit=limit)
    return {"score": result["exact"]["score"], "correct": right(out)}


@torch.inference_mode()
def prefill_milliseconds(stage: Path, level: int = 1) -> float:
    """Median time to read one picture of Playroom and its question, batch 1, on this machine."""
    model, processor = load_exported(stage)
    sample = PlayroomRows(PlayroomSource(level=level, samples=1, split="test"))[0]
    encoded = encode_sample(sample, processor)
    batch = processor.collate([encoded]).to(model.device)
    times = []
    for number in range(WARM + TIMED):
        began = time.perf_counter()
        model(**batch, logits_to_keep=1)
        if number >= WARM:
            times.append(1000 * (time.perf_counter() - began))
    return median(times)
