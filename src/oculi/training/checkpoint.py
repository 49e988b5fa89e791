"""Training checkpoints: what differs from the base, committed as a whole or not at all.

``checkpoints/step-N/`` holds ``tensors.safetensors`` (every tensor that training has changed, by
canonical name), ``optimizer.pt``, ``state.json`` and ``MANIFEST.json`` with the SHA-256 of each file.
The base model is not copied; its fingerprint is, and a merge or a resume on another base is refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from oculi.errors import CheckpointError
from oculi.model import OculiForConditionalGeneration
from oculi.model.lora import canonical_name

MANIFEST = "MANIFEST.json"
FILES = ("tensors.safetensors", "optimizer.pt", "state.json")


@dataclass(frozen=True)
class State:
    """Where a run was.

    Attributes:
        stage: number of the stage. step: steps done in it. total_steps: over all stages.
        lora: whether LoRA is in the model.
        base: folder or id that the tensors are changes to.
        base_tensors: SHA-256 of every tensor of the base LLM and of a vision tower, by name.
        seconds: spent training so far.
    """

    stage: int
    step: int
    total_steps: int
    lora: bool
    base: str
    base_tensors: dict[str, str]
    seconds: float


def stage_folder(run: Path, base: str) -> Path | None:
    """The exported stage that a base names relative to its run, or None for any other base."""
    folder = run / base
    inside = Path(base).parts[:1] == ("stages",)
    return folder if inside and (folder / "config.json").exists() else None


def tensor_hashes(module: nn.Module) -> dict[str, str]:
    """SHA-256 of each parameter of a model (its name, dtype, shape and bytes), without its LoRA."""
    hashes = {}
    for name, parameter in module.named_parameters():
        name = canonical_name(name)
        if name.endswith((".lora_A", ".lora_B")):
            continue
        data = parameter.detach().cpu().contiguous()
        digest = hashlib.sha256(f"{name} {data.dtype} {tuple(data.shape)} ".encode())
        digest.update(data.view(torch.uint8).numpy().tobytes())
        hashes[name] = digest.hexdigest()
    return hashes


def base_hashes(model: OculiForConditionalGeneration) -> dict[str, str]:
    """Of all that a run takes as it is: the LLM by its own names, a tower's tensors as ``vision.*``."""
    hashes = tensor_hashes(model.llm)
    for part, module in model.vision.named_children():
        if isinstance(module, PreTrainedModel):
            found = tensor_hashes(module)
            hashes |= {f"vision.{part}.{name}": value for name, value in found.items()}
    return hashes


def check_base(found: Mapping[str, str], expected: Mapping[str, str], base: str) -> None:
    """Raises CheckpointError naming the first tensor in which two bases differ."""
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            if name.startswith("vision."):
                raise CheckpointError(
                    f"the vision tower is not the one that this run was trained on: {name} differs. "
                    "Put the original one where the recipe's model.vision.init_from says"
                )
            raise CheckpointError(
                f"{base} is not the LLM that this run was trained on: {name} differs. Give the "
                "original one with --base"
            )


def save(
    folder: Path,
    state: State,
    tensors: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
) -> Path:
    """Write ``folder/step-N``; it appears under that name only when it is complete and on the disk.

    ``optimizer`` is the optimizer's ``state_dict``.
    """
    final = folder / f"step-{state.total_steps:07d}"
    partial = final.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    save_file(contiguous, partial / "tensors.safetensors")
    torch.save(dict(optimizer), partial / "optimizer.pt")
    (partial / "state.json").write_text(json.dumps(asdict(state)), encoding="utf-8")
    files = {p.name: {"sha256": _sha256(p), "bytes": p.stat().st_size} for p in partial.iterdir()}
    (partial / MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    for path in [*partial.iterdir(), partial]:
        _fsync(path)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _fsync(folder)
    return final


def newest(folder: Path) -> Path | None:
    """The checkpoint with the highest step, or None."""
    found = [p for p in folder.glob("step-*") if re.fullmatch(r"step-\d+", p.name)]
    return max(found, key=lambda p: int(p.name[5:]), default=None)


def load(path: Path) -> tuple[State, dict[str, Tensor]]:
    """State and tensors of a checkpoint, verified.

    Raises:
        CheckpointError: a file is missing or is not what was written.
    """
    verify(path)
    return load_state(path), load_file(path / "tensors.safetensors")


def load_state(path: Path) -> State:
    """The state alone, not verified; raises CheckpointError."""
    try:
        return State(**json.loads((path / "state.json").read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}/state.json cannot be read: {error}") from None


def load_optimizer(path: Path) -> dict[str, Any]:
    """Optimizer state of a verified checkpoint; no code in it is run."""
    loaded: dict[str, Any] = torch.load(
        path / "optimizer.pt", weights_only=True, map_location="cpu"
    )
    return loaded


def verify(path: Path) -> None:
    """Compare every file with the manifest; raises CheckpointError naming the file that differs."""
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))["files"]
        sums = {name: entry["sha256"] for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise CheckpointError(f"{path} has no readable {MANIFEST}: it is no checkpoint") from None
    instead = f"remove {path} to use an earlier checkpoint"
    for name in FILES:
        if name not in sums:
            raise CheckpointError(f"{path}/{MANIFEST} does not list {name}; {instead}")
        if not (path / name).is_file():
            raise CheckpointError(f"{path / name} is missing; {instead}")
        if _sha256(path / name) != sums[name]:
            raise CheckpointError(
                f"{path / name} is damaged (its SHA-256 is not the manifest's); {instead}"
            )


@torch.no_grad()
def restore(parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: Path) -> None:
    """Copy tensors into parameters of the same canonical names.

    Raises:
        CheckpointError: a tensor has no parameter, or another shape.
    """
    for name, value in tensors.items():
        target = parameters.get(name)
        if target is None or target.shape != value.shape:
            have = "no such parameter" if target is None else f"shape {tuple(target.shape)}"
            raise CheckpointError(
                f"{path}: {name} {tuple(value.shape)} does not fit: the model has {have}"
            )
        if target.dtype != value.dtype and value.dtype == torch.float32:
            target.data = target.data.float()  # trained parameters are kept in float32
        target.copy_(value)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
