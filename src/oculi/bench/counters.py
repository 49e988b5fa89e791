"""Counters of one training step: exact, unlike its time on a shared machine.

FLOPs are torch's own (``FlopCounterMode``): matrix products and convolutions; on the CPU it knows no
formula for fused attention, so attention is left out there, for all alike. The rest comes from one
``TorchDispatchMode`` that sees every operation below autograd, the backward pass's too.
"""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

# Operations for whose result the host waits. A boolean index waits too, but its `nonzero` is below the
# dispatcher; `boolean_indices` says how many there were.
SYNCS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim")


@dataclass(frozen=True)
class Counters:
    """What one call of a step did.

    Attributes:
        flops: of matrix products, 2 per multiply-accumulate.
        ops: operations that the dispatcher saw.
        host_syncs: operations of ``SYNCS``, and results that became Python numbers or numpy arrays.
        boolean_indices: ``tensor[mask]``, each another synchronisation on an accelerator.
        saved_bytes: of all tensors that the forward passes made and that lived when their backward
            passes began, the largest sum; parameters and inputs are not in it.
        logits_rows: rows that went through the LM head.
    """

    flops: int
    ops: int
    host_syncs: int
    boolean_indices: int
    saved_bytes: int
    logits_rows: int

    def to_dict(self) -> dict[str, int]:
        """For ``--json``."""
        return asdict(self)


def count(step: Callable[[], object], head: nn.Module) -> Counters:
    """Count what one call of ``step`` does.

    Args:
        step: runs one training step; it must call ``Tensor.backward``, or nothing counts as saved.
        head: the LM head, for ``logits_rows``.
    """
    watch, rows, flops = Watch(), RowCounter(), FlopCounterMode(display=False)
    handle = head.register_forward_hook(rows)
    try:
        with saved_bytes(watch) as largest, watch.reading(), flops, watch:
            step()
    finally:
        handle.remove()
    return Counters(
        flops=int(flops.get_total_flops()),
        ops=sum(watch.ops.values()),
        host_syncs=watch.syncs,
        boolean_indices=watch.boolean_indices,
        saved_bytes=max(largest, default=0),
        logits_rows=rows.rows,
    )


def operations(call: Callable[[], object]) -> Counter[str]:
    """Every operation that ``call`` dispatches and how often, as ``aten.mm.default``."""
    with Watch() as watch:
        call()
    return watch.ops


@contextmanager
def saved_bytes(watch: Watch) -> Iterator[list[int]]:
    """A list to which every backward pass adds the bytes that are alive as it begins."""
    found: list[int] = []
    backward = Tensor.backward

    def measured(tensor: Tensor, *args: Any, **kwargs: Any) -> None:
        gc.collect()  # what only a reference cycle holds is not saved
        found.append(watch.alive())
        backward(tensor, *args, **kwargs)

    with patch.object(Tensor, "backward", measured):
        yield found


class RowCounter:
    """A forward hook that adds up the rows that a module was given."""

    def __init__(self) -> None:
        self.rows = 0

    def __call__(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        self.rows += args[0].shape[:-1].numel()


class Watch(TorchDispatchMode):
    """Counts operations and remembers the storages that they made, without keeping them alive.

    Attributes:
        ops: by name, as ``aten.mm.default``. order: names in order, if asked for.
    """

    def __init__(self) -> None:
        super().__init__()
        self.ops: Counter[str] = Counter()
        self.boolean_indices = self.read = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def syncs(self) -> int:
        """How often the host waited for a result."""
        operations = sum(n for name, n in self.ops.items() if name.split(".")[1] in SYNCS)
        return operations + self.read

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Notice ``tolist`` and ``numpy`` of what operations have made, which dispatch nothing on a CPU.

        What the loader made is on the host on any machine, and does not count.
        """

        def noticed(method: Callable[..., Any]) -> Callable[..., Any]:
            def call(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
                self.read += _storage(tensor) in self._made
                return method(tensor, *args, **kwargs)

            return call

        with ExitStack() as stack:
            for name in ("tolist", "numpy"):
                patched = patch.object(Tensor, name, noticed(getattr(Tensor, name)))
                stack.enter_context(patched)
            yield

    def alive(self) -> int:
        """Bytes of storages that operations have made and something still holds."""
        return sum(size for storage, size in self._made.values() if not storage.expired())

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.ops[str(func)] += 1
        self.boolean_indices += _has_boolean_index(func, args)
        given = {_storage(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for tensor in tree_leaves(result):
            # A view, or a result written in place, is in a storage that an argument brought.
            if isinstance(tensor, Tensor) and (key := _storage(tensor)) not in given:
                storage = tensor.untyped_storage()
                self._made[key] = (StorageWeakRef(storage), storage.nbytes())
        return result


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _has_boolean_index(func: Any, args: tuple[Any, ...]) -> bool:
    if func is not torch.ops.aten.index.Tensor:
        return False
    return any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
