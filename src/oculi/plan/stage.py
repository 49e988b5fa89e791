"""What one stage holds, computes and needs at least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from oculi.batch import Batch
from oculi.errors import RecipeError
from oculi.model import OculiForConditionalGeneration
from oculi.model.modeling_oculi import Reducer
from oculi.plan.attention import Autocast
from oculi.plan.build import MetaStage
from oculi.plan.gpus import Gpu
from oculi.plan.kept import Kept
from oculi.plan.memory import Memory, gathered_bytes, memory_of
from oculi.plan.products import Products
from oculi.plan.sample import attended_pairs, sample_batch, samples_at_once
from oculi.recipe import ModelSpec
from oculi.training.module import TrainModule, canonical_parameters

DAY = 24 * 60 * 60
# Parts of the model, in the order of tables; an objective's parameters are a part of its own name.
MODEL_PARTS = (
    "llm", "lora", "patch_embedding", "position_embedding", "tower", "perceiver", "connector",
    "compressor", "fusion",
)  # fmt: skip
_PREFIXES = {
    "vision.position": "position_embedding",
    "vision.tower.": "tower",
    "vision.perceiver.": "perceiver",
    "vision.connector.": "connector",
    "vision.newline": "connector",
    "vision.": "patch_embedding",
    "compress.": "compressor",
    "fusion.": "fusion",
    "llm.": "llm",
}


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of one sample; one is two FLOP."""

    forward: int
    backward: int

    @property
    def total(self) -> int:
        """Both."""
        return self.forward + self.backward


@dataclass(frozen=True)
class ObjectivePlan:
    """Parameters that an objective owns, those that the stage trains, and those of its teacher."""

    parameters: int
    trainable: int
    teacher: int


@dataclass(frozen=True)
class StagePlan:
    """Numbers of one stage.

    Attributes:
        parameters: by part of the model. trained: those of them that the stage trains.
        objectives: by name.
        grid: rows and columns of patches of the planned picture.
        tokens_per_image, text_tokens: of the planned sample.
        macs: by part, of one sample. memory: of one GPU.
        gpu, gpus: what it runs on, and how many of them.
    """

    name: str
    steps: int
    batch: int
    parameters: Mapping[str, int]
    trained: Mapping[str, int]
    objectives: Mapping[str, ObjectivePlan]
    grid: tuple[int, int]
    tokens_per_image: int
    text_tokens: int
    macs: Mapping[str, Macs]
    memory: Memory
    gpu: Gpu
    gpus: int

    @property
    def samples(self) -> int:
        """Of all its steps."""
        return self.steps * self.batch

    @property
    def trainable(self) -> int:
        """Parameters of the model that the stage trains; objectives' own are not among them."""
        return sum(self.trained.values())

    @property
    def tokens(self) -> int:
        """Of one sample."""
        return self.tokens_per_image + self.text_tokens

    @property
    def flops(self) -> int:
        """Of one sample, forward and backward."""
        return 2 * sum(macs.total for macs in self.macs.values())

    @property
    def samples_per_second(self) -> float:
        """What no training can exceed on these GPUs."""
        return self.gpu.matmul * self.gpus / self.flops

    @property
    def days(self) -> float:
        """At that rate."""
        return self.samples / self.samples_per_second / DAY

    @property
    def fits(self) -> bool:
        """Whether one GPU holds it."""
        return self.memory.total <= self.gpu.memory

    def to_json(self) -> dict[str, Any]:
        """For programs: counts, MACs, FLOP, bytes, seconds."""
        macs = {**self.macs, "total": _sum(self.macs)}
        return {
            "stage": self.name,
            "steps": self.steps,
            "batch": self.batch,
            "samples": self.samples,
            "parameters": {**self.parameters, "total": sum(self.parameters.values())},
            "trainable": self.trainable,
            "objectives": {name: vars(found) for name, found in self.objectives.items()},
            "image_grid": list(self.grid),
            "tokens_per_image": self.tokens_per_image,
            "text_tokens": self.text_tokens,
            "macs": {part: vars(found) for part, found in macs.items()},
            "flops_per_sample": self.flops,
            "memory": self.memory.to_json(),
            "bound": {
                "samples_per_second": self.samples_per_second,
                "tokens_per_second": self.samples_per_second * self.tokens,
                "seconds_per_step": self.batch / self.samples_per_second,
                "days": self.days,
                "fits": self.fits,
                "samples_that_fit": self.memory.samples_in(self.gpu.memory),
            },
        }


def plan_stage(
    meta: MetaStage,
    spec: ModelSpec,
    number: int,
    grid: tuple[int, int],
    text: int,
    gpu: Gpu,
    gpus: int,
    share: int = 1,
) -> StagePlan:
    """Count a stage.

    Args:
        meta: its modules. spec: of the model. number: of the stage, for messages.
        grid, text: of the sample, see ``sample_batch``.
        gpu, gpus: to compute on. share: how many of them hold one copy of the model.

    Raises:
        RecipeError: the sample is too long for the stage, or the LLM has what cannot be counted.
    """
    stage = meta.stage
    by_name = {name: (p, _part(name)) for name, p in canonical_parameters(meta.module).items()}
    parts = dict(by_name.values())
    tokens_per_image = int(meta.module.model.tokens_per_image(torch.tensor([grid])))
    samples = samples_at_once(stage, number, tokens_per_image + text, gpus)
    _check_countable(meta.module, spec)
    shape, vision = (grid, text, spec.vision.patch_size), tokens_per_image
    pairs = attended_pairs(spec.image_attention, sample_batch(*shape, "cpu", vision))
    batch = sample_batch(*shape, "meta", vision)
    products, kept = _count(meta, parts, pairs, batch), _keep(meta, batch)
    muon = [meta.trained[name] for name in meta.muon]
    copies, gathered = kept.copies, 0
    if share > 1:
        low = stage.precision == "bfloat16"
        gathered = gathered_bytes(list(meta.module.model.blocks), meta.module, low)
        copies = _copies_outside_blocks(meta, low)
    return StagePlan(
        name=stage.name,
        steps=stage.steps,
        batch=stage.batch,
        parameters={part: _numel(parts, part) for part in MODEL_PARTS},
        trained={part: _numel(parts, part, trained=True) for part in MODEL_PARTS},
        objectives=_objectives(meta, parts),
        grid=grid,
        tokens_per_image=tokens_per_image,
        text_tokens=text,
        macs={part: Macs(n, products.backward.get(part, 0)) for part, n in products.forward.items()},
        memory=memory_of(
            parts, muon, meta.teachers.values(),
            copies=copies, per_sample=kept.activations, samples=samples,
            share=share, gathered=gathered,
        ),
        gpu=gpu,
        gpus=gpus,
    )  # fmt: skip


def _count(
    meta: MetaStage, parts: Mapping[nn.Parameter, str], pairs: int, batch: Batch
) -> Products:
    """MACs of one step over one sample, every token through every block.

    Training leaves out what nothing reads of the last block; a method's cost is counted with it.
    """
    model = meta.module.model
    head = model.get_output_embeddings().weight
    owners: dict[Tensor, str] = {p: "lm_head" if p is head else part for p, part in parts.items()}
    owners |= dict.fromkeys(model.llm.buffers(), "llm")
    for teacher in meta.teachers.values():
        owners |= dict.fromkeys([*teacher.parameters(), *teacher.buffers()], "teacher")
    module = TrainModule(EveryBlock(model), meta.module.terms(), meta.stage.checkpointing)  # type: ignore[arg-type]
    products = Products(owners, pairs, batch.tokens_BT.shape[1])
    with Autocast(None):
        with products.forward_pass():
            loss = module.loss(module(batch, _ones(module)))
        with products.backward_pass():
            loss.backward()
    module.zero_grad(set_to_none=True)
    return products


def _keep(meta: MetaStage, batch: Batch) -> Kept:
    """What autograd keeps of one sample, with the stage's own module."""
    low = torch.bfloat16 if meta.stage.precision == "bfloat16" else None
    kept = Kept(low)
    with kept:
        loss = meta.module.loss(meta.module(batch, _ones(meta.module)))
    kept.measure()
    del loss
    return kept


def _copies_outside_blocks(meta: MetaStage, low: bool) -> int:
    """Bytes that autocast copies where blocks are gathered in its dtype: trained matrices elsewhere."""
    inside = {id(p) for block in meta.module.model.blocks for p in block.parameters()}
    kept = [p for p in meta.trained.values() if p.ndim == 2 and id(p) not in inside]
    return sum(2 * p.numel() for p in kept) if low else 0


def _ones(module: TrainModule) -> dict[str, int]:
    return {term.name: 1 for term in module.terms()}


class EveryBlock(nn.Module):
    """A model of which the last block's output is read, so that no token of it is left out."""

    def __init__(self, model: OculiForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    @property
    def blocks(self) -> nn.ModuleList:
        """The model's."""
        return self.model.blocks

    def forward(self, taps: Mapping[int, Reducer] | None = None, **inputs: Any) -> Any:
        """As the model's."""
        last = len(self.model.blocks) - 1
        return self.model(**inputs, taps={last: lambda hidden: None, **(taps or {})})


def _check_countable(module: TrainModule, spec: ModelSpec) -> None:
    """A matrix outside of linear layers, as of experts, would be left out and every number too small."""
    llm = module.model.llm
    counted = {id(m.weight) for m in llm.modules() if isinstance(m, nn.Linear | nn.Embedding)}
    for name, parameter in llm.named_parameters():
        if parameter.ndim >= 2 and id(parameter) not in counted:
            raise RecipeError(
                f"model.llm: {spec.llm} has {name} outside of linear layers, as mixtures of experts "
                "have; only linear layers and attention can be counted"
            )


def _part(name: str) -> str:
    """Part of the model, or the objective, that a parameter belongs to, by its canonical name."""
    if ".lora_" in name:
        return "lora"
    if name.startswith("objectives."):
        return name.split(".")[1]
    return next(part for prefix, part in _PREFIXES.items() if name.startswith(prefix))


def _numel(parts: Mapping[nn.Parameter, str], part: str, trained: bool = False) -> int:
    return sum(
        p.numel()
        for p, found in parts.items()
        if found == part and (p.requires_grad or not trained)
    )


def _objectives(meta: MetaStage, parts: Mapping[nn.Parameter, str]) -> dict[str, ObjectivePlan]:
    teachers = {
        name: sum(p.numel() for p in teacher.parameters())
        for name, teacher in meta.teachers.items()
    }
    return {
        term.name: ObjectivePlan(
            parameters=_numel(parts, term.name),
            trainable=_numel(parts, term.name, trained=True),
            teacher=teachers.get(term.name, 0),
        )
        for term in meta.module.terms()
    }


def _sum(macs: Mapping[str, Macs]) -> Macs:
    return Macs(
        sum(found.forward for found in macs.values()),
        sum(found.backward for found in macs.values()),
    )
