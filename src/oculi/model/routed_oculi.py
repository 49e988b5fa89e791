"""LoRA on the tokens of one modality alone: text goes through the base weights, to the bit.

        text    x ── W x
        image   x ── W x + B_image A_image x
        audio   x ── W x + B_audio A_audio x

Every token goes through the LLM's own linear layer, in the batch's own shape, and rows of a modality get
their product added afterwards. Nothing is added to a row of text, not even a zero, which would turn -0.0
into 0.0. So it cannot be merged, it stays in the exported model, and several can stand side by side
(VoRA, section 7). Mergeable LoRA is in ``lora.py``.

Shapes: B rows, T tokens, N = B * T, S tokens of a modality, M label rows of a row, I inputs, O outputs,
r the rank.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .rows_oculi import Chosen

IMAGE = "image"  # the modality that image positions are, unless ``modality_ids`` says otherwise


class Adapter(nn.Module):
    """``B A`` of one linear layer and one modality; named as PEFT saves it. B is zero at the start."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        place = {"device": linear.weight.device, "dtype": linear.weight.dtype}
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False, **place)
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False, **place)
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5))
        nn.init.zeros_(self.lora_B.weight)


@dataclass(frozen=True)
class Rows:
    """The rows [S] int64 of N tokens that are of a modality, each once."""

    index_S: Tensor

    def add(self, y: Tensor, x: Tensor, adapter: Adapter) -> Tensor:
        """``y`` [..., O] with the adapter's product for ``x`` [..., I] added to these rows."""
        a, b = adapter.lora_A.weight, adapter.lora_B.weight
        added = _AddToRows.apply(y.flatten(0, -2), x.flatten(0, -2), self.index_S, a, b)
        return added.view_as(y)

    def among(self, chosen: Chosen) -> "Among":
        """Those of the label rows that are of this modality."""
        tokens = chosen.shape[0] * chosen.length
        mine_N = self.index_S.new_zeros(tokens, dtype=torch.bool).index_fill(0, self.index_S, True)
        return Among(mine_N.index_select(0, chosen.tokens).view(chosen.shape))


@dataclass(frozen=True)
class Among:
    """Rows of a modality as a mask [B, M] bool: how many there are is not known on the host.

    Label rows are few, so the product is computed for all of them, and chosen rather than added.
    """

    mine_BM: Tensor

    def add(self, y: Tensor, x: Tensor, adapter: Adapter) -> Tensor:
        """As ``Rows.add``."""
        a, b = (part.weight.to(y.dtype) for part in (adapter.lora_A, adapter.lora_B))
        product = nn.functional.linear(nn.functional.linear(x.to(y.dtype), a), b)
        return torch.where(self.mine_BM[..., None], y + product, y)


class Route:
    """Tells a model's routed layers which rows are whose, while its forward pass runs the LLM.

    It belongs to one model, which runs one forward pass at a time.

    Attributes:
        modalities: names, in the order of their ids: ``modality_ids`` has 0 for text, i for the i-th.
        rows: by modality, those present; None outside of the model's forward pass.
    """

    def __init__(self) -> None:
        self.modalities: list[str] = []
        self.rows: Mapping[str, Rows | Among] | None = None

    def deal(
        self, embeds: Tensor, modality_ids: Tensor | None, image_rows: Tensor | None
    ) -> dict[str, Rows]:
        """Rows by modality.

        Args:
            embeds: [B, T, D].
            modality_ids: [B, T], or None: images are the only modality.
            image_rows: [S] int64 into N, or None where there are none.

        Raises:
            ValueError: the ids have another shape than the tokens.
        """
        found = {} if image_rows is None else {IMAGE: image_rows}
        if modality_ids is not None:
            if modality_ids.shape != embeds.shape[:2]:
                raise ValueError(
                    f"modality_ids is {tuple(modality_ids.shape)}, the tokens {tuple(embeds.shape[:2])}"
                )
            flat = modality_ids.flatten()
            found = {n: (flat == i).nonzero()[:, 0] for i, n in enumerate(self.modalities, 1)}
        rows = {name: Rows(found[name]) for name in self.modalities if name in found}
        if torch.is_grad_enabled():
            # What is absent stays, and zeros reach its parameters: a loss of text alone would have no
            # gradient, and other ranks would wait for one. Without gradients it costs nothing.
            for name in self.modalities:
                none = torch.zeros(0, dtype=torch.int64, device=embeds.device)
                rows.setdefault(name, Rows(none))
        return rows

    @contextmanager
    def to(self, rows: Mapping[str, Rows | Among] | None) -> Iterator[None]:
        """Within, layers see these rows."""
        before, self.rows = self.rows, rows
        try:
            yield
        finally:
            self.rows = before

    @contextmanager
    def among(self, chosen: Chosen) -> Iterator[None]:
        """Within, layers are given the label rows instead of all."""
        now = {
            name: rows.among(chosen)
            for name, rows in (self.rows or {}).items()
            if isinstance(rows, Rows)
        }
        with self.to(now):
            yield

    def keeping(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` for the rows of now, whenever it is called: a backward pass may run it again."""
        if (
            torch.compiler.is_compiling()
        ):  # what is recomputed there reads the same inputs of the graph
            return function
        rows = self.rows

        def again(*args: Any, **kwargs: Any) -> Any:
            with self.to(rows):
                return function(*args, **kwargs)

        return again

    def checkpointing(self, checkpoint: Callable[..., Any]) -> Callable[..., Any]:
        """A checkpoint function of transformers whose recomputation sees the rows of its first pass."""
        return lambda function, *args, **kwargs: checkpoint(self.keeping(function), *args, **kwargs)


class RoutedLinear(nn.Linear):
    """A linear layer with the parameters, under the names, of the one it replaces, and its adapters."""

    def __init__(self, linear: nn.Linear, route: Route) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.routed = nn.ModuleDict()
        self.route = route

    def forward(self, x: Tensor) -> Tensor:
        """[..., I] to [..., O].

        Raises:
            RuntimeError: nothing says which rows are whose, and gradients are wanted.
        """
        y = super().forward(x)
        rows = self.route.rows
        if rows is None:  # the LLM is used by itself: text
            if x.requires_grad and torch.is_grad_enabled():
                raise RuntimeError(
                    "routed LoRA is not told which tokens are images: train through the model's own "
                    "forward, and switch checkpointing on there, not on its llm"
                )
            return y
        for name, chosen in rows.items():
            if name in self.routed:
                y = chosen.add(y, x, self.routed[name])  # type: ignore[arg-type]
        return y


def add_adapter(
    llm: nn.Module,
    modules: nn.ModuleList,
    route: Route,
    modality: str,
    rank: int,
    blocks: int,
    targets: Sequence[str],
) -> None:
    """Give the linears named in ``targets`` of the first ``blocks`` of ``modules`` an adapter, in place.

    Raises:
        ValueError: the modality has one already, a linear is of a kind that computes otherwise, or
            what ``check_targets`` says.
    """
    if not modality.isidentifier() or modality in route.modalities:
        raise ValueError(f'"{modality}" is no name for a modality, or has routed LoRA already')
    check_targets(llm, blocks, targets)
    found = [
        (block, name, linear)
        for block in modules[:blocks]
        for name, linear in block.named_modules()
        if name.rpartition(".")[2] in targets and isinstance(linear, nn.Linear)
    ]
    for _, name, linear in found:
        if type(linear) not in (nn.Linear, RoutedLinear):
            raise ValueError(
                f"{name} is a {type(linear).__name__}: only plain linears can be routed"
            )
    for block, name, linear in found:
        block.route = route  # type: ignore[assignment]  # for recompute_oculi.py
        if not isinstance(linear, RoutedLinear):
            parent, _, child = name.rpartition(".")
            linear = RoutedLinear(linear, route)
            setattr(block.get_submodule(parent), child, linear)
        linear.routed[modality] = Adapter(linear, rank)
    route.modalities.append(modality)


def check_targets(llm: Any, blocks: int, targets: Sequence[str]) -> None:
    """Raise ValueError unless the LLM has so many blocks, and linears so named in them."""
    layers = llm.config.num_hidden_layers
    # PEFT would read an empty list of blocks as all blocks.
    if not 1 <= blocks <= layers:
        raise ValueError(f"LoRA on the first {blocks} blocks, but the LLM has {layers}")
    if not targets:
        raise ValueError("LoRA has no target: name the linear layers, as q_proj")
    linears = [name.split(".") for name, m in llm.named_modules() if isinstance(m, nn.Linear)]
    names = {path[-1] for path in linears if any(part.isdigit() for part in path)}
    missing = [target for target in targets if target not in names]
    if missing:
        raise ValueError(
            f"LoRA targets {', '.join(missing)} are no linear layers of the blocks of "
            f"{type(llm).__name__}; they have {', '.join(sorted(names))}"
        )


class _AddToRows(torch.autograd.Function):
    """``y`` [N, O] with ``(x A^T) B^T`` added to rows [S], for x [N, I], A [r, I], B [O, r].

    It keeps ``x``, which several layers share, and not each layer's copy of its rows.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, rows: Tensor, a: Tensor, b: Tensor) -> Tensor:
        dtype = y.dtype
        ax_Sr = x.index_select(0, rows).to(dtype).mm(a.to(dtype).t())
        ctx.save_for_backward(x, ax_Sr, rows, a, b)
        # Not in place: recomputation may have kept y.
        return y.index_add(0, rows, ax_Sr.mm(b.to(dtype).t()))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, ax_Sr, rows, a, b = ctx.saved_tensors
        _, need_x, _, need_a, need_b = ctx.needs_input_grad
        dtype = grad.dtype
        grad_SO = grad.index_select(0, rows)
        d_x = d_a = d_b = None
        if need_x or need_a:
            grad_Sr = grad_SO.mm(b.to(dtype))
            if need_a:
                d_a = grad_Sr.t().mm(x.index_select(0, rows).to(dtype)).to(a.dtype)
        if need_b:
            d_b = grad_SO.t().mm(ax_Sr).to(b.dtype)
        if need_x:
            d_x = torch.zeros_like(x).index_copy(0, rows, grad_Sr.mm(a.to(dtype)).to(x.dtype))
        return grad, d_x, None, d_a, d_b
