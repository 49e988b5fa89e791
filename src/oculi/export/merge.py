"""``oculi merge``: a training checkpoint with LoRA to a folder without."""

from __future__ import annotations

from pathlib import Path

import torch

from oculi.errors import CheckpointError
from oculi.export.hf import check_free, export
from oculi.export.load import load_unmerged
from oculi.model import OculiForConditionalGeneration
from oculi.model.lora import NOT_MERGED, merge_lora
from oculi.recipe import Recipe
from oculi.training.build import DTYPES, cast
from oculi.training.precision import as_trained


def merge_run(run: Path, out: Path, base: str | None = None) -> float:
    """Fold the LoRA of a run's newest checkpoint (or of a given one) and export the result.

    Args:
        run: a run folder or ``.../checkpoints/step-N``.
        out: folder to write.
        base: where the original LLM is now, if it has moved.

    Returns:
        the largest difference that merging made to a logit.

    Raises:
        CheckpointError: there is no LoRA any more, it is routed, the base is another, or ``out`` exists.
    """
    check_free(out)  # before minutes of loading
    unmerged = load_unmerged(run, base)
    if unmerged.recipe.model.lora is None:
        raise CheckpointError(
            f"{run} has no LoRA: its recipe trains without, and exports each stage"
        )
    if unmerged.recipe.model.lora.routed:
        raise CheckpointError(f"the LoRA of {run} is routed: {NOT_MERGED}: see the run's stages/")
    if not unmerged.state.lora:
        raise CheckpointError(
            f"{run} has no LoRA left to merge: it was merged after an earlier stage; the exported "
            "folders are in its stages/"
        )
    difference = fold(unmerged.model, unmerged.recipe)
    recipe = unmerged.recipe
    export(unmerged.model, unmerged.processor, out, recipe.name, recipe.summary)
    return difference


@torch.no_grad()
def fold(model: OculiForConditionalGeneration, recipe: Recipe) -> float:
    """Merge LoRA in place, cast to the recipe's dtype; returns the largest change of a logit.

    The logits compared are those of 64 fixed token ids, before and after the fold, in the model's own
    dtype (before, under autocast if it has two); their difference is taken in float32.
    """
    model.eval()
    vocabulary = model.config.text_config.vocab_size
    ids = torch.arange(64, device=model.device)[None] * 7919 % vocabulary
    ids = ids.masked_fill(ids == model.config.image_token_id, 0)
    with as_trained(model):
        before = model(input_ids=ids).logits.float()
    merge_lora(model.llm)
    cast(model, DTYPES[recipe.model.dtype])
    return float((model(input_ids=ids).logits.float() - before).abs().max())
