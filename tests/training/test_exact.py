"""A packed batch is its samples one by one: the loss and every gradient.

This is what the mask, the positions, the counts over the whole global batch and the order of images
are for; any of them wrong shows here. Differences are float32 sums in another order.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import PATCH, Drawn, make_tower, mixture, sample
from oculi.batch import Batch
from oculi.data.loader import Steps, collate, encode_sample
from oculi.data.turns import side_by_side
from oculi.model.lora import inject_lora, lora_layers
from oculi.objectives import Distill, LanguageModelling
from oculi.objectives.teacher import Teacher
from oculi.recipe import DistillSpec, LmSpec
from oculi.training.module import TrainModule, canonical_parameters

TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
READ = ("model.vision.tower.embeddings.", "model.vision.tower.encoder.")


def tower_config(family: str) -> dict[str, Any]:
    tower = make_tower(family).config.to_dict()
    return {"kind": "tower", "tower": tower, "patch_size": PATCH, "layer": -1}


# One tower takes pictures of one grid, the other of any.
VISION = {"embed": None, "clip": tower_config("clip"), "siglip2": tower_config("siglip2")}


@pytest.fixture
def module(make_model: Callable[..., Any], request: pytest.FixtureRequest) -> TrainModule:
    """lm and distillation on a model with LoRA, every parameter trained that has a part in it."""
    family, policy, tower, vision = request.param
    model = make_model(family, policy=policy, vision=VISION[vision])
    inject_lora(model.llm, rank=4, blocks=2, targets=TARGETS)
    torch.manual_seed(2)
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B["default"].weight.normal_(std=0.1)
    teacher = Teacher(make_tower(tower))
    distill = Distill(DistillSpec(teacher="x", weight=0.5), teacher, model.width, 3)
    module = TrainModule(model, [LanguageModelling(LmSpec()), distill])
    for name, parameter in module.requires_grad_(True).named_parameters():
        # Behind the last block of a tower: its own norm and pooling, which are not read.
        if "vision.tower." in name and not name.startswith(READ):
            parameter.requires_grad_(False)
    return module


def gradients(module: TrainModule, batches: Sequence[Batch]) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of one step made of these micro-batches."""
    module.zero_grad(set_to_none=True)
    counts, total = module.counts(batches), 0.0
    for batch in batches:
        loss = module.loss(module(batch, counts))
        loss.backward()
        total += float(loss.detach())
    found = {n: p for n, p in canonical_parameters(module).items() if p.requires_grad}
    assert all(p.grad is not None for p in found.values())
    return total, {name: p.grad.clone() for name, p in found.items() if p.grad is not None}


def assert_same(
    found: tuple[float, dict[str, Tensor]], wanted: tuple[float, dict[str, Tensor]]
) -> None:
    assert abs(found[0] - wanted[0]) < 1e-5
    assert found[1].keys() == wanted[1].keys() and len(found[1]) > 40
    for name, gradient in wanted[1].items():
        scale = float(gradient.abs().max())
        assert scale > 0, f"{name} has no gradient: nothing is compared"
        difference = float((found[1][name] - gradient).abs().max())
        assert difference <= 1e-5 * max(1.0, scale), f"{name}: {difference} of {scale}"


CASES = [
    ("qwen2", "bidirectional", "aimv2", "embed"),
    ("qwen2", "mutual", "siglip2", "embed"),
    ("llama", "causal", "clip", "embed"),
    ("qwen2", "causal", "aimv2", "clip"),
    ("llama", "mutual", "clip", "siglip2"),
]


@pytest.mark.parametrize("module", CASES, indirect=True, ids="-".join)
def test_packed_equals_one_by_one(module: TrainModule, make_processor: Callable[..., Any]) -> None:
    processor = make_processor()
    encoded = [(sample.id, encode_sample(sample, processor)) for sample in mixture()]
    singly = gradients(module, [collate([[one]], 48) for one in encoded])
    packed = collate([encoded[3:], [encoded[1], encoded[0], encoded[2]]], 48)
    assert (packed.segments_BT == -1).any() and packed.segments_BT.max() == 2
    assert_same(gradients(module, [packed]), singly)
    assert_same(gradients(module, [collate([encoded], 48)]), singly)


@pytest.mark.parametrize("module", CASES[:1], indirect=True, ids="-".join)
def test_accumulation_changes_nothing(
    module: TrainModule, make_processor: Callable[..., Any]
) -> None:
    """The same step as one micro-batch, as two and row by row; one of them is text alone."""
    processor = make_processor()

    def step(micro_rows: int) -> list[Batch]:
        settings = {"seed": 1, "steps": 1, "batch": 6, "pack_length": 60}
        return Steps(mixture(), processor, micro_rows=micro_rows, **settings)[0]

    whole = step(99)
    assert len(whole) == 1 and len(step(2)) >= 2 and len(step(1)) >= 4
    assert any(not part.vision_tokens for part in step(1))
    wanted = gradients(module, whole)
    assert_same(gradients(module, step(2)), wanted)
    assert_same(gradients(module, step(1)), wanted)


@pytest.mark.parametrize("module", CASES[:1], indirect=True, ids="-".join)
def test_the_comparison_would_see_a_leak(
    module: TrainModule, make_processor: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without segments, samples of a row see each other: the gradients must then differ."""
    processor = make_processor()
    encoded = [(sample.id, encode_sample(sample, processor)) for sample in mixture()]
    packed = collate([encoded], 48)
    wanted = gradients(module, [packed])
    inputs = {**packed.model_inputs(), "segment_ids": torch.zeros_like(packed.segments_BT)}
    monkeypatch.setattr(Batch, "model_inputs", lambda self: inputs)
    with pytest.raises(AssertionError):
        assert_same(gradients(module, [packed]), wanted)


TALK = sample(
    "talk", ("#", "#", "\nWhat is it?"), "a red cup", "Which colour?", "red", "How many are there?",
    "two", images=(Drawn(8, 8, 1), Drawn(12, 4, 2)),
)  # fmt: skip


@pytest.mark.parametrize("fusion", [None, "cross", "decoder"])
@pytest.mark.parametrize("policy", ["bidirectional", "causal"])
@pytest.mark.parametrize("attention", ["eager", "blocked", "sdpa"])
def test_turns_side_by_side_are_the_turns_one_by_one(
    make_model: Callable[..., Any],
    make_processor: Callable[..., Any],
    policy: str,
    attention: str,
    fusion: str | None,
) -> None:
    """Each with the pictures and none with another, though the pictures go through once."""
    fuse = fusion and {"kind": fusion, "layers": 2}
    model, processor = make_model("qwen2", policy=policy, fusion=fuse), make_processor()
    model.llm.set_attn_implementation(attention)
    module = TrainModule(model, [LanguageModelling(LmSpec())]).requires_grad_(True)
    turns = [(turn.id, encode_sample(turn, processor)) for turn in side_by_side(TALK)]
    others = [(other.id, encode_sample(other, processor)) for other in mixture()[:2]]
    singly = gradients(module, [collate([[one]], 48) for one in (*others, *turns)])
    together = "talk", encode_sample(replace(TALK, separate=True), processor)
    packed = collate([[others[0], together, others[1]]], 48)
    assert packed.tokens < sum(len(e.input_ids) for _, e in (*others, *turns))
    assert_same(gradients(module, [packed]), singly)
    assert_same(gradients(module, [collate([[together], others], 48)]), singly)
    twice = collate([[together, others[0], together, others[1]]], 48)
    alone = [collate([[one]], 48) for one in (*others, *turns, *turns)]
    assert_same(gradients(module, [twice]), gradients(module, alone))
    leaking = replace(packed, branches_BT=None)
    with pytest.raises(AssertionError):
        assert_same(gradients(module, [leaking]), singly)
