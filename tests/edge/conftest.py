"""Exported tiny models, one trace each.

Patches before a Qwen2; a tower and merging before a Llama; a tower of any grid, pooling and two layers
of combined fusion before a Qwen2.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from helpers import make_tower

PATCH = 4
_made: dict[str, Any] = {}


@dataclass(frozen=True)
class Exported:
    """A model, its processor, and the folder that was made of them; read only, copy it to change it."""

    model: Any
    processor: Any
    folder: Path


def _patches() -> dict[str, Any]:
    return {"family": "qwen2", "policy": "bidirectional"}


def _tower() -> dict[str, Any]:
    tower = make_tower("aimv2").config.to_dict()
    vision = {"kind": "tower", "tower": tower, "patch_size": PATCH, "layer": -2}
    compress = {"kind": "merge", "factor": 3}
    return {"family": "llama", "policy": "mutual", "vision": vision, "compress": compress}


def _fused() -> dict[str, Any]:
    tower = make_tower("aimv2", is_native=True).config.to_dict()
    return {
        "family": "qwen2", "policy": "bidirectional",
        "vision": {
            "kind": "tower", "tower": tower, "patch_size": PATCH, "layer": -1, "final_norm": True,
        },
        "compress": {"kind": "maxpool", "patches": 16, "tokens": 4},
        "fusion": {"kind": "combined", "layers": 2},
    }  # fmt: skip


KINDS = {"patches": _patches, "tower": _tower, "fused": _fused}


def export_kind(kind: str, make_model: Any, make_processor: Any, folder: Path) -> Exported:
    """The model of a kind, exported under ``folder`` unless another process has done that."""
    from oculi.export.onnx.write import export_onnx

    settings = KINDS[kind]()
    model = make_model(**settings, num_hidden_layers=2)
    processor = make_processor(compress=settings.get("compress"))
    model.generation_config.suppress_tokens = [processor.image_token_id - 7]
    with FileLock(folder / f"{kind}.lock"):
        out = folder / kind
        if not out.exists():
            export_onnx(model, processor, out, kind)
    return Exported(model, processor, out)


@pytest.fixture(scope="session", params=list(KINDS))
def exported(request: Any, make_model: Any, make_processor: Any, tmp_path_factory: Any) -> Exported:
    """A model of each kind, made once per process."""
    return _exported(request.param, make_model, make_processor, tmp_path_factory)


@pytest.fixture(scope="session")
def patches(make_model: Any, make_processor: Any, tmp_path_factory: Any) -> Exported:
    """The model of the kind ``patches``."""
    return _exported("patches", make_model, make_processor, tmp_path_factory)


@pytest.fixture(scope="session")
def fused(make_model: Any, make_processor: Any, tmp_path_factory: Any) -> Exported:
    """The model of the kind ``fused``."""
    return _exported("fused", make_model, make_processor, tmp_path_factory)


def _exported(kind: str, make_model: Any, make_processor: Any, factory: Any) -> Exported:
    if kind not in _made:
        # Workers of one run share it: a trace takes longer than the tests of what it gives.
        base = factory.getbasetemp()
        folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "edge-models"
        folder.mkdir(exist_ok=True)
        _made[kind] = export_kind(kind, make_model, make_processor, folder)
    made: Exported = _made[kind]
    return made


@pytest.fixture
def copied(patches: Exported, tmp_path: Path) -> Path:
    """A copy of a folder, to be damaged."""
    return Path(shutil.copytree(patches.folder, tmp_path / "copy"))
