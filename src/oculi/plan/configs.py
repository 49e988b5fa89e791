"""The configuration of a checkpoint by name, without its weights and without the network.

oculi ships the shapes of the checkpoints that its recipes and their papers name, in ``oculi/configs``:
the keys of their ``config.json`` that decide how many parameters and products there are, and no others.
They are for planning; training reads the checkpoint's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from oculi.errors import CheckpointError, RecipeError
from oculi.hub import readable, resolve
from oculi.model import OculiConfig
from oculi.objectives.latents import check_class, part_folder, read_config
from oculi.objectives.teacher import TOWERS

FOLDER = Path(__file__).parent.parent / "configs"


def diffusers_config(name: str, part: str) -> dict[str, Any]:
    """Configuration of a pipeline's part, as ``load_part`` takes it, without its weights.

    Raises:
        CheckpointError: it is neither in a folder nor shipped, or of another class.
    """
    file = FOLDER / name / f"{part}.json"
    if file.is_file() and not Path(name).is_dir():
        config: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    elif name.startswith("testbed:") or Path(name).is_dir():
        config = read_config(part_folder(name, part), name)
    else:
        raise CheckpointError(
            f"{name} is no folder here, and the configuration of its {part} does not come with oculi: "
            "give a folder with it (no weights are needed)"
        )
    check_class(config, part, name)
    return config


def shipped() -> dict[str, Path]:
    """File of every configuration that comes with oculi, by hub id."""
    return {f"{file.parent.name}/{file.stem}": file for file in sorted(FOLDER.glob("*/*.json"))}


def find_config(name: str) -> PreTrainedConfig:
    """Configuration of ``testbed:NAME``, of a folder, or of a hub id whose configuration is shipped.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    known = shipped()
    if name in known and not Path(name).is_dir():
        return AutoConfig.for_model(**json.loads(known[name].read_text(encoding="utf-8")))
    if not (name.startswith("testbed:") or Path(name).is_dir()):
        raise CheckpointError(
            f"{name} is no folder here, and its configuration does not come with oculi: give a folder "
            f"with its config.json (no weights are needed), or one of {', '.join(known)}"
        )
    path = resolve(name)
    with readable(name):
        return AutoConfig.from_pretrained(path)


def llm_config(name: str) -> PreTrainedConfig:
    """Configuration of a text LLM; raises CheckpointError, and RecipeError where it can see already."""
    config = find_config(name)
    if config.model_type == OculiConfig.model_type or hasattr(config, "vision_config"):
        raise RecipeError(f"model.llm: {name} can see already; give the text LLM it was made from")
    return config


def tower_config(name: str) -> Any:
    """Configuration of a vision tower, taken out of a two-tower model's; raises CheckpointError."""
    config = find_config(name)
    if config.model_type not in TOWERS:
        raise CheckpointError(
            f"{name} is a {config.model_type}, no vision tower; known are {', '.join(sorted(TOWERS))}"
        )
    return getattr(config, "vision_config", config)
