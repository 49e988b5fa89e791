"""Tensors of a folder, one at a time: safetensors or ``pytorch_model.bin``, in one file or in shards.

Nothing but headers is read before a tensor is asked for, and tensors are views of the mapped file, so
that reading a model needs no memory of its size.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from oculi.errors import CheckpointError, shown
from oculi.export.convert.config import read_json
from oculi.hub import readable

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, unread. ``dtype`` is None for one that is no plain floating point."""

    shape: tuple[int, ...]
    dtype: torch.dtype | None
    read: Callable[[], Tensor]


def open_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint folder, by name.

    Raises:
        CheckpointError: there are no weights, a shard is missing or damaged, or a file holds more than
            tensors (it is then not read: unpickling can run code).
    """
    found: dict[str, Stored] = {}
    promised, files = _files(folder)
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"{file} is missing: {folder} names it among its weights")
        opened = _open_safetensors(file) if file.suffix == ".safetensors" else _open_bin(file)
        if twice := sorted(found.keys() & opened.keys()):
            raise CheckpointError(f"{file} holds {shown(twice[0])}, which another shard holds too")
        found |= opened
    if lacking := sorted(promised - found.keys()):
        raise CheckpointError(
            f"{folder}: {len(lacking)} tensors of its index are in no shard, the first is "
            f"{shown(lacking[0], 120)}"
        )
    return found


def _files(folder: Path) -> tuple[set[str], list[Path]]:
    """Names that an index promises, and the files."""
    for name in WEIGHTS:
        index = folder / f"{name}.index.json"
        if index.is_file():
            places = read_json(index).get("weight_map")
            if not isinstance(places, dict) or not all(map(_is_plain, places.values())):
                raise CheckpointError(
                    f"{index}: weight_map does not map tensors to files beside it"
                )
            return set(places), [folder / file for file in sorted(set(places.values()))]
        if (folder / name).is_file():
            return set(), [folder / name]
    raise CheckpointError(f"{folder} has no {' and no '.join(WEIGHTS)}, in one file or in shards")


def _is_plain(file: Any) -> bool:
    """Whether it is the name of a weight file, and no path that leads elsewhere."""
    return (
        isinstance(file, str)
        and Path(file).name == file
        and file.endswith((".safetensors", ".bin"))
    )


def _open_safetensors(file: Path) -> dict[str, Stored]:
    with readable(str(file)):
        handle = safe_open(file, framework="pt")

        def stored(name: str) -> Stored:
            view = handle.get_slice(name)

            def read() -> Tensor:
                with readable(str(file)):
                    tensor: Tensor = handle.get_tensor(name)
                return tensor

            return Stored(tuple(view.get_shape()), _DTYPES.get(view.get_dtype()), read)

        return {name: stored(name) for name in handle.keys()}  # noqa: SIM118  (no mapping)


def _open_bin(file: Path) -> dict[str, Stored]:
    try:
        with readable(str(file)):
            state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, EOFError):
        raise CheckpointError(
            f"{file} is damaged or holds more than tensors, and is not read, because unpickling can run "
            "code: save its state_dict alone, or as safetensors"
        ) from None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f"{file} does not hold tensors by name: save its state_dict alone")

    def stored(tensor: Tensor) -> Stored:
        plain = tensor.layout == torch.strided and tensor.dtype in _DTYPES.values()
        return Stored(tuple(tensor.shape), tensor.dtype if plain else None, tensor.detach)

    return {str(name): stored(tensor) for name, tensor in state.items()}
