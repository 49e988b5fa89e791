"""Opening what oculi wrote: exported folders, run folders, training checkpoints with their LoRA."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from oculi.errors import CheckpointError
from oculi.export.exported import exported_folder, kind_of, load_exported
from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.model.lora import canonical_name
from oculi.recipe import Recipe
from oculi.recipe import load as load_recipe
from oculi.training import checkpoint as ckpt
from oculi.training.build import DTYPES, add_lora, build_model, build_processor, cast, recut


@dataclass(frozen=True)
class Unmerged:
    """A model with the LoRA of a training checkpoint, and where it came from."""

    model: OculiForConditionalGeneration
    processor: OculiProcessor
    recipe: Recipe
    state: ckpt.State


def load_checkpoint(path: Path) -> tuple[OculiForConditionalGeneration, OculiProcessor]:
    """Model and processor, in evaluation mode; see ``oculi.load``."""
    folder = exported_folder(path)
    if folder is not None:
        return load_exported(folder)
    unmerged = load_unmerged(path)
    cast(unmerged.model, DTYPES[unmerged.recipe.model.dtype])  # what was trained is in float32
    return unmerged.model.eval(), unmerged.processor


def load_unmerged(path: Path, base: str | None = None) -> Unmerged:
    """The model of a training checkpoint or of a run's newest one, LoRA in place.

    Args:
        path: a run folder or ``.../checkpoints/step-N``.
        base: where the original LLM is now, if it has moved.

    Raises:
        CheckpointError: nothing there, damaged files, or a base that is not the one trained on.
    """
    if given := (path / ckpt.MANIFEST).exists():
        step: Path | None = path
    else:
        step = ckpt.newest_valid(path / "checkpoints", lambda line: print(line, file=sys.stderr))
    if step is None:
        raise CheckpointError(f"{path} is neither an exported folder nor a run with checkpoints")
    run = step.parent.parent
    recipe = load_recipe(run / "recipe.yaml")
    state, tensors = ckpt.load(step, verified=not given)
    origin = base or state.base
    stage = None if base is not None else ckpt.stage_folder(run, origin, recipe.model.llm)
    folder = stage or Path(origin)
    started = recipe.model.start is not None and stage is None
    whole = kind_of(folder) == "oculi"
    if whole and not started:
        model, processor = load_exported(folder)
    else:  # what the recipe begins with, and the routed LoRA that it adds
        spec = recipe.model.model_copy(update={"start" if started else "llm": origin})
        try:
            processor = build_processor(spec)
        except CheckpointError as error:
            if base is not None or origin not in str(error):  # or it is the tower that is missing
                raise
            what = "what this run began with" if started else "the LLM of this run"
            raise CheckpointError(
                f"{error}; it is {what}; if it has moved: oculi merge --base DIR"
            ) from None
        model = build_model(spec, processor, recipe.seed)
    processor = recut(processor, recipe.images_of(state.stage))
    ckpt.check_base(ckpt.base_hashes(model, whole), state.base_tensors, origin)
    if state.lora:
        add_lora(model, recipe.model, recipe.seed)
    own = {k: v for k, v in tensors.items() if not k.startswith("objectives.")}
    parameters = {canonical_name(n): p for n, p in model.named_parameters()}
    ckpt.restore(parameters, own, step)
    return Unmerged(model, processor, recipe, state)
