"""Folders that oculi has exported: where they are, and what is in them."""

from __future__ import annotations

import json
from pathlib import Path

from oculi.errors import CheckpointError
from oculi.hub import load_weights, readable
from oculi.model import OculiForConditionalGeneration, OculiProcessor
from oculi.training import checkpoint as ckpt


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
    kind = kind_of(folder)
    if kind is None:
        raise CheckpointError(f"{folder}/config.json is not there or cannot be read")
    if kind != "oculi":
        raise CheckpointError(f'{folder} holds a model of the kind "{kind}", not one of oculi\'s')
    with readable(str(folder)):
        processor: OculiProcessor = OculiProcessor.from_pretrained(folder)
    return processor


def kind_of(folder: Path) -> str | None:
    """The ``model_type`` of a folder, or None if it has none that can be read."""
    try:
        return str(json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def exported_folder(path: Path) -> Path | None:
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
