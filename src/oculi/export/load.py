"""Opening what oculi wrote: exported folders, run folders, training checkpoints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from oculi.errors import CheckpointError
from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.model.lora import canonical_name
from oculi.recipe import Recipe
from oculi.recipe import load as load_recipe
from oculi.train import checkpoint as ckpt
from oculi.train.build import add_lora, build_model, build_processor


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
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder}/config.json cannot be read: {error}") from None
    if kind != "oculi":
        raise CheckpointError(f"{folder} holds a {kind} model, not one of oculi's")
    try:
        model = OculiForConditionalGeneration.from_pretrained(folder)
        processor = OculiProcessor.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{folder} cannot be loaded: {' '.join(str(error).split())}"
        ) from None
    return model.eval(), processor


def load_unmerged(path: Path, base: str | None = None) -> Unmerged:
    """The model of a training checkpoint or of a run's newest one, LoRA in place.

    Args:
        path: a run folder or ``.../checkpoints/step-N``.
        base: where the original LLM is now, if it has moved.

    Raises:
        CheckpointError: nothing there, damaged files, or a base that is not the one trained on.
    """
    step = path if (path / ckpt.MANIFEST).exists() else ckpt.newest(path / "checkpoints")
    if step is None:
        raise CheckpointError(f"{path} is neither an exported folder nor a run with checkpoints")
    run = step.parent.parent
    recipe = load_recipe(run / "recipe.yaml")
    state, tensors = ckpt.load(step)
    origin = base or state.base
    folder = ckpt.stage_folder(run, origin) or Path(origin)
    if _is_ours(folder):
        model, processor = load_exported(folder)
    else:
        spec = recipe.model.model_copy(update={"llm": origin})
        processor = build_processor(spec)
        model = build_model(spec, processor, recipe.seed)
    ckpt.check_base(ckpt.tensor_hashes(model.llm), state.base_tensors, origin)
    if state.lora:
        add_lora(model, recipe.model, recipe.seed)
    own = {k: v for k, v in tensors.items() if not k.startswith("objectives.")}
    parameters = {canonical_name(n): p for n, p in model.named_parameters()}
    ckpt.restore(parameters, own, step)
    return Unmerged(model, processor, recipe, state)


def _is_ours(folder: Path) -> bool:
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(config.get("model_type") == "oculi")


def _exported(path: Path) -> Path | None:
    """The folder itself, or the last stage that a run has exported, unless training went on since."""
    if (path / "config.json").exists():
        return path
    if (path / ckpt.MANIFEST).exists():
        return None
    if not path.is_dir():
        raise CheckpointError(f"{path} is no folder")
    stages = sorted((p.parent for p in path.glob("stages/*/config.json")), key=_stage_number)
    newest = ckpt.newest(path / "checkpoints")
    if stages and newest is not None and ckpt.load_state(newest).stage > _stage_number(stages[-1]):
        return None
    return stages[-1] if stages else None


def _stage_number(folder: Path) -> int:
    return int(folder.name.split("-")[0])
