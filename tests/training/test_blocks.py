"""How blocks run while they are trained: recomputed, compiled, and neither without gradients."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import Tiny, make_tower, mixture, tiny_recipe
from oculi.batch import Batch
from oculi.data.loader import collate, encode_sample
from oculi.model.lora import inject_lora, lora_layers
from oculi.objectives import Distill, LanguageModelling
from oculi.objectives.teacher import Teacher
from oculi.recipe import DistillSpec, LmSpec
from oculi.training.module import TrainModule, canonical_parameters, set_blocks
from oculi.training.run import train

TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")
CPU = torch.device("cpu")


@pytest.fixture
def batch(make_processor: Callable[..., Any]) -> Batch:
    processor = make_processor()
    encoded = [(sample.id, encode_sample(sample, processor)) for sample in mixture()]
    return collate([encoded[:3], encoded[3:]], 48)


@pytest.fixture
def make_module(make_model: Callable[..., Any]) -> Callable[..., TrainModule]:
    """Model and objectives with the same values each time."""

    def make(checkpointing: str = "none", blocks: int = 3) -> TrainModule:
        model = make_model(num_hidden_layers=blocks)
        inject_lora(model.llm, rank=4, blocks=blocks, targets=TARGETS)
        torch.manual_seed(2)
        with torch.no_grad():
            for _, layer in lora_layers(model):
                layer.lora_B["default"].weight.normal_(std=0.1)
        teacher = Teacher(make_tower("aimv2"))
        distill = Distill(DistillSpec(teacher="x"), teacher, model.width, blocks)
        terms = [LanguageModelling(LmSpec()), distill]
        return TrainModule(model, terms, checkpointing).requires_grad_(True).train()

    return make


def gradients(module: TrainModule, batch: Batch) -> dict[str, Tensor]:
    module.zero_grad(set_to_none=True)
    loss = module.loss(module(batch, module.counts([batch])))
    loss.backward()
    found = {n: p.grad for n, p in canonical_parameters(module).items() if p.grad is not None}
    return {"loss": loss.detach(), **found}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert found.keys() == wanted.keys() and len(found) > 40
    for name, value in wanted.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_checkpointing_changes_no_gradient(
    make_module: Callable[..., TrainModule], batch: Batch, mode: str
) -> None:
    plain, recomputed = make_module(), make_module(mode)
    wanted = gradients(plain, batch)
    runs: list[None] = []
    first = recomputed.model.blocks[0].mlp.act_fn
    first.register_forward_hook(lambda *arguments: runs.append(None))
    assert_same(gradients(recomputed, batch), wanted)
    assert len(runs) == 2, "nothing was computed again"
    with torch.no_grad():
        recomputed(batch, recomputed.counts([batch]))
    assert len(runs) == 3


SLOW = [pytest.param(mode, marks=pytest.mark.slow) for mode in ("none", "full")]


@pytest.mark.parametrize("mode", ["selective", *SLOW])
def test_compiling_changes_no_gradient(
    make_module: Callable[..., TrainModule],
    batch: Batch,
    mode: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Traced as for a GPU, and run by torch's own kernels, which needs no compiler here."""
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    wanted = gradients(make_module(blocks=2), batch)
    module = make_module(mode, blocks=2)
    set_blocks(module.model, mode, compiled=True)
    assert_same(gradients(module, batch), wanted)
    assert counters["stats"]["unique_graphs"] > 0 and not counters["graph_break"]


def test_on_a_cpu_nothing_is_compiled(
    make_module: Callable[..., TrainModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", None)
    module = make_module()
    module.place(CPU, torch.float32)
    assert not any("forward" in vars(block) for block in module.model.blocks)


def test_the_next_stage_decides_anew(make_module: Callable[..., TrainModule]) -> None:
    module = make_module("full")
    assert all("forward" in vars(block) for block in module.model.blocks)
    TrainModule(module.model, [LanguageModelling(LmSpec())])
    assert not any("forward" in vars(block) for block in module.model.blocks)


def test_a_recipe_chooses(tiny: Tiny, tmp_path: Any) -> None:
    """The losses of a run are those of a run that keeps everything."""
    import json

    found = {}
    for mode in ("none", "selective"):
        changes = {"stages.0.checkpointing": mode, "stages.1.checkpointing": mode}
        run = train(tiny_recipe(tiny, **changes), tmp_path / mode, quiet=True)
        lines = (run / "metrics.jsonl").read_text().splitlines()
        found[mode] = [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]
    assert found["selective"] == pytest.approx(found["none"], rel=1e-5) and len(found["none"]) > 4
