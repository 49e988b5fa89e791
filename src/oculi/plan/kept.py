"""Bytes that a forward pass leaves behind until the backward pass has used them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, Self

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from oculi.plan.attention import Autocast, fused_attention
from oculi.plan.storages import address, tensors


class Kept(TorchDispatchMode):
    """A context in which a forward pass on the meta device is measured.

    Every tensor that an operation makes is noted; what of it is still there when ``measure`` is called
    is kept, whoever keeps it: autograd, checkpointing or a custom function.

    Args:
        dtype: of autocast, or None without it.

    Attributes:
        activations, copies: bytes of what grows with the batch, and of autocast's copies of weights.
    """

    def __init__(self, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.activations = self.copies = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}
        self._autocast = Autocast(dtype)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        self._stack.enter_context(fused_attention())
        self._stack.enter_context(self._autocast)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._stack.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {address(tensor) for tensor in tensors((*args, *kwargs.values()))}
        output = func(*args, **kwargs)
        for tensor in tensors([output]):
            if address(tensor) not in given:
                storage = tensor.untyped_storage()
                # A weak reference holds the address, so that no later storage has it.
                self._made[address(tensor)] = StorageWeakRef(storage), storage.nbytes()
        return output

    def measure(self) -> None:
        """Add up what is there now; call it while the loss is, and nothing else of the pass."""
        copies = {address(copy) for copy in self._autocast.copies.values()}
        self._autocast.copies.clear()  # as autocast does at its end: autograd keeps what it needs
        for place, (reference, size) in self._made.items():
            if not reference.expired():
                if place in copies:
                    self.copies += size
                else:
                    self.activations += size
