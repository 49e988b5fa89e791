"""Writes ``docs/settings.md`` from the descriptions that a recipe's fields carry.

    python tests/settings_page.py

``tests/test_recipe.py`` holds the page to them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from oculi.recipe import Recipe

PAGE = Path(__file__).parent.parent / "docs" / "settings.md"
HEAD = """# Settings

All that a recipe can set, written from its classes by `python tests/settings_page.py`. `oculi recipes
NAME` prints a recipe's values, and that text, kept in a file, is a recipe; `oculi train RECIPE
stages.0.lr=1e-3` changes one. Lists are counted from 0, an unknown key is refused with the nearest that
there is, and a part that is null, as `model.lora`, is set as a whole: `'model.lora={rank: 64}'`.
Defaults are those of the classes: recipes have their own.
"""


def page() -> str:
    """The page's text: a table for each part, in the order in which parts are named."""
    schema = Recipe.model_json_schema()
    parts, named = schema.pop("$defs"), ["Recipe"]
    parts["Recipe"] = schema
    text = HEAD
    for name in named:  # grows
        text += f"\n## {name.removesuffix('Spec')}\n\n{_first_line(parts[name])}\n\n"
        text += "| key | | default | |\n|---|---|---|---|\n"
        for key, field in parts[name]["properties"].items():
            named += [part for part in _parts(field) if part not in named]
            told = "tells it from the others" if key == "kind" else ""
            description = str(field.get("description", told)).replace("None", "null")
            text += f"| `{key}` | {_type(field)} | {_default(field)} | {description} |\n"
    return text


def _first_line(part: dict[str, Any]) -> str:
    return str(part["description"]).split("\n\n")[0].replace("``", "`")


def _parts(field: Any) -> list[str]:
    """Names of the classes within a field, in order."""
    if isinstance(field, list):
        return [name for one in field for name in _parts(one)]
    if not isinstance(field, dict):
        return []
    own = [field["$ref"].rpartition("/")[2]] if "$ref" in field else []
    return own + [
        name for key, one in field.items() if key != "discriminator" for name in _parts(one)
    ]


def _type(field: dict[str, Any]) -> str:
    if names := _parts(field):
        many = "several of " if field.get("type") == "array" else ""
        short = [name.removesuffix("Spec") for name in dict.fromkeys(names)]
        null = [{"type": "null"}] if {"type": "null"} in field.get("anyOf", []) else []
        return many + " or ".join(
            [*(f"[{s}](#{s.lower()})" for s in short), *(["null"] if null else [])]
        )
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "anyOf" in field:
        return " or ".join(map(_type, field["anyOf"]))
    if "prefixItems" in field:
        return " and ".join(map(_type, field["prefixItems"]))
    if field["type"] == "array":
        return f"list of {_type(field['items'])}s"
    if field["type"] == "object":
        return f"text to {_type(field['additionalProperties'])}"
    return {"string": "text", "boolean": "true or false"}.get(
        field["type"], field["type"]
    ) + _range(field)


def _range(field: dict[str, Any]) -> str:
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    said = [
        f"{sign} {field[key]:g}"
        for key, sign in signs.items()
        if abs(field.get(key, 2**63)) < 2**62
    ]
    return " " + ", ".join(said) if said else ""


def _default(field: dict[str, Any]) -> str:
    return f"`{json.dumps(field['default'])}`" if "default" in field else ""


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
