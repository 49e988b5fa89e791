"""The built-in recipes: functions that return a ``Recipe``; private ones are ``file.py:function``."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from oculi.errors import RecipeError, nearest
from oculi.recipe import Recipe, load
from oculi.recipe_problems import first_problem
from oculi.recipes.aurora import aurora, aurora_16
from oculi.recipes.aurora_future import (
    aurora_reconstruct,
    aurora_reconstruct_tiny,
    aurora_video,
)
from oculi.recipes.finetune import finetune, finetune_lora
from oculi.recipes.llava import llava, llava_aimv2, llava_next
from oculi.recipes.tiny import llava_tiny, vora_tiny
from oculi.recipes.tiny_aurora import aurora_tiny
from oculi.recipes.vlsa import (
    vlsa,
    vlsa_tiny,
    vlsa_tiny_instructions,
    vlsa_tiny_snapshot,
    vlsa_tiny_tiles,
)
from oculi.recipes.vora import vora, vora_8m, vora_anyres

BUILTIN: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        vora,
        vora_8m,
        vora_anyres,
        llava,
        llava_aimv2,
        llava_next,
        vlsa,
        vora_tiny,
        llava_tiny,
        vlsa_tiny,
        vlsa_tiny_snapshot,
        vlsa_tiny_tiles,
        vlsa_tiny_instructions,
        aurora,
        aurora_16,
        aurora_reconstruct,
        aurora_video,
        aurora_tiny,
        aurora_reconstruct_tiny,
        finetune,
        finetune_lora,
    )
}


def find_recipe(name: str) -> Recipe:
    """A recipe by built-in name, ``file.py:function``, or ``recipe.yaml``.

    Raises:
        RecipeError: there is none; the nearest built-in name is given.
    """
    if name in BUILTIN:
        return BUILTIN[name]()
    path, colon, function = name.rpartition(":")
    if colon and path.endswith(".py"):
        return _from_python(Path(path), function)
    if name.endswith((".yaml", ".yml")):
        return load(Path(name))
    raise RecipeError(
        f'unknown recipe "{name}"{nearest(name, BUILTIN)}; built in are {", ".join(BUILTIN)}, and '
        "file.py:function or a recipe.yaml work too"
    )


def _from_python(path: Path, function: str) -> Recipe:
    if not path.is_file():
        raise RecipeError(f"there is no file {path}")
    spec = importlib.util.spec_from_file_location(f"_oculi_recipe_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    if not callable(getattr(module, function, None)):
        names = [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")]
        raise RecipeError(f'{path} has no function "{function}"{nearest(function, names)}')
    try:
        recipe = getattr(module, function)()
    except ValidationError as error:
        raise RecipeError(f"{path}:{function}: {first_problem(error, {}, Recipe)}") from None
    if not isinstance(recipe, Recipe):
        raise RecipeError(f"{path}:{function} returned {type(recipe).__name__}, not a Recipe")
    return recipe
