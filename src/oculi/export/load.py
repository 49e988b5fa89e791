"""Opening what oculi wrote: exported folders, run folders, training checkpoints."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

from oculi.errors import CheckpointError
from oculi.hub import load_weights, readable
from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.model.lora import canonical_name
from oculi.recipe import Recipe
from oculi.recipe import load as load_recipe
from oculi.training import checkpoint as ckpt
from oculi.training.build import add_lora, build_model, build_processor, recut


@dataclass(frozen=True)
class Unmerged:
    """A model with the LoRA of a training checkpoint, and where it came from."""

    model: OculiForConditionalGeneration
    processor: OculiProcessor
    recipe: Recipe
    state: ckpt.State


def load_checkpoint(path: Path) -> tuple[OculiForConditionalGeneration, OculiProcessor]:
    """Model and processor, in evaluation mode; see ``oculi.load``."""
    folder = _exported(path)
    if folder is not None:
        return load_exported(folder)
    unmerged = load_unmerged(path)
    return unmerged.model.eval(), unmerged.processor


def load_exported(folder: Path) -> tuple[OculiForConditionalGeneration, OculiProcessor]:
    """An exported folder, with oculi's own code and none of the folder's.

    Raises:
        CheckpointError: it is another kind of model, or files are missing.
    """
    processor = load_processor(folder)
    place = str(folder)
    model = load_weights(OculiForConditionalGeneration, place, place, exact=True)
    return model.eval(), processor


def load_processor(folder: Path) -> OculiProcessor:
    """The processor of an exported folder; raises CheckpointError as `load_exported` does."""
    kind = _kind(folder)
    if kind is None:
        raise CheckpointError(f"{folder}/config.json is not there or cannot be read")
    if kind != "oculi":
        raise CheckpointError(f'{folder} holds a model of the kind "{kind}", not one of oculi\'s')
    with readable(str(folder)):
        processor: OculiProcessor = OculiProcessor.from_pretrained(folder)
    return processor


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
    folder = ckpt.stage_folder(run, origin) or Path(origin)
    if _kind(folder) == "oculi":
        model, processor = load_exported(folder)
    else:
        spec = recipe.model.model_copy(update={"llm": origin})
        try:
            processor = build_processor(spec)
        except CheckpointError as error:
            if base is not None or origin not in str(error):  # or it is the tower that is missing
                raise
            hint = "it is the LLM of this run; if it has moved: oculi merge --base DIR"
            raise CheckpointError(f"{error}; {hint}") from None
        model = build_model(spec, processor, recipe.seed)
    processor = recut(processor, recipe.images_of(state.stage))
    ckpt.check_base(ckpt.base_hashes(model), state.base_tensors, origin)
    if state.lora:
        add_lora(model, recipe.model, recipe.seed)
    own = {k: v for k, v in tensors.items() if not k.startswith("objectives.")}
    parameters = {canonical_name(n): p for n, p in model.named_parameters()}
    ckpt.restore(parameters, own, step)
    return Unmerged(model, processor, recipe, state)


def _kind(folder: Path) -> str | None:
    """The ``model_type`` of a folder, or None if it has none that can be read."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _exported(path: Path) -> Path | None:
    """The folder itself, or the last stage that a run has exported, unless training went on since."""
    if (path / "config.json").exists():
        return path
    if (path / ckpt.MANIFEST).exists():
        return None
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder")
    found = [p.parent for p in path.glob("stages/*/config.json")]
    whole = [p for p in found if p.suffix != ".partial"]  # one that a kill has cut stays behind
    stages = sorted(whole, key=_stage_number)
    newest = ckpt.newest(path / "checkpoints")
    if stages and newest is not None and ckpt.load_state(newest).stage > _stage_number(stages[-1]):
        return None
    return stages[-1] if stages else None


def _stage_number(folder: Path) -> int:
    return int(folder.name.split("-")[0])
