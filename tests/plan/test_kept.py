"""Bytes that a plan says a pass keeps are those of a built model on the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from helpers import PATCH, Tiny, recipe_data
from oculi.plan import plan
from oculi.plan.attention import Autocast
from oculi.plan.sample import sample_batch
from oculi.plan.stage import StagePlan
from oculi.recipe import Stage, validate
from oculi.training.loop import autocast

Built = Callable[..., Any]


class Made(TorchDispatchMode):
    """Notes the storages that operations make."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return output


def kept(module: Any, stage: StagePlan, settings: Stage) -> int:
    """Bytes that are there after a real pass, beside weights and batch."""
    batch = sample_batch(stage.grid, stage.text_tokens, PATCH, "cpu")
    there = {t.untyped_storage()._cdata for t in [*module.parameters(), *module.buffers()]}
    there |= {v.untyped_storage()._cdata for v in vars(batch).values() if torch.is_tensor(v)}
    with Made() as made, autocast(settings, torch.device("cpu")):
        loss = module.loss(module(batch, module.counts([batch])))
    sizes = [
        size
        for address, (reference, size) in made.storages.items()
        if address not in there and not reference.expired()
    ]
    del loss
    return sum(sizes)


@pytest.mark.parametrize(
    ("precision", "checkpointing"),
    [("float32", "none"), ("bfloat16", "none"), ("bfloat16", "full")],
)
def test_what_a_pass_keeps(tiny: Tiny, built: Built, precision: str, checkpointing: str) -> None:
    """Kernels of attention and rules of autocast differ from a CPU's, so this is near, not equal."""
    changes = {f"stages.{n}.precision": precision for n in (0, 1)}
    changes |= {f"stages.{n}.checkpointing": checkpointing for n in (0, 1)}
    recipe = validate(recipe_data(tiny, **changes), "test")
    for number, stage in enumerate(plan(recipe, text_tokens=40).stages):
        module = built(recipe, number)
        found = stage.memory.copies + stage.memory.per_sample
        assert found == pytest.approx(kept(module, stage, recipe.stages[number]), rel=0.01)
    if checkpointing == "none":
        linears = [m for m in module.model.modules() if isinstance(m, torch.nn.Linear)]
        # Of the patch projection's weight too there is a copy, but pixels need no gradient.
        copied = sum(m.weight.numel() for m in linears if m is not module.model.vision.patch)
        assert stage.memory.copies == (2 * copied if precision == "bfloat16" else 0)


def test_torch_answers_for_the_meta_device_within_the_context_only() -> None:
    with pytest.raises(RuntimeError, match="unknown device"):
        torch.is_autocast_enabled("meta")
    with Autocast(torch.bfloat16):
        assert torch.is_autocast_enabled("meta") and not torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("meta") == torch.bfloat16
        with torch.autocast("meta", enabled=False):
            assert not torch.is_autocast_enabled("meta")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert torch.is_autocast_enabled("cpu")
        layer = torch.nn.Linear(3, 2, device="meta")
        assert layer(torch.ones(1, 3, device="meta")).dtype == torch.bfloat16
    with Autocast(None):
        assert not torch.is_autocast_enabled("meta")
    with pytest.raises(RuntimeError, match="unknown device"):
        torch.is_autocast_enabled("meta")
