"""Fusion in ``generate``: at every step, with every cache, the logits of one full forward."""

from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

pytestmark = pytest.mark.usefixtures("no_grad")

KINDS = pytest.mark.parametrize("kind", ["cross", "decoder", "combined"])
TOKENS = 2
COMPRESS = {"kind": "mlp", "patches": 6, "tokens": TOKENS}
STEPS = 4
# Ragged sizes, several images, adjacent ones, text before an image, one at the very end, none.
ROWS = [
    [5, (2, 3), 7],
    [6, 7, (2, 2), (1, 2), 6, 7, 8],
    [5, 6],
    [4, 9, (2, 2), 8, (3, 2)],
]


@pytest.fixture
def fused(make_model: Any) -> Any:
    def make(kind: str, layers: int = 1, **settings: Any) -> Any:
        return make_model(compress=COMPRESS, fusion={"kind": kind, "layers": layers}, **settings)

    return make


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
    found, image, patch = [], 0, 0
    for row, ids in enumerate(inputs["input_ids"]):
        ids = ids[inputs["attention_mask"][row].bool()]
        count = int((ids == model.config.image_token_id).sum()) // TOKENS
        grids = inputs["image_grids"][image : image + count]
        patches = int(grids.prod(-1).sum())
        images = {
            "pixel_values": inputs["pixel_values"][patch : patch + patches], "image_grids": grids,
        }  # fmt: skip
        whole = torch.cat([ids, new[row, :-1]])[None]
        output = model(input_ids=whole, use_cache=False, **(images if count else {}))
        found.append(output.logits[0, len(ids) - 1 :])
        image, patch = image + count, patch + patches
    return torch.stack(found)


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the largest logit: float32 sums in another order."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@KINDS
@pytest.mark.parametrize("family", ["qwen2", "llama", "olmo2"])
@pytest.mark.parametrize(
    ("layers", "policy"), [(1, "bidirectional"), (2, "bidirectional"), (2, "causal")]
)
@pytest.mark.parametrize(
    "cache",
    [{}, {"cache_implementation": "static"}, {"use_cache": False}],
    ids=["dynamic", "static", "none"],
)
def test_every_step_is_a_full_forward(
    fused: Any, make_inputs: Any, kind: str, family: str, layers: int, policy: str, cache: Any
) -> None:
    model = fused(kind, layers, family=family, policy=policy)
    batch = make_inputs(ROWS, tokens=TOKENS)
    new, logits = generate(model, batch, **cache)
    assert_close(logits, reference(model, batch, new))
    assert torch.equal(new, logits.argmax(-1))


@KINDS
def test_eager_attention_agrees(fused: Any, make_inputs: Any, kind: str) -> None:
    model = fused(kind, 2)
    batch = make_inputs(ROWS, tokens=TOKENS)
    new, logits = generate(model, batch)
    model.set_attn_implementation("eager")
    assert model.llm.config._attn_implementation == "eager"
    again, eager = generate(model, batch)
    assert torch.equal(new, again)
    assert_close(eager, logits)


def test_an_offloaded_cache_fetches_the_first_block_behind_the_last(
    fused: Any, make_inputs: Any, monkeypatch: Any
) -> None:
    """CUDA's streams are stood in for, and a layer that is away says so when it is used."""
    stream = MagicMock()
    monkeypatch.setattr(torch, "Stream", lambda *args, **settings: stream)
    monkeypatch.setattr(torch.cuda, "default_stream", lambda device=None: stream)
    away: set[int] = set()
    monkeypatch.setattr(DynamicLayer, "offload", lambda layer: away.add(id(layer)))
    monkeypatch.setattr(DynamicLayer, "prefetch", lambda layer: away.discard(id(layer)))
    update = DynamicLayer.update

    def on_the_device(layer: Any, *args: Any, **settings: Any) -> Any:
        assert id(layer) not in away, "the layer's keys are still on the host"
        return update(layer, *args, **settings)

    monkeypatch.setattr(DynamicLayer, "update", on_the_device)
    model, inputs = fused("combined", 2), make_inputs(ROWS, tokens=TOKENS)
    expected, _ = generate(model, inputs)
    new, _ = generate(model, inputs, cache_implementation="offloaded")
    assert away and torch.equal(new, expected)


@KINDS
@pytest.mark.parametrize("policy", ["causal", "bidirectional"])
@pytest.mark.parametrize(
    "cache", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"]
)
def test_a_single_row_needs_no_mask(
    fused: Any, make_inputs: Any, kind: str, policy: str, cache: Any
) -> None:
    """Nor may a static cache lose the one that it needs, as transformers decides by all its layers."""
    model = fused(kind, policy=policy)
    inputs = make_inputs([[5, (2, 3), 7, (2, 2)]], tokens=TOKENS)
    padding = inputs.pop("attention_mask")
    new, logits = generate(model, inputs, **cache)
    assert_close(logits, reference(model, {**inputs, "attention_mask": padding}, new))


@KINDS
def test_each_sample_has_the_images_of_its_row(fused: Any, make_inputs: Any, kind: str) -> None:
    model, batch = fused(kind), make_inputs(ROWS, tokens=TOKENS)
    new, logits = generate(model, batch)
    result = model.generate(
        **batch, max_new_tokens=STEPS, eos_token_id=-1, num_return_sequences=2, do_sample=True,
        top_k=1, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    assert torch.equal(result.sequences[:, -STEPS:], new.repeat_interleave(2, 0))
    assert_close(torch.stack(result.logits, dim=1), logits.repeat_interleave(2, 0))


@KINDS
@pytest.mark.parametrize(
    "cache", [{}, {"cache_implementation": "static"}], ids=["dynamic", "static"]
)
def test_beams_carry_the_fusions_keys(fused: Any, make_inputs: Any, kind: str, cache: Any) -> None:
    """Three beams change places; a beam's score is that of its words in one full forward."""
    model, batch = fused(kind), make_inputs(ROWS, tokens=TOKENS)
    result = model.generate(
        **batch, max_new_tokens=STEPS, do_sample=False, eos_token_id=-1, num_beams=3,
        length_penalty=0.0, output_scores=True, return_dict_in_generate=True, **cache,
    )  # fmt: skip
    new = result.sequences[:, -STEPS:]
    log_probability = reference(model, batch, new).log_softmax(-1)
    expected = log_probability.gather(2, new[..., None]).sum((1, 2))
    torch.testing.assert_close(result.sequences_scores, expected, atol=1e-4, rtol=1e-4)


@KINDS
def test_rejected_drafts_are_forgotten(fused: Any, make_inputs: Any, kind: str) -> None:
    """Prompt lookup proposes words of the prompt; those that are wrong are cropped from the cache."""
    model = fused(kind, 2)
    inputs = make_inputs([[5, (2, 3), 7, 5, 7, 9, 5, 7]], tokens=TOKENS)
    settings = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": -1}
    assert torch.equal(
        model.generate(**inputs, **settings),
        model.generate(**inputs, **settings, prompt_lookup_num_tokens=3),
    )


@KINDS
@pytest.mark.parametrize("drop", [1, 3])
def test_a_cropped_cache_goes_on_as_if_it_had_never_been(
    fused: Any, make_inputs: Any, kind: str, drop: int
) -> None:
    """Of ``drop`` tokens the second crop takes one that came with the images of the first call."""
    model = fused(kind, 2)
    rows = [[5, (2, 3), 7, 8], [(2, 2), 6, 7, 8]]
    inputs = make_inputs(rows, tokens=TOKENS)
    cache = DynamicCache()
    model(**inputs, past_key_values=cache)
    model(input_ids=torch.tensor([[3, 4], [4, 3]]), past_key_values=cache)
    cache.crop(-drop)
    short = inputs["input_ids"].shape[1] + 2 - drop
    rest = torch.tensor([[6, 9], [9, 6]])
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 9), value=1)
    found = model(input_ids=rest, past_key_values=cache, attention_mask=mask[:, : short + 2]).logits
    whole = torch.cat([inputs["input_ids"], torch.tensor([[3, 4], [4, 3]])], 1)[:, :short]
    inputs |= {"input_ids": torch.cat([whole, rest], 1), "attention_mask": mask[:, : short + 2]}
    assert_close(found, model(**inputs, use_cache=False).logits[:, -2:])


@KINDS
def test_rows_may_be_chosen_and_repeated(fused: Any, make_inputs: Any, kind: str) -> None:
    model, inputs = fused(kind), make_inputs([[5, (2, 3), 7], [(2, 2), 6, 7]], tokens=TOKENS)
    more = torch.tensor([[3], [4]])

    def after(change: Any) -> Tensor:
        cache = DynamicCache()
        model(**inputs, past_key_values=cache)
        ids = change(cache)
        return model(input_ids=ids, past_key_values=cache).logits

    plain = after(lambda cache: more)
    repeated = after(lambda cache: cache.batch_repeat_interleave(2) or more.repeat_interleave(2, 0))
    assert_close(repeated, plain.repeat_interleave(2, 0))
    one = torch.tensor([1])
    assert_close(after(lambda cache: cache.batch_select_indices(one) or more[1:]), plain[1:])
    swapped = after(lambda cache: cache.reorder_cache(torch.tensor([1, 0])) or more.flip(0))
    assert_close(swapped, plain.flip(0))


@KINDS
def test_a_second_turn_continues_the_cache(fused: Any, make_inputs: Any, kind: str) -> None:
    """The first turn's image lies in the cache; the second turn brings another."""
    model = fused(kind, 2)
    inputs = make_inputs([[5, (2, 3), 7, 8]], tokens=TOKENS)
    cache = DynamicCache()
    first = model.generate(
        **inputs, past_key_values=cache, max_new_tokens=3, do_sample=False, eos_token_id=-1
    )
    more = make_inputs([[9, (2, 2), 6]], seed=1, tokens=TOKENS)
    whole = {
        "input_ids": torch.cat([first, more["input_ids"]], dim=1),
        "pixel_values": torch.cat([inputs["pixel_values"], more["pixel_values"]]),
        "image_grids": torch.cat([inputs["image_grids"], more["image_grids"]]),
    }
    whole["attention_mask"] = torch.ones_like(whole["input_ids"])
    second = {**whole, "pixel_values": more["pixel_values"], "image_grids": more["image_grids"]}
    new, logits = generate(model, second, past_key_values=cache)
    assert_close(logits, reference(model, whole, new))


def test_a_first_turn_without_an_image(fused: Any, make_inputs: Any) -> None:
    """What text alone left in the cache is what the decoder reads beside a later image."""
    model, cache = fused("combined"), DynamicCache()
    inputs = make_inputs([[5, 7, 8, 9, (2, 2), 6]], tokens=TOKENS)
    model(input_ids=inputs["input_ids"][:, :3], past_key_values=cache)
    new, logits = generate(model, inputs, past_key_values=cache)
    assert_close(logits, reference(model, inputs, new))


def test_a_cache_that_fusion_has_not_seen_is_refused(fused: Any, make_inputs: Any) -> None:
    model, inputs = fused("cross"), make_inputs([[5, (2, 3), 7]], tokens=TOKENS)
    cache = DynamicCache()
    model.llm(input_ids=torch.tensor([[3, 4]]), past_key_values=cache)
    with pytest.raises(ValueError, match="filled without fusion"):
        model(**inputs, past_key_values=cache)
    cache = DynamicCache()
    model(**inputs, past_key_values=cache)
    model.llm(input_ids=torch.tensor([[3]]), past_key_values=cache)
    with pytest.raises(ValueError, match="filled without fusion"):
        model(input_ids=torch.tensor([[3]]), past_key_values=cache)


def test_the_cache_that_a_forward_returns_goes_on(fused: Any, make_inputs: Any) -> None:
    """As the LLM's own classes do, without being given one."""
    model, inputs = fused("combined"), make_inputs([[5, (2, 3), 7]], tokens=TOKENS)
    output = model(**inputs)
    found = model(input_ids=torch.tensor([[8]]), past_key_values=output.past_key_values).logits
    inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([[8]])], 1)
    del inputs["attention_mask"]
    assert_close(found, model(**inputs).logits[:, -1:])


@KINDS
def test_the_uncompressed_tokens_matter_after_the_prefill(
    fused: Any, make_inputs: Any, kind: str
) -> None:
    """Else a cache that lost them would pass: the compressor sees the same picture, fusion another."""
    model, batch = fused(kind), make_inputs(ROWS, tokens=TOKENS)
    _, logits = generate(model, batch)
    forward = model.fusion.forward

    def other(embeds: Tensor, whole: Tensor, *args: Any) -> Tensor:
        return forward(embeds, whole.flip(1), *args)

    model.fusion.forward = other
    _, changed = generate(model, batch)
    moved = (changed - logits).abs().amax((1, 2))
    assert (moved[[0, 1, 3]] > 0.1).all() and moved[2] == 0
