"""Peers are what they say, and none of it depends on the size."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers.utils import logging

from oculi.bench import sides
from oculi.bench.counters import count
from oculi.bench.inference import merged_beside_base
from oculi.bench.official import make_mask
from oculi.bench.shapes import SMALL, Shapes, make_batch, teacher_states
from oculi.errors import OculiError
from oculi.model.masks_oculi import mask_function


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.set_verbosity_error()


def given(shapes: Shapes) -> tuple[Any, sides.GivenTeacher]:
    batch = make_batch(shapes)
    return batch, sides.GivenTeacher(teacher_states(shapes, batch))


def test_the_dense_mask_is_ours() -> None:
    batch = make_batch(SMALL)
    vision = (batch.images_BT >= 0).long()
    dense = make_mask(torch.ones_like(vision), vision, torch.float32)[:, 0] == 0
    allowed = mask_function("bidirectional", batch.images_BT)
    row, index = torch.arange(2)[:, None, None], torch.arange(SMALL.length)
    ours = allowed(row, torch.tensor(0), index[None, :, None], index[None, None])
    assert torch.equal(dense, ours)


def test_all_sides_learn_alike(tmp_path: Path) -> None:
    """After the same updates of the same values the losses are still the same."""
    batch, teacher = given(SMALL)
    ours = sides.ours(SMALL, batch, teacher)
    others = [
        sides.ours(SMALL, batch, teacher, checkpointing="full"),
        sides.official(SMALL, batch, teacher, ours),
        sides.peft_trainer(SMALL, batch, teacher, str(tmp_path), ours),
    ]
    losses = []
    for _ in range(3):
        losses.append(ours.step())
        assert [other.step() for other in others] == pytest.approx([losses[-1]] * 3, rel=1e-4)
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize("changes", [{}, {"samples": 5}, {"text": 40}, {"grid": (8, 8)}])
def test_a_step_waits_once_whatever_the_batch(changes: dict[str, Any]) -> None:
    shapes = replace(SMALL, **changes)
    batch, teacher = given(shapes)
    side = sides.ours(shapes, batch, teacher)
    found = count(side.step, side.head)
    assert found.host_syncs == 1 and found.boolean_indices == 0
    assert found.logits_rows == shapes.samples * shapes.answer


def test_micro_batches_wait_once_together() -> None:
    batch, teacher = given(SMALL)
    chosen = sides.stage()
    module = sides.our_module(SMALL, teacher, chosen)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = sides.make_optimizer(
        dict(zip("abcdefghijklmnopqrstuvwxyz", parameters, strict=False)), _Rates(), chosen
    )
    cpu = torch.device("cpu")

    def step() -> None:
        sides.train_step(module, [batch, batch, batch], optimizer, parameters, chosen, cpu)

    assert count(step, module.model.get_output_embeddings()).host_syncs == 1


class _Rates(dict[str, float]):
    def __missing__(self, name: str) -> float:
        return 1e-4


def test_a_merged_model_does_what_the_llm_does() -> None:
    found = merged_beside_base(SMALL)
    assert found.same and found.base_ops == found.merged_ops > 50


def test_one_operation_more_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    from oculi.bench import inference

    monkeypatch.setattr(inference, "merge_lora", lambda llm: None)
    found = merged_beside_base(SMALL)
    assert not found.same and found.merged_ops > found.base_ops
    assert not found.goals()[0].met


def test_without_accelerate_it_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import transformers

    def refuse(**settings: Any) -> None:
        raise ImportError("Using the `Trainer` requires `accelerate`:\ninstall it")

    monkeypatch.setattr(transformers, "TrainingArguments", refuse)
    batch, teacher = given(SMALL)
    with pytest.raises(OculiError, match="pip install accelerate") as caught:
        sides.peft_trainer(SMALL, batch, teacher, str(tmp_path))
    assert "\n" not in str(caught.value)
