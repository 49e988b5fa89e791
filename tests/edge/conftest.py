"""Exported tiny models, one trace each: patches before a Qwen2, a tower and merging before a Llama."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers import make_tower

PATCH = 4
_made: dict[str, Any] = {}


@dataclass(frozen=True)
class Exported:
    """A model, its processor, and the folder that was made of them; read only, copy it to change it."""

    model: Any
    processor: Any
    folder: Path


def export_kind(kind: str, make_model: Any, make_processor: Any, folder: Path) -> Exported:
    """Export the model of a kind."""
    from oculi.export.onnx.write import export_onnx

    compress: dict[str, Any] | None = None
    if kind == "patches":
        model = make_model("qwen2", "bidirectional", num_hidden_layers=2)
    else:
        compress = {"kind": "merge", "factor": 3}
        tower = make_tower("aimv2").config.to_dict()
        vision = {"kind": "tower", "tower": tower, "patch_size": PATCH, "layer": -2}
        model = make_model("llama", "mutual", vision=vision, compress=compress, num_hidden_layers=2)
    processor = make_processor(compress=compress)
    model.generation_config.suppress_tokens = [processor.image_token_id - 7]
    out = export_onnx(model, processor, folder / kind, kind)
    return Exported(model, processor, out)


@pytest.fixture(scope="session", params=["patches", "tower"])
def exported(request: Any, make_model: Any, make_processor: Any, tmp_path_factory: Any) -> Exported:
    """A model of each kind, made once per process."""
    return _exported(request.param, make_model, make_processor, tmp_path_factory)


@pytest.fixture(scope="session")
def patches(make_model: Any, make_processor: Any, tmp_path_factory: Any) -> Exported:
    """The model of the kind ``patches``."""
    return _exported("patches", make_model, make_processor, tmp_path_factory)


def _exported(kind: str, make_model: Any, make_processor: Any, factory: Any) -> Exported:
    if kind not in _made:
        folder = factory.mktemp("edge")
        _made[kind] = export_kind(kind, make_model, make_processor, folder)
    made: Exported = _made[kind]
    return made


@pytest.fixture
def copied(patches: Exported, tmp_path: Path) -> Path:
    """A copy of a folder, to be damaged."""
    return Path(shutil.copytree(patches.folder, tmp_path / "copy"))
