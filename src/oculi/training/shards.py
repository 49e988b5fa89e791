"""Checkpoints of which every rank writes its own part, by torch.distributed.checkpoint.

``shards/`` in a checkpoint holds a safetensors file per rank, in which each tensor says where in the
whole it belongs; ``optimizer.json`` has what is no tensor. Nothing in them is code (the format that
torch writes by default would be pickled). They are read on any number of ranks, by a single one too.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from oculi.training.optim import Optimizers
from oculi.training.parallel import split_like
from oculi.training.ranks import Ranks

FOLDER, GROUPS = "shards", "optimizer.json"
_TENSORS, _OPTIMIZER, _SCALAR = "tensors/", "optimizer/", "scalar-"


def write(
    folder: Path, tensors: Mapping[str, Tensor], optimizer: Mapping[str, Any], ranks: Ranks
) -> list[str]:
    """Write this rank's part; every rank must call it.

    Args:
        folder: the checkpoint.
        tensors: split ones are written in parts. optimizer: ``Optimizers.state_dict``.
        ranks: see there.

    Returns:
        the files that this rank has written, relative to ``folder``.

    Raises:
        Exception: what torch raises, on every rank, if one cannot write.
    """
    state = {f"{_TENSORS}{name}": value for name, value in tensors.items()}
    for part, its in enumerate(optimizer["parts"]):
        for number, values in its["state"].items():
            for name, value in values.items():
                # A scalar has no place within a whole; a vector of one has.
                key = name if value.ndim else f"{_SCALAR}{name}"
                state[f"{_OPTIMIZER}{part}/{number}/{key}"] = value if value.ndim else value[None]
    writer = HuggingFaceStorageWriter(str(folder / FOLDER), save_distributed=True)
    save(state, storage_writer=writer, process_group=ranks.saving_group)
    own = (folder / FOLDER).glob(f"shard-{ranks.rank + 1:05d}-*.safetensors")
    written = [f"{FOLDER}/{path.name}" for path in sorted(own)]
    if ranks.first:
        groups = [its["param_groups"] for its in optimizer["parts"]]
        (folder / GROUPS).write_text(json.dumps(groups), encoding="utf-8")
        written.append(GROUPS)
    return written


def is_sharded(folder: Path) -> bool:
    """Whether a checkpoint was written by several ranks."""
    return (folder / GROUPS).exists()


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, whole, in host memory."""
    found = _empty(folder, _TENSORS)
    _read(folder, found)
    return {key.removeprefix(_TENSORS): value for key, value in found.items()}


def read_optimizer(folder: Path, optimizer: Optimizers) -> dict[str, Any]:
    """State for ``Optimizers.load_state_dict``; of what is split, this rank reads its own part alone."""
    groups = json.loads((folder / GROUPS).read_text(encoding="utf-8"))
    members = {
        f"{part}/{number}": member
        for part, its in enumerate(optimizer.members())
        for number, member in enumerate(its)
    }
    found = _empty(folder, _OPTIMIZER)
    for key, value in found.items():
        place, _ = key.removeprefix(_OPTIMIZER).rsplit("/", 1)
        if place in members:  # else it is refused where it is loaded
            found[key] = split_like(value, members[place])
    _read(folder, found)
    parts: list[dict[str, Any]] = [{"state": {}, "param_groups": group} for group in groups]
    for key, value in found.items():
        part, number, name = key.removeprefix(_OPTIMIZER).split("/")
        state = parts[int(part)]["state"].setdefault(int(number), {})
        if name.startswith(_SCALAR):
            state[name.removeprefix(_SCALAR)] = value[0]
        else:
            state[name] = value
    return {"parts": parts}


def _reader(folder: Path) -> HuggingFaceStorageReader:
    return HuggingFaceStorageReader(str(folder / FOLDER))


def _empty(folder: Path, prefix: str) -> dict[str, Tensor]:
    """Whole tensors to read into; memory is taken only where something is read."""
    known = _reader(folder).read_metadata().state_dict_metadata
    return {
        key: torch.empty(entry.size, dtype=entry.properties.dtype)  # type: ignore[union-attr]
        for key, entry in known.items()
        if key.startswith(prefix)
    }


def _read(folder: Path, found: dict[str, Tensor]) -> None:
    if not found:
        return
    with warnings.catch_warnings():
        # That it reads without the other ranks is what is wanted.
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        load(found, storage_reader=_reader(folder), no_dist=True)
