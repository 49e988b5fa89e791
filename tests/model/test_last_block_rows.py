"""The last block computes only what is read: the same logits, losses and gradients for less."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from oculi.model import call_masks_oculi
from oculi.model.lora import inject_lora
from oculi.model.rows_oculi import Chosen, pays

FAMILIES = ["qwen2", "llama", "olmo2", "qwen3"]
TARGETS = ("q_proj", "v_proj", "o_proj", "up_proj", "down_proj")


@pytest.fixture
def every_row(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, the last block computes every row."""
    return lambda: monkeypatch.setattr(call_masks_oculi, "pays", lambda *arguments: False)


def packed_inputs(make_inputs: Any) -> dict[str, Any]:
    """Two rows of packed samples; label rows in another order than in the rows."""
    inputs = make_inputs([[5, (2, 3), 7, 8, 9, (1, 2), 4], [6, 7, (1, 2), (2, 2), 9, 3, 2, 5]])
    mask = inputs.pop("attention_mask")
    segments = mask - 1
    segments[0, -4:] = 1
    segments[1, -3:] = 1
    inputs["segment_ids"] = segments
    inputs["prompt_mask"] = torch.ones_like(mask).bool()
    inputs["label_rows"] = torch.tensor([24, 5, 25, 7])
    return dict(inputs)


def gradients(model: Any, inputs: dict[str, Any], **taps: Any) -> dict[str, Tensor]:
    model.zero_grad()
    output = model(**inputs, **taps, use_cache=False)
    total = output.logits.logsumexp(-1).sum()
    for value in (output.taps or {}).values():
        total = total + value
    total.backward()
    found = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return {"logits": output.logits.detach(), "total": total.detach(), **found}


def assert_same(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    """To 1e-5 of the largest value: float32 sums in another order."""
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        bound = 1e-5 * max(1.0, float(value.abs().max()))
        assert (found[name] - value).abs().max() <= bound, name


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("policy", ["causal", "bidirectional", "mutual"])
def test_nothing_changes_but_the_work(
    make_model: Any, make_inputs: Any, every_row: Any, family: str, policy: str
) -> None:
    settings = {"head_dim": 8} if family == "qwen3" else {}
    model = make_model(family, policy, **settings)
    inject_lora(model.llm, rank=4, blocks=3, targets=TARGETS)
    model.requires_grad_(True)
    inputs = packed_inputs(make_inputs)
    taps = {"taps": {0: lambda hidden: hidden.pow(2).mean()}}
    with FlopCounterMode(display=False) as few:
        found = gradients(model, inputs, **taps)
    every_row()
    with FlopCounterMode(display=False) as many:
        wanted = gradients(model, inputs, **taps)
    assert_same(found, wanted)
    assert found["logits"].shape[:2] == (1, 4)
    assert few.get_total_flops() < 0.9 * many.get_total_flops()


def test_padding_by_a_mask_is_minded(make_model: Any, make_inputs: Any, every_row: Any) -> None:
    model = make_model()
    inputs = make_inputs([[5, (2, 3), 7, 8], [6, (1, 2)]])
    inputs["label_rows"] = torch.tensor([7, 16, 17])
    found = gradients(model, inputs)
    every_row()
    assert_same(found, gradients(model, inputs))


def test_a_tap_on_the_last_block_sees_every_vision_token(make_model: Any, make_inputs: Any) -> None:
    model, inputs = make_model(), packed_inputs(make_inputs)
    shapes = []
    model(**inputs, taps={2: lambda hidden: shapes.append(hidden.shape)})
    assert shapes == [(14, 32)]


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_with_transformers_own_checkpointing(
    make_model: Any, make_inputs: Any, reentrant: bool
) -> None:
    model, inputs = make_model().train(), packed_inputs(make_inputs)
    wanted = gradients(model, inputs)
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    assert_same(gradients(model, inputs), wanted)
    assert all(block.gradient_checkpointing for block in model.blocks)


def test_the_block_is_its_own_again(make_model: Any, make_inputs: Any) -> None:
    model, inputs = make_model(), packed_inputs(make_inputs)
    last = model.blocks[-1]
    before = dict(vars(last))
    model(**inputs)
    assert vars(last) == before

    def broken(*arguments: Any) -> None:
        raise RuntimeError("MLP")

    last.mlp.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="MLP"):
        model(**inputs)
    assert vars(last).keys() == before.keys() and not model.llm.lm_head._forward_pre_hooks


@pytest.mark.usefixtures("no_grad")
def test_a_block_that_hands_nothing_to_a_cache_runs_whole(
    make_model: Any, make_inputs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, inputs = make_model(), packed_inputs(make_inputs)
    wanted = model(**inputs).logits
    block = type(model.blocks[-1])
    forward = block.forward

    def without_cache(self: Any, hidden: Tensor, **kwargs: Any) -> Tensor:
        return forward(self, hidden, **{**kwargs, "past_key_values": None})

    monkeypatch.setattr(block, "forward", without_cache)
    found = model(**inputs).logits
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.usefixtures("no_grad")
def test_with_a_cache_every_row_is_computed(make_model: Any, make_inputs: Any) -> None:
    """The next token will read the keys and values of all."""
    from transformers import DynamicCache

    model, inputs = make_model(), make_inputs([[5, (2, 3), 7, 8]])
    cache = DynamicCache(config=model.config.text_config)
    rows = torch.tensor([8])
    some = model(**inputs, label_rows=rows, past_key_values=cache, use_cache=True).logits
    assert cache.get_seq_length() == 9
    assert (some - model(**inputs).logits[:, 8:]).abs().max() < 1e-4


def test_it_pays_where_few_rows_are_read() -> None:
    assert pays(slots=500, tokens=1000)
    assert not pays(slots=0, tokens=1000)
    assert not pays(slots=501, tokens=1000)


def test_how_many_rows_are_read_is_counted_or_told(make_model: Any, make_inputs: Any) -> None:
    """Told, the host does not wait; more than there are is only more work."""
    model, inputs = make_model(), packed_inputs(make_inputs)
    counted = model(**inputs).logits
    for most in (2, 5):
        told = model(**inputs, labels_per_row=most).logits
        torch.testing.assert_close(told, counted, rtol=0, atol=1e-5)


def test_label_rows_stand_in_their_rows() -> None:
    chosen = Chosen.of(torch.tensor([24, 5, 25, 7, 26]), batch=3, length=10, most=3)
    assert chosen.columns_BM.tolist() == [[5, 7, 7], [0, 0, 0], [4, 5, 6]]
    assert chosen.places_R.tolist() == [6, 0, 7, 1, 8]
    states = torch.arange(30.0).view(3, 10, 1)
    found = chosen.of_rows(states)
    assert found.shape == (3, 3, 1)
    assert found.flatten()[chosen.places_R].tolist() == [24, 5, 25, 7, 26]
    of_all = chosen.of_rows(states[:1])
    assert of_all.flatten()[chosen.places_R].tolist() == [4, 5, 5, 7, 6]
