"""Bytes that one GPU holds at the end of a forward pass, when they are most."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

TEACHER = "teacher"
ADAMW_STATES, MUON_STATES = 2, 1  # tensors of a parameter's own dtype


@dataclass(frozen=True)
class PartMemory:
    """Bytes of one part: its weights, and for what is trained gradients and the optimizer's states."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0

    @property
    def total(self) -> int:
        """All three."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class Memory:
    """Bytes of a stage on one GPU.

    Attributes:
        parts: by part of the model and by objective; ``teacher`` is what objectives hold frozen.
        adamw, muon: states of the two optimizers, a sum over parts.
        copies: low-precision copies of weights that autocast makes.
        per_sample: what autograd keeps of one sample. samples: that are in the model at once.
        share: GPUs that one copy of all parts but ``teacher`` lies on (``training/parallel.py``).
        gathered: of a copy that is split, what is whole at once: two blocks, and all that is no block.
    """

    parts: Mapping[str, PartMemory]
    adamw: int
    muon: int
    copies: int
    per_sample: int
    samples: int
    share: int = 1
    gathered: int = 0

    @property
    def own(self) -> int:
        """This GPU's share of what is split."""
        whole = sum(part.total for name, part in self.parts.items() if name != TEACHER)
        return -(-whole // self.share)

    @property
    def frozen(self) -> int:
        """What every GPU holds whole: teachers."""
        return self.parts.get(TEACHER, PartMemory()).total

    @property
    def fixed(self) -> int:
        """What does not depend on the number of samples."""
        return self.own + self.frozen + self.gathered + self.copies

    @property
    def total(self) -> int:
        """Everything."""
        return self.fixed + self.per_sample * self.samples

    def samples_in(self, available: int) -> int:
        """Samples at once that ``available`` bytes have room for."""
        return max(0, (available - self.fixed) // max(1, self.per_sample))

    def to_json(self) -> dict[str, Any]:
        """For programs; bytes throughout."""
        return {
            "parts": {
                name: {"weights": p.weights, "gradients": p.gradients, "optimizer": p.optimizer}
                for name, p in self.parts.items()
            },
            "optimizer": {"adamw": self.adamw, "muon": self.muon},
            "autocast_copies": self.copies,
            "activations": self.per_sample * self.samples,
            "activations_per_sample": self.per_sample,
            "samples_at_once": self.samples,
            "share": self.share,
            "gathered": self.gathered,
            "total": self.total,
        }


def memory_of(
    parts: Mapping[nn.Parameter, str],
    muon: Iterable[nn.Parameter],
    teachers: Iterable[nn.Module],
    *,
    copies: int,
    per_sample: int,
    samples: int,
    share: int = 1,
    gathered: int = 0,
) -> Memory:
    """The memory of a stage.

    Args:
        parts: part of every parameter; those that require a gradient are trained.
        muon: those that Muon updates.
        teachers: frozen models outside of them.
        copies, per_sample, samples, share, gathered: see ``Memory``.
    """
    by_muon = {id(parameter) for parameter in muon}
    found: dict[str, PartMemory] = {}
    states = {True: 0, False: 0}
    for parameter, part in parts.items():
        of_muon = id(parameter) in by_muon
        trained = parameter.nbytes if parameter.requires_grad else 0
        state = trained * (MUON_STATES if of_muon else ADAMW_STATES)
        states[of_muon] += state
        old = found.get(part, PartMemory())
        found[part] = PartMemory(
            old.weights + parameter.nbytes, old.gradients + trained, old.optimizer + state
        )
    frozen = sum(parameter.nbytes for teacher in teachers for parameter in teacher.parameters())
    if frozen:
        found[TEACHER] = PartMemory(frozen)
    return Memory(found, states[False], states[True], copies, per_sample, samples, share, gathered)


def gathered_bytes(blocks: Sequence[nn.Module], module: nn.Module, low: bool) -> int:
    """Bytes of parameters that a GPU has whole at once, of a module that is split block by block.

    Args:
        blocks: that are gathered one after the other; the next while one computes.
        module: with all that is gathered for the whole step besides.
        low: blocks are gathered in bfloat16.
    """
    sizes = [sum(_gathered(p, low) for p in block.parameters()) for block in blocks]
    inside = {id(p) for block in blocks for p in block.parameters()}
    rest = sum(p.nbytes for p in module.parameters() if id(p) not in inside)
    return sum(sorted(sizes)[-2:]) + rest


def _gathered(parameter: nn.Parameter, low: bool) -> int:
    return parameter.numel() * min(parameter.element_size(), 2 if low else parameter.element_size())
