"""Tensors by the memory they are views of, on the meta device as elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor


def address(tensor: Tensor) -> int:
    """Of a tensor's storage: the same for all its views. Meaningless once the storage is freed."""
    return int(tensor.untyped_storage()._cdata)


def tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """Tensors among an operation's arguments or results, and in lists of them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from tensors(value)
