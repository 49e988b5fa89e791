"""What is wrong with a recipe, in one line: the dotted key, the reason, the nearest valid name."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from oculi.errors import nearest
from oculi.recipe import (
    DistillSpec,
    EvalSpec,
    FileSource,
    ImageSpec,
    LanguageSource,
    LmSpec,
    LoraSpec,
    ModelSpec,
    PatchEmbedSpec,
    PlayroomSource,
    Recipe,
    Stage,
    Strict,
    TowerSpec,
)

# Parts of a recipe that may be of several kinds, by their key.
_KINDS: dict[str, dict[str, type[Strict]]] = {
    "vision": {"patch_embed": PatchEmbedSpec, "tower": TowerSpec},
    "objectives": {"lm": LmSpec, "distill": DistillSpec},
    "data": {"file": FileSource, "playroom": PlayroomSource, "language": LanguageSource},
}


def first_problem(error: ValidationError, data: dict[str, Any]) -> str:
    """The first thing that pydantic found wrong with ``data``, in one line by its dotted key."""
    problem = error.errors()[0]
    # A tagged union puts its tag into the location; a reader's file has no such level.
    parts: list[Any] = []
    node: Any = data
    for part in problem["loc"]:
        if isinstance(node, dict) and part not in node and node.get("kind") == part:
            continue
        parts.append(part)
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            node = None
    where = ".".join(str(part) for part in parts)
    if problem["type"] == "union_tag_not_found":
        union = next(str(part) for part in reversed(parts) if part in _KINDS)
        return f"{where}: kind is missing; it is one of {', '.join(_KINDS[union])}"
    if problem["type"] == "extra_forbidden":
        return f'unknown key "{where}"{nearest(str(parts[-1]), _known_keys(parts[:-1], data))}'
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where or 'recipe'}: {message}"


def _known_keys(parts: list[Any], data: dict[str, Any]) -> list[str]:
    """Keys the part of a recipe at ``parts`` may have, from the models themselves."""
    model: Any = Recipe
    steps = {
        "model": ModelSpec, "images": ImageSpec, "lora": LoraSpec, "stages": Stage,
        "evals": EvalSpec,
    }  # fmt: skip
    node: Any = data
    chosen: dict[str, type[Strict]] = {}
    for part in parts:
        node = node[part]
        if part in _KINDS:
            chosen = _KINDS[part]
        elif part in steps:
            model, chosen = steps[part], {}
        if chosen and isinstance(node, dict):
            model = chosen.get(str(node.get("kind")), Strict)
    return list(model.model_fields)
