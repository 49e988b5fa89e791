"""The sides of the comparison as steps on the same weights, samples and optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Aimv2VisionConfig, Aimv2VisionModel

from oculi.batch import Batch
from oculi.bench.official import OfficialStyle, official_inputs
from oculi.bench.peft_trainer import PeftVora, trainer_step
from oculi.bench.shapes import Shapes, add_lora, build_llm, build_vlm
from oculi.objectives import Distill, LanguageModelling
from oculi.objectives.teacher import Teacher
from oculi.recipe import DistillSpec, LmSpec, Stage
from oculi.training.build import DTYPES
from oculi.training.loop import train_step
from oculi.training.module import TrainModule, canonical_parameters, freeze, learning_rates
from oculi.training.optim import make_optimizer

LR = 1e-4


@dataclass(frozen=True)
class Side:
    """One way to train.

    Attributes:
        step: one optimizer step; returns the loss before it. head: its LM head.
        trained: parameters by name; of ours, by canonical name.
    """

    step: Callable[[], float]
    head: nn.Module
    trained: Mapping[str, Tensor]


class GivenTeacher(Teacher):
    """States that are there already. Every side has them for nothing: a frozen ViT's pass is the same
    computation for all, and would only blur what differs."""

    def __init__(self, given: Sequence[Tensor]) -> None:  # there is no tower
        self.given = list(given)
        self.blocks, self.width = len(given) - 1, given[0].shape[1]

    def features(self, patches_PC: Tensor, grids_N2: Tensor) -> list[Tensor]:
        """As of ``Teacher``."""
        return self.given

    def to(self, device: torch.device, dtype: torch.dtype) -> None:
        """As of ``Teacher``."""
        self.given = [state.to(device, dtype) for state in self.given]


def stage(**settings: Any) -> Stage:
    """VoRA's pre-training as a stage."""
    return Stage.model_validate(
        {
            "name": "bench", "data": [{"kind": "playroom", "level": 1, "samples": 1}], "steps": 1,
            "batch": 1, "length": 8, "lr": LR, "precision": "float32",
            "objectives": [{"kind": "lm"}, {"kind": "distill", "teacher": "given"}],
            "trainable": {"llm.*.lora_?": None, "vision.*": None, "objectives.*": None},
            **settings,
        }
    )  # fmt: skip


def drawn_teacher(shapes: Shapes, device: str, dtype: torch.dtype) -> Teacher:
    """An AIMv2 of the teacher's shapes with random weights."""
    patch = shapes.patch
    config = Aimv2VisionConfig(
        hidden_size=shapes.teacher_width,
        intermediate_size=round(shapes.teacher_width * 8 / 3),
        num_hidden_layers=shapes.teacher_blocks,
        num_attention_heads=max(1, shapes.teacher_width // 128),
        patch_size=patch,
        image_size=patch * max(shapes.grid),
        is_native=True,  # any grid
    )
    torch.manual_seed(2)
    with torch.device(device):
        return Teacher(Aimv2VisionModel(config).to(dtype))


def ours(
    shapes: Shapes, batch: Batch, teacher: Teacher, device: str = "cpu", **settings: Any
) -> Side:
    """The step of the training engine itself; ``settings`` are those of a recipe's stage."""
    chosen, place = stage(**settings), torch.device(device)
    module = our_module(shapes, teacher, chosen, device)
    names = list(canonical_parameters(module))
    rates = learning_rates(names, chosen.trainable, chosen.lr, "bench")
    parameters = freeze(module, rates)
    module.place(place, DTYPES[chosen.precision], chosen.compile)
    optimizer = make_optimizer(parameters, rates, chosen)
    members = list(parameters.values())
    return Side(
        step=lambda: train_step(module, [batch], optimizer, members, chosen, place).loss,
        head=module.model.get_output_embeddings(),
        trained=parameters,
    )


def our_module(shapes: Shapes, teacher: Teacher, chosen: Stage, device: str = "cpu") -> TrainModule:
    """Model and objectives, with LoRA that has been trained a little."""
    model = build_vlm(shapes, DTYPES[chosen.precision], device)
    add_lora(model, shapes)
    torch.manual_seed(1)
    spec = DistillSpec(teacher="given")
    distill = Distill(spec, teacher, model.width, len(model.blocks))
    terms = [LanguageModelling(LmSpec()), distill]
    return TrainModule(model, terms, chosen.checkpointing).train()


def official(
    shapes: Shapes,
    batch: Batch,
    teacher: Teacher,
    like: Side | None = None,
    device: str = "cpu",
    checkpointing: bool = True,
    precision: str = "float32",
) -> Side:
    """Peer (a); ``like`` gives the values to start from."""
    llm = build_llm(shapes, DTYPES[precision], device)
    model = OfficialStyle(shapes, llm, checkpointing).train()
    if like is not None:
        model.load(like.trained)
    inputs = _to(official_inputs(shapes, batch), device)
    patches = batch.patches_PC.to(device)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(trained.values(), lr=LR, fused=True)

    def step() -> float:
        with _autocast(precision, device):
            loss = model(inputs, teacher.features(patches, batch.grids_N2))
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return model.log["total"]

    return Side(step, llm.get_output_embeddings(), trained)


def peft_trainer(
    shapes: Shapes,
    batch: Batch,
    teacher: Teacher,
    folder: str,
    like: Side | None = None,
    device: str = "cpu",
    precision: str = "float32",
) -> Side:
    """Peer (b), which may write into ``folder``; ``like`` gives the values to start from."""
    model = PeftVora(shapes, build_llm(shapes, DTYPES[precision], device)).train()
    if like is not None:
        model.load(like.trained)
    made = _to(official_inputs(shapes, batch), device)
    inputs: dict[str, Any] = {key: made[key] for key in ("images", "text", "vision", "labels")}
    inputs["states"] = teacher.features(batch.patches_PC.to(device), batch.grids_N2)
    run = trainer_step(model, inputs, folder, LR, bf16=precision == "bfloat16")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    return Side(lambda: run().item(), model.llm.get_output_embeddings(), trained)


def _to(inputs: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {key: value.to(device) for key, value in inputs.items()}


def _autocast(precision: str, device: str) -> AbstractContextManager[object]:
    if precision == "bfloat16":
        return torch.autocast(torch.device(device).type, dtype=torch.bfloat16)
    return nullcontext()
