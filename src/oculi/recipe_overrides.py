"""``dotted.key=value``: changes of a recipe's plain data, before it is validated."""

from __future__ import annotations

from typing import Any

import yaml

from oculi.errors import RecipeError, nearest


def _value(text: str) -> Any:
    try:
        value = yaml.safe_load(text)
        return float(value) if isinstance(value, str) else value  # YAML reads 1e-4 as a string
    except (yaml.YAMLError, ValueError):
        return text


def assign(data: Any, key: str, text: str) -> None:
    """Set a dotted key in nested lists and dictionaries to a value written as YAML.

    Raises:
        RecipeError: there is no such key; the nearest one is named.
    """
    value = _value(text)
    parts = key.split(".")
    node: Any = data
    for i, part in enumerate(parts):
        here = ".".join(parts[:i])
        if isinstance(node, list):
            if not part.isdecimal() or int(part) >= len(node):
                raise RecipeError(f'"{key}": {here} has {len(node)} entries, from 0; got "{part}"')
            node_key: Any = int(part)
        elif isinstance(node, dict):
            if here.endswith("trainable"):  # globs hold dots themselves
                node[".".join(parts[i:])] = value
                return
            if part not in node:
                # Compared without what stands before it: a long prefix makes all keys alike.
                guess = nearest(part, node) or f"; known here: {', '.join(sorted(node))}"
                raise RecipeError(f'unknown key "{key}"{guess}')
            node_key = part
        else:
            raise RecipeError(f'"{key}": {here} is a value, it has no "{part}"')
        if i == len(parts) - 1:
            node[node_key] = value
        else:
            node = node[node_key]
