"""Model and objectives as one module, so that data-parallel wrappers synchronise heads as well."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from oculi.batch import Batch
from oculi.errors import RecipeError, nearest
from oculi.model import OculiForConditionalGeneration
from oculi.model.lora import canonical_name
from oculi.model.modeling_oculi import Reducer
from oculi.model.recompute_oculi import recomputing
from oculi.objectives import Objective


class TrainModule(nn.Module):
    """What an optimizer step runs.

    Args:
        model: the vision-language model.
        objectives: the terms of the loss.
        checkpointing: which activations of the LLM's blocks are computed again in the backward pass;
            see ``model/recompute_oculi.py``.
    """

    def __init__(
        self,
        model: OculiForConditionalGeneration,
        objectives: Sequence[Objective],
        checkpointing: str = "none",
    ) -> None:
        super().__init__()
        self.model, self.checkpointing = model, checkpointing
        set_blocks(model, checkpointing)
        self.objectives = nn.ModuleDict({objective.name: objective for objective in objectives})

    def place(self, device: torch.device, dtype: torch.dtype, compiled: bool = True) -> None:
        """Move everything to ``device``.

        Args:
            device: where to train.
            dtype: of what is frozen and not exported: teachers.
            compiled: compile the LLM's blocks; never on a CPU, where it brings little and takes long.
        """
        self.to(device)
        for term in self.terms():
            term.place(device, dtype)
        set_blocks(self.model, self.checkpointing, compiled and device.type != "cpu")

    def terms(self) -> list[Objective]:
        """The objectives, typed."""
        return list(self.objectives.values())  # type: ignore[arg-type]

    def counts(self, batches: Sequence[Batch]) -> dict[str, int]:
        """Units of each objective over some micro-batches."""
        return {term.name: sum(term.count(batch) for batch in batches) for term in self.terms()}

    def forward(self, batch: Batch, counts: Mapping[str, int]) -> dict[str, Tensor]:
        """Each objective's share of the step's loss, unweighted: scalars that add up over batches.

        Args:
            batch: one micro-batch on the model's device.
            counts: units of the whole step, over all micro-batches and ranks; a term
                without any is 0.
        """
        prepared = {term.name: term.prepare(batch) for term in self.terms()}
        taps: dict[Any, Reducer] = {}
        for term in self.terms():
            wanted = term.taps(prepared[term.name])
            if clash := taps.keys() & wanted.keys():
                raise ValueError(f"two objectives tap block {min(clash, key=str)}")
            taps.update(wanted)
        output = self.model(**batch.model_inputs(), taps=taps or None)
        return {
            term.name: term.total(output, batch, prepared[term.name]) / max(1, counts[term.name])
            for term in self.terms()
        }

    def loss(self, parts: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of what ``forward`` returned (VoRA, equation 4, with weights of one)."""
        return torch.stack([term.weight * parts[term.name] for term in self.terms()]).sum()


def set_blocks(
    model: OculiForConditionalGeneration, checkpointing: str = "none", compiled: bool = False
) -> None:
    """How the LLM's blocks run where gradients are wanted: what is kept, and whether it is compiled.

    Only ``forward`` is replaced: hooks stay outside, so taps are read once and see what they always do.
    Without gradients, as in an evaluation, blocks run as they are.

    Args:
        model: whatever was set before is forgotten.
        checkpointing: ``none``, ``selective`` or ``full``.
        compiled: by ``torch.compile``, for any shape of batch.
    """
    for block in model.blocks:
        vars(block).pop("forward", None)
        if checkpointing == "none" and not compiled:
            continue
        plain = block.forward
        trained = recomputing(plain, checkpointing)
        if compiled:
            trained = torch.compile(trained, dynamic=True)
        block.forward = _with_gradients(trained, plain)


def _with_gradients(trained: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        return (trained if torch.is_grad_enabled() else plain)(*args, **kwargs)

    return forward


def canonical_parameters(module: TrainModule) -> dict[str, nn.Parameter]:
    """Parameters by the names that globs are written on: ``llm.``, ``vision.``, ``objectives.``."""
    return {canonical_name(n.removeprefix("model.")): p for n, p in module.named_parameters()}


def match(names: Sequence[str], glob: str, where: str) -> list[str]:
    """The names that a glob matches; raises RecipeError, with the nearest name, if there is none."""
    matched = [name for name in names if fnmatchcase(name, glob)]
    if not matched:
        guess = nearest(glob, names)
        known = ", ".join(sorted({name.split(".")[0] + ".*" for name in names}))
        raise RecipeError(
            f'{where}: the glob "{glob}" matches no parameter{guess or f"; there are {known}"}'
        )
    return matched


def learning_rates(
    names: Sequence[str], trainable: Mapping[str, float | None], default: float, where: str
) -> dict[str, float]:
    """Learning rate of every parameter that a glob matches; the last matching glob wins.

    Args:
        names: canonical parameter names.
        trainable: glob to rate, None for ``default``.
        where: for the message.

    Raises:
        RecipeError: a glob matches nothing; the nearest name is given.
    """
    rates: dict[str, float] = {}
    for glob, rate in trainable.items():
        for name in match(names, glob, where):
            rates[name] = default if rate is None else rate
    return {name: rates[name] for name in names if name in rates}


def freeze(module: TrainModule, rates: Mapping[str, float]) -> dict[str, nn.Parameter]:
    """Let gradients flow into the named parameters only; they are kept in float32.

    Returns:
        the trainable parameters by canonical name.
    """
    parameters = canonical_parameters(module)
    for name, parameter in parameters.items():
        parameter.requires_grad_(name in rates)
        if name in rates:
            parameter.data = parameter.data.float()
    return {name: parameters[name] for name in rates}
