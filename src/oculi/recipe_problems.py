"""What is wrong with a recipe, in one line: the dotted key, the reason, the nearest valid name."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import ValidationError

from oculi.errors import nearest
from oculi.specs.base import Strict


def first_problem(error: ValidationError, data: dict[str, Any], whole: type[Strict]) -> str:
    """The first thing that pydantic found wrong with ``data``, in one line by its dotted key.

    Args:
        error: what it raised.
        data: what it was given.
        whole: the model that was to be made of it.
    """
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
        kinds = [part.model_fields["kind"].default for part in _options(parts, data, whole)]
        return f"{where}: kind is missing; it is one of {', '.join(kinds)}"
    if problem["type"] == "extra_forbidden":
        return (
            f'unknown key "{where}"{nearest(str(parts[-1]), _known_keys(parts[:-1], data, whole))}'
        )
    message = problem["msg"].removeprefix("Value error, ")
    return f"{where or 'recipe'}: {message}"


def _known_keys(parts: list[Any], data: dict[str, Any], whole: type[Strict]) -> list[str]:
    """Keys the part of a recipe at ``parts`` may have, from the models themselves."""
    options = _options(parts, data, whole)
    return list(options[0].model_fields) if len(options) == 1 else []


def _options(parts: list[Any], data: dict[str, Any], whole: type[Strict]) -> list[type[Strict]]:
    """What may stand at ``parts``: of several kinds the one that ``data`` names, or all of them."""
    options: list[type[Strict]] = [whole]
    node: Any = data
    for part in parts:
        try:
            node = node[part]
        except (KeyError, IndexError, TypeError):
            return []  # a part that was built by itself: the rest of ``data`` is not known
        if isinstance(part, str):
            found = [o.model_fields[part].annotation for o in options if part in o.model_fields]
            options = [model for annotation in found for model in _models(annotation)]
        if isinstance(node, dict) and "kind" in node:
            options = [o for o in options if o.model_fields["kind"].default == node["kind"]]
    return options


def _models(annotation: Any) -> list[type[Strict]]:
    """The models in an annotation such as ``tuple[Annotated[A | B, ...], ...]``."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models(inner)]
