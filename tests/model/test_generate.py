"""``generate``: at every step, with every cache, the logits of one full forward."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from oculi.model import OculiForConditionalGeneration

pytestmark = pytest.mark.usefixtures("no_grad")

FAMILIES = pytest.mark.parametrize("family", ["qwen2", "llama", "olmo2"])
POLICIES = pytest.mark.parametrize("policy", ["causal", "bidirectional", "mutual"])
STEPS = 4

# Ragged sizes, several images, adjacent ones, one at the very end, none.
ROWS = [
    [5, (2, 3), 7],
    [6, 7, (2, 2), (1, 2), 6, 7, 8],
    [5, 6],
    [4, 9, (2, 2), 8, (3, 2)],
]


def with_prompt(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**inputs, "prompt_mask": inputs["attention_mask"].clone()}


def generate(model: Any, inputs: dict[str, Tensor], **settings: Any) -> tuple[Tensor, Tensor]:
    """New tokens [B, STEPS] and the logits [B, STEPS, V] that chose them."""
    result = model.generate(
        **inputs,
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=-1,
        output_logits=True,
        return_dict_in_generate=True,
        **settings,
    )
    return result.sequences[:, -STEPS:], torch.stack(result.logits, dim=1)


def reference(model: Any, inputs: dict[str, Tensor], new: Tensor) -> Tensor:
    """Logits of the same steps from one forward per row, without padding and without a cache."""
    found, start = [], 0
    for row, ids in enumerate(inputs["input_ids"]):
        ids = ids[inputs["attention_mask"][row].bool()]
        count = int((ids == model.config.image_token_id).sum())
        counts = inputs["image_grids"].prod(-1).cumsum(0)
        mine = (counts > start) & (counts <= start + count)
        images = {
            "pixel_values": inputs["pixel_values"][start : start + count],
            "image_grids": inputs["image_grids"][mine],
        }
        whole = torch.cat([ids, new[row, :-1]])[None]
        prompt = torch.arange(whole.shape[1])[None] < len(ids)
        output = model(input_ids=whole, prompt_mask=prompt, **(images if count else {}))
        found.append(output.logits[0, len(ids) - 1 :])
        start += count
    return torch.stack(found)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the largest logit: float32 sums in another order."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@FAMILIES
@POLICIES
@pytest.mark.parametrize(
    "cache",
    [{}, {"cache_implementation": "static"}, {"use_cache": False}],
    ids=["dynamic", "static", "none"],
)
def test_every_step_is_a_full_forward(
    make_model: Any, make_inputs: Any, family: str, policy: str, cache: dict[str, Any]
) -> None:
    model = make_model(family, policy)
    batch = with_prompt(make_inputs(ROWS))
    new, logits = generate(model, batch, **cache)
    assert_close(logits, reference(model, batch, new))
    assert torch.equal(new, logits.argmax(-1))


@POLICIES
def test_a_single_row_needs_no_mask(make_model: Any, make_inputs: Any, policy: str) -> None:
    model = make_model(policy=policy)
    inputs = with_prompt(make_inputs([[5, (2, 3), 7, (2, 2)]]))
    expected, _ = generate(model, inputs)
    padding = inputs.pop("attention_mask")
    new, logits = generate(model, inputs)
    assert torch.equal(new, expected)
    assert_close(logits, reference(model, {**inputs, "attention_mask": padding}, new))


def test_images_matter_after_the_prefill(make_model: Any, make_inputs: Any) -> None:
    """Else a cache that lost them would pass."""
    model, batch = make_model(), make_inputs(ROWS)
    new, logits = generate(model, batch)
    other = {**batch, "pixel_values": 255 - batch["pixel_values"]}
    changed = (reference(model, other, new) - logits).abs().amax((1, 2))
    assert (changed[[0, 1, 3]] > 0.1).all() and changed[2] < 1e-3


@pytest.mark.parametrize("cache", [{}, {"use_cache": False}], ids=["dynamic", "none"])
def test_mutual_images_do_not_see_what_is_generated(
    make_model: Any, make_inputs: Any, cache: dict[str, Any]
) -> None:
    """A prompt mask of 2-D length grows with the answer, as not-prompt."""
    model = make_model(policy="mutual")
    inputs = with_prompt(make_inputs([[5, (2, 3), 7]]))
    new, logits = generate(model, inputs, **cache)
    whole = torch.cat([inputs["input_ids"], new[:, :-1]], dim=1)
    leaking = model(
        input_ids=whole,
        prompt_mask=torch.ones_like(whole),
        pixel_values=inputs["pixel_values"],
        image_grids=inputs["image_grids"],
    ).logits[:, -STEPS:]
    assert (leaking - logits).abs().max() > 0.1
    assert_close(logits, reference(model, inputs, new))


def test_states_are_returned_with_an_answer(make_model: Any, make_inputs: Any) -> None:
    model, inputs = make_model(), make_inputs([[5, (2, 3), 7]])
    model.set_attn_implementation("eager")
    result = model.generate(
        **inputs, max_new_tokens=2, do_sample=False, eos_token_id=-1, return_dict_in_generate=True,
        output_hidden_states=True, output_attentions=True,
    )  # fmt: skip
    assert [len(step) for step in result.hidden_states] == [4, 4]
    assert [step[-1].shape for step in result.attentions] == [(1, 4, 8, 8), (1, 4, 1, 9)]


def test_each_sample_has_the_images_of_its_row(make_model: Any, make_inputs: Any) -> None:
    """Patches of all images lie in one tensor, which must not be repeated patch by patch."""
    model = make_model(policy="mutual")
    batch = with_prompt(make_inputs(ROWS))
    new, logits = generate(model, batch)
    result = model.generate(
        **batch,
        max_new_tokens=STEPS,
        eos_token_id=-1,
        num_return_sequences=2,
        do_sample=True,
        top_k=1,
        output_logits=True,
        return_dict_in_generate=True,
    )
    assert torch.equal(result.sequences[:, -STEPS:], new.repeat_interleave(2, 0))
    assert_close(torch.stack(result.logits, dim=1), logits.repeat_interleave(2, 0))


def test_each_beam_has_the_images_of_its_row(make_model: Any, make_inputs: Any) -> None:
    model = make_model(policy="mutual")
    batch = with_prompt(make_inputs(ROWS))
    result = model.generate(
        **batch,
        max_new_tokens=STEPS,
        do_sample=False,
        eos_token_id=-1,
        num_beams=3,
        length_penalty=0.0,
        output_scores=True,
        return_dict_in_generate=True,
    )
    new = result.sequences[:, -STEPS:]
    log_probability = reference(model, batch, new).log_softmax(-1)
    expected = log_probability.gather(2, new[..., None]).sum((1, 2))
    torch.testing.assert_close(result.sequences_scores, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("policy", ["causal", "bidirectional"])
def test_a_second_turn_continues_the_cache(make_model: Any, make_inputs: Any, policy: str) -> None:
    """The first turn's image lies in the cache; the second turn brings another."""
    model = make_model(policy=policy)
    inputs = make_inputs([[5, (2, 3), 7, 8]])
    cache = DynamicCache()
    first = model.generate(
        **inputs, past_key_values=cache, max_new_tokens=3, do_sample=False, eos_token_id=-1
    )
    more = make_inputs([[9, (2, 2), 6]], seed=1)
    whole = {
        "input_ids": torch.cat([first, more["input_ids"]], dim=1),
        "pixel_values": torch.cat([inputs["pixel_values"], more["pixel_values"]]),
        "image_grids": torch.cat([inputs["image_grids"], more["image_grids"]]),
    }
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    second = {**whole, "pixel_values": more["pixel_values"], "image_grids": more["image_grids"]}
    new, logits = generate(model, second, past_key_values=cache)
    assert_close(logits, reference(model, whole, new))


def test_a_second_turn_of_mutual_reads_its_own_prompt(make_model: Any, make_inputs: Any) -> None:
    """What the first turn's images saw is in the cache; the second's see what lies behind them."""
    model = make_model(policy="mutual")
    first, second = [5, 7, 8], [9, (2, 2), 6, 4]
    inputs = with_prompt(make_inputs([first + second]))
    new, expected = generate(model, inputs)
    cache = DynamicCache()
    model(input_ids=inputs["input_ids"][:, :3], past_key_values=cache, use_cache=True)
    continued, logits = generate(model, inputs, past_key_values=cache)
    assert torch.equal(continued, new)
    assert_close(logits, expected)


def test_generation_settings_of_the_llm_are_kept(make_model: Any, tmp_path: Any) -> None:
    model = make_model(eos_token_id=[2, 7], pad_token_id=3)
    model.save_pretrained(tmp_path)
    for each in (model, OculiForConditionalGeneration.from_pretrained(tmp_path)):
        assert each.generation_config.eos_token_id == [2, 7]
        assert each.generation_config.pad_token_id == 3


def test_generation_stops_at_the_end_of_the_turn(make_model: Any, make_inputs: Any) -> None:
    model, inputs = make_model(), make_inputs([[5, (2, 3), 7]])
    new, _ = generate(model, inputs)
    model.generation_config.eos_token_id = int(new[0, 1])
    stopped = model.generate(**inputs, max_new_tokens=STEPS, do_sample=False)
    stop = new[0].tolist().index(int(new[0, 1])) + 1
    assert stopped[0, inputs["input_ids"].shape[1] :].tolist() == new[0, :stop].tolist()
