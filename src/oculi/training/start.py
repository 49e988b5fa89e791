"""Training a model that sees already, in the place of an LLM and a new vision part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from oculi.errors import CheckpointError, RecipeError
from oculi.export.exported import exported_folder, kind_of
from oculi.hub import readable, resolve
from oculi.recipe import ModelSpec, PatchEmbedSpec, PerceiverSpec, Recipe, TowerSpec, validate
from oculi.recipe_problems import first_problem
from oculi.specs.model import TO_BE_GIVEN
from oculi.training.folder import first_difference

_VISION = {
    spec.model_fields["kind"].default: spec for spec in (PatchEmbedSpec, TowerSpec, PerceiverSpec)
}
_DESCRIBED = ("vision", "compress", "fusion", "image_attention")
# What a vision part's spec says of where it came from, or of how training computes it.
_NOT_OF_THE_MODEL = {"vision": {"init_from", "attention"}}


def begin_with(recipe: Recipe, start: str) -> Recipe:
    """The recipe with ``start`` as its model; its stages, and its LoRA if it has any, stay.

    Args:
        recipe: what is to be done.
        start: a folder that oculi has exported, a run (its last exported stage), or a hub id.

    Raises:
        CheckpointError: there is no such model, or not one of oculi's.
        RecipeError: the recipe does not fit it, as one that distils patch by patch and a model of
            compressed tokens.
    """
    # A hub id stays one: where it was downloaded to is this machine's.
    name = str(start_folder(start)) if Path(start).is_dir() else start
    model = _description(start_folder(start), name) | {
        "llm": name,
        "start": name,
        "attention": recipe.model.attention,
        "lora": recipe.model.lora and recipe.model.lora.model_dump(mode="json"),
    }
    return validate(
        recipe.model_dump(mode="json") | {"model": model}, f"{recipe.name} from {start}"
    )


def start_folder(start: str) -> Path:
    """Where the model is; raises CheckpointError."""
    if start == TO_BE_GIVEN:
        raise CheckpointError(
            "the recipe begins with a model that sees already: give it by --start"
        )
    if Path(start).is_dir():
        found = exported_folder(Path(start))
        if found is None:
            raise CheckpointError(
                f"{start} holds no exported model that its training has not left behind: export one "
                "by oculi merge, or name a folder of its stages"
            )
    else:
        found = Path(resolve(start))
    if (kind := kind_of(found)) != "oculi":
        raise CheckpointError(
            f'{start} holds a model of the kind "{kind}", not one of oculi\'s: a text LLM is --llm, and '
            "oculi convert takes released VoRA checkpoints"
        )
    return found


def check_start(spec: ModelSpec) -> Path:
    """The folder of a recipe's ``start``.

    Raises:
        CheckpointError: there is no such model.
        RecipeError: the recipe describes another.
    """
    assert spec.start is not None
    folder = start_folder(spec.start)
    own = {
        **spec.model_dump(mode="json"),
        **_description(folder, spec.start),
        "images": spec.images,
    }
    try:
        described = ModelSpec.model_validate(own)
    except ValidationError as error:
        problem = first_problem(error, own, ModelSpec)
        raise RecipeError(
            f"{spec.start} is no model that a recipe can describe: {problem}"
        ) from None
    found, said = (_compared(one) for one in (described, spec))
    if changed := first_difference(found, said, "model"):
        raise RecipeError(
            f"{spec.start} is another model than the recipe says ({changed}): name it by --start, which "
            "takes all of that from it"
        )
    return folder


def _compared(spec: ModelSpec) -> dict[str, Any]:
    content = spec.model_dump(mode="json", include=set(_DESCRIBED))
    for part, keys in _NOT_OF_THE_MODEL.items():
        content[part] = {k: v for k, v in content[part].items() if k not in keys}
    return content


def _description(folder: Path, name: str) -> dict[str, Any]:
    """What a recipe's ``model`` says of an exported folder of this name; raises CheckpointError."""
    try:
        with readable(name):
            return _read(folder, name)
    except (AttributeError, TypeError) as error:  # JSON of other types than ours
        raise CheckpointError(f"{name} cannot be loaded: {error}") from None


def _read(folder: Path, name: str) -> dict[str, Any]:
    config, processor = (
        json.loads((folder / name).read_text(encoding="utf-8"))
        for name in ("config.json", "processor_config.json")
    )
    vision, images = config["vision_config"], processor["image_processor"]
    taken = ("mode", "size", "min_patches", "max_patches")
    fields = _VISION[vision["kind"]].model_fields
    origin = {"init_from": name} if fields["init_from"].is_required() else {}
    return {
        "vision": {k: v for k, v in vision.items() if k in fields} | origin,
        "images": {key: images[key] for key in taken},
        "compress": config.get("compress_config"),
        "fusion": config.get("fuse_config"),
        "image_attention": config["image_attention"],
        "dtype": "float32" if config.get("dtype") == "float32" else "bfloat16",
    }
