"""Multiply-accumulates (MACs) of a forward and a backward pass, by part, from the operations run.

A product of [n, in] and [in, out] is n * in * out MACs. One with a weight as an operand belongs to that
weight's part: forward, and backward where the gradient of its input is asked for. One whose result
becomes the gradient of a weight belongs there too. So frozen weights cost no gradient of theirs, and
what comes before the first trained weight costs no backward pass, because autograd runs none.

Attention costs pairs * heads * (E + V) forward, with only the pairs that the mask lets through, and 2.5
times that backward: four products, and the scores anew, as fused kernels do (FlashAttention, arXiv
2205.14135, algorithm 4). What checkpointing computes again belongs to the backward pass. Norms,
activations and sums are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from oculi.plan.attention import FUSED, FUSED_BACKWARD, fused_attention
from oculi.plan.storages import address, tensors

ATTENTION = "attention"
BACKWARD_OF_ATTENTION = 2.5


class Products(TorchDispatchMode):
    """Counts what runs on the meta device within ``forward_pass`` and ``backward_pass``.

    Args:
        parts: part of every weight, and of every buffer that products may read. Products with none of
            them belong to the part whose weight was used last.
        pairs: pairs of query and key that the LLM's mask lets attend.
        length: tokens of the sample. Attention under a mask of another shape is not the LLM's, and
            counted whole, for the part that it is in.

    Attributes:
        forward, backward: MACs by part; the LLM's attention is ``attention``, a tower's is the tower's.
    """

    def __init__(self, parts: Mapping[Tensor, str], pairs: int, length: int) -> None:
        super().__init__()
        self.forward: dict[str, int] = {}
        self.backward: dict[str, int] = {}
        self._parts, self._pairs, self._length = parts, pairs, length
        self._counts = self.forward
        self._last = ""
        # By storage, as an operand is a view or a copy of a weight. Storages are referenced, or the
        # address of a freed one would come back as another's.
        self._owners = {address(t): (part, t.untyped_storage()) for t, part in parts.items()}
        self._unclaimed: dict[int, tuple[int, Any]] = {}

    @contextmanager
    def forward_pass(self) -> Iterator[None]:
        """Count operations within as the forward pass."""
        with self, fused_attention():
            yield

    @contextmanager
    def backward_pass(self) -> Iterator[None]:
        """Count operations within as the backward pass."""
        self._counts = self.backward
        with ExitStack() as stack:
            for tensor, part in self._parts.items():
                if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                    handle = tensor.register_hook(partial(self._claim, part))
                    stack.callback(handle.remove)
            with self, fused_attention():  # checkpointing runs forward operations again
                yield
        self._counts = self.forward

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None:
            with self:  # in inference mode a linear layer arrives whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        output = func(*args, **kwargs)
        inputs = list(tensors((*args, *kwargs.values())))
        if func._overloadpacket is FUSED:
            self._attention(1, *args[:4])
        elif func._overloadpacket is FUSED_BACKWARD:
            self._attention(BACKWARD_OF_ATTENTION, *args[1:5])
        elif formula is not None:
            self._product(inputs, output, formula(*args, **kwargs, out_val=output) // 2)
        elif isinstance(output, Tensor):
            self._follow(inputs, output)
        return output

    def _product(self, inputs: list[Tensor], output: Any, macs: int) -> None:
        # Not a bias: LoRA's second product may be added to the bias of the frozen layer.
        matrices = [address(t) for t in inputs if t.ndim > 1]
        owners = [self._owners[a][0] for a in matrices if a in self._owners]
        if owners:
            self._last = owners[0]
        elif self._counts is self.backward and isinstance(output, Tensor):
            self._unclaimed[address(output)] = macs, output.untyped_storage()
            return
        self._counts[self._last] = self._counts.get(self._last, 0) + macs

    def _follow(self, inputs: list[Tensor], output: Tensor) -> None:
        """What is made of a weight alone, as its cast, stays that weight; so do gradients of one."""
        made, given = address(output), {address(t) for t in inputs}
        if len(given) == 1 and given <= self._owners.keys():
            part = self._owners[given.pop()][0]
            self._owners.setdefault(made, (part, output.untyped_storage()))
            return
        macs = sum(self._unclaimed.pop(a)[0] for a in given if a in self._unclaimed)
        if macs:
            self._unclaimed[made] = macs, output.untyped_storage()

    def _claim(self, part: str, gradient: Tensor) -> None:
        """The gradient of a weight has arrived."""
        macs, _ = self._unclaimed.pop(address(gradient), (0, None))
        self.backward[part] = self.backward.get(part, 0) + macs

    def _attention(
        self, share: float, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None
    ) -> None:
        """Query [B, H, L, E], key [B, H, S, E], value [B, H, S, V]."""
        rows, heads, length, width = query.shape
        # A tower's picture is seen by all of itself, without a mask.
        llm = bias is not None and length == key.shape[-2] == self._length
        pairs = self._pairs if llm else rows * length * key.shape[-2]
        part = ATTENTION if llm else self._last
        macs = round(share * pairs * heads * (width + value.shape[-1]))
        self._counts[part] = self._counts.get(part, 0) + macs
