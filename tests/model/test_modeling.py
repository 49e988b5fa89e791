"""The model's forward: rows, taps, packing, and what it refuses."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from oculi.model import OculiConfig, OculiForConditionalGeneration

FAMILIES = pytest.mark.parametrize("family", ["qwen2", "llama", "olmo2"])
no_grad = pytest.mark.usefixtures("no_grad")


def assert_close(found: Tensor, expected: Tensor) -> None:
    """To 1e-5 of the largest value: float32 sums in another order."""
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def blocks_of(model: Any) -> Any:
    return model.llm.model.layers


@no_grad
@FAMILIES
def test_label_rows_are_those_rows_of_all_logits(
    make_model: Any, make_inputs: Any, family: str
) -> None:
    model = make_model(family)
    inputs = make_inputs([[5, (2, 3), 7, 8], [6, 7, (1, 2), (2, 2), 9]])
    rows = torch.tensor([0, 7, 8, 15, 12])
    every = model(**inputs).logits
    some = model(**inputs, label_rows=rows).logits
    assert_close(some, every.flatten(0, 1)[rows][None])


@no_grad
@FAMILIES
def test_only_label_rows_go_through_the_head(
    make_model: Any, make_inputs: Any, family: str
) -> None:
    model = make_model(family)
    seen: list[int] = []
    model.llm.lm_head.register_forward_hook(
        lambda module, args, output: seen.append(args[0][..., 0].numel())
    )
    inputs = make_inputs([[5, (2, 3), 7, 8]])
    model(**inputs, label_rows=torch.tensor([6, 7, 8]))
    model(**inputs, label_rows=torch.empty(0, dtype=torch.long))
    model(**inputs)
    assert seen == [3, 0, 9]


@no_grad
@FAMILIES
def test_taps_are_block_outputs_on_vision_tokens(
    make_model: Any, make_inputs: Any, family: str
) -> None:
    model = make_model(family)
    inputs = make_inputs([[5, (2, 3), 7, 8], [6, 7, (1, 2), (2, 2), 9]])
    hooked: dict[int, Tensor] = {}
    for i, block in enumerate(blocks_of(model)):
        block.register_forward_hook(
            lambda module, args, output, i=i: hooked.__setitem__(
                i, output[0] if isinstance(output, tuple) else output
            )
        )
    taps = model(**inputs, taps=dict.fromkeys((-1, 0, 1, 2), Tensor.clone)).taps
    is_image = inputs["input_ids"] == model.config.image_token_id
    for block in (0, 1, 2):
        assert torch.equal(taps[block], hooked[block][is_image])
    assert torch.equal(taps[-1], model.vision(inputs["pixel_values"], inputs["image_grids"]))
    assert taps.keys() == {-1, 0, 1, 2}


@no_grad
def test_a_tap_keeps_what_its_reducer_returns_and_nothing_else(
    make_model: Any, make_inputs: Any
) -> None:
    model = make_model()
    inputs = make_inputs([[5, (2, 3), 7]])
    alive: list[weakref.ref[Tensor]] = []

    def reducer(hidden_SD: Tensor) -> float:
        assert hidden_SD.shape == (6, 32)
        alive.append(weakref.ref(hidden_SD))
        return hidden_SD.sum().item()

    output = model(**inputs, taps={0: reducer, 2: reducer})
    assert [type(value) for value in output.taps.values()] == [float, float]
    assert [reference() for reference in alive] == [None, None]
    assert model(**inputs).taps is None


def test_hooks_are_gone_after_a_forward_and_after_an_error(
    make_model: Any, make_inputs: Any
) -> None:
    model = make_model()
    inputs = make_inputs([[5, (2, 3), 7]])

    def broken(hidden_SD: Tensor) -> None:
        raise RuntimeError("reducer")

    model(**inputs, taps={1: torch.sum}, label_rows=torch.tensor([0]))
    with pytest.raises(RuntimeError, match="reducer"):
        model(**inputs, taps={1: broken}, label_rows=torch.tensor([0]))
    for module in model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.filterwarnings("ignore::FutureWarning")  # the name that old and new versions share
@pytest.mark.parametrize("reentrant", [False, True])
def test_gradient_checkpointing_changes_no_gradient(
    make_model: Any, make_inputs: Any, reentrant: bool
) -> None:
    """A tap's loss is formed inside of what would be recomputed."""
    model = make_model().train()
    inputs = make_inputs([[5, (2, 3), 7, 8]])

    def gradients() -> dict[str, Tensor]:
        model.zero_grad()
        output = model(
            **inputs,
            taps={block: lambda hidden: hidden.pow(2).mean() for block in (-1, 0, 2)},
            label_rows=torch.tensor([6, 7]),
            use_cache=False,
        )
        (output.logits.logsumexp(-1).sum() + sum(output.taps.values())).backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    runs: list[None] = []
    blocks_of(model)[0].self_attn.q_proj.register_forward_hook(lambda *arguments: runs.append(None))
    expected = gradients()
    assert len(runs) == 1
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    found = gradients()
    assert len(runs) == 3, "nothing was recomputed"
    assert found.keys() == expected.keys() and "vision.patch.weight" in found
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], msg=lambda m, n=name: f"{n}: {m}")
    model.gradient_checkpointing_disable()
    assert gradients().keys() == expected.keys()


@no_grad
@FAMILIES
def test_a_later_adjacent_image_does_not_reach_the_earlier(
    make_model: Any, make_inputs: Any, family: str
) -> None:
    model = make_model(family)
    inputs = make_inputs([[5, (2, 2), (1, 3), 7]])
    taps = dict.fromkeys((-1, 0, 1, 2), Tensor.clone)
    before = model(**inputs, taps=taps).taps
    inputs["pixel_values"][4:] = 255 - inputs["pixel_values"][4:]
    after = model(**inputs, taps=taps).taps
    for block in (-1, 0, 1, 2):
        torch.testing.assert_close(after[block][:4], before[block][:4], atol=1e-6, rtol=1e-6)
        assert (after[block][4:] - before[block][4:]).abs().amax(1).min() > 1e-3


@no_grad
def test_all_of_an_image_reaches_its_first_token(make_model: Any, make_inputs: Any) -> None:
    taps = {0: Tensor.clone}
    for policy, reaches in (("bidirectional", True), ("causal", False)):
        model, inputs = make_model(policy=policy), make_inputs([[5, (2, 2), 7]])
        before = model(**inputs, taps=taps).taps[0]
        inputs["pixel_values"][3] = 255 - inputs["pixel_values"][3]
        difference = (model(**inputs, taps=taps).taps[0] - before).abs().amax(1)
        assert (difference[:3].min() > 1e-3) == reaches and difference[3] > 1e-3


@no_grad
@FAMILIES
@pytest.mark.parametrize("policy", ["causal", "bidirectional", "mutual"])
def test_a_packed_row_equals_its_samples(
    make_model: Any, make_inputs: Any, family: str, policy: str
) -> None:
    model = make_model(family, policy)
    samples = [[5, (2, 2), 7], [(1, 3), (2, 2), 8, 9], [6, 7, 8], [4, (3, 1)]]
    inputs = make_inputs([[piece for sample in samples for piece in sample]])
    singles = [make_inputs([sample]) for sample in samples]
    lengths = [single["input_ids"].shape[1] for single in singles]
    patches, start = inputs.pop("pixel_values"), 0
    padding = 3
    segments = [i for i, n in enumerate(lengths) for _ in range(n)] + [-1] * padding
    positions = [i for n in lengths for i in range(n)] + [0] * padding
    packed = model(
        input_ids=torch.nn.functional.pad(inputs["input_ids"], (0, padding)),
        pixel_values=patches,
        image_grids=inputs["image_grids"],
        segment_ids=torch.tensor([segments]),
        position_ids=torch.tensor([positions]),
        prompt_mask=torch.ones(1, len(segments)).bool(),
    ).logits
    for logits, single in zip(packed[0, :-padding].split(lengths), singles, strict=True):
        count = int((single["input_ids"] == model.config.image_token_id).sum())
        if count:
            single["pixel_values"] = patches[start : start + count]
        start += count
        prompt = torch.ones_like(single["input_ids"]).bool()
        assert_close(logits, model(**single, prompt_mask=prompt).logits[0])
    assert packed.isfinite().all()


@no_grad
def test_a_batch_equals_its_rows(make_model: Any, make_inputs: Any) -> None:
    """A row that ends with an image is followed by one that begins with one; one has none."""
    model = make_model()
    rows = [[5, 6, (2, 2)], [(1, 3), 7, 8, 9], [4, 5], [(2, 2), (1, 2), 6]]
    batch = make_inputs(rows)
    logits = model(**batch).logits
    assert logits.isfinite().all()
    start = 0
    for row, ids in enumerate(batch["input_ids"]):
        keep = batch["attention_mask"][row].bool()
        single = make_inputs([rows[row]])
        count = int((ids == model.config.image_token_id).sum())
        if count:
            single["pixel_values"] = batch["pixel_values"][start : start + count]
        start += count
        assert_close(logits[row][keep], model(**single).logits[0])


@no_grad
def test_given_image_ids_equal_derived_ones(make_model: Any, make_inputs: Any) -> None:
    model = make_model()
    inputs = make_inputs([[5, (2, 2), (1, 2), 7], [(1, 3), 8, 9, 9, 9, 9]])
    images = torch.tensor([[-1, 0, 0, 0, 0, 1, 1, -1], [2, 2, 2, -1, -1, -1, -1, -1]])
    derived = model._image_ids(inputs["input_ids"], inputs["image_grids"])
    assert torch.equal(derived, images)
    assert torch.equal(model(**inputs, image_ids=images).logits, model(**inputs).logits)


@no_grad
@pytest.mark.parametrize(
    ("change", "positions", "expected"),
    [
        (lambda i: i.update(image_grids=torch.tensor([[2, 2]])), 6, 4),
        (lambda i: i.update(pixel_values=None, image_grids=None), 6, 0),
        (lambda i: i.update(input_ids=torch.tensor([[5, 6, 7]])), 0, 6),
    ],
)
def test_counts_that_differ_are_named(
    make_model: Any, make_inputs: Any, change: Any, positions: int, expected: int
) -> None:
    inputs = make_inputs([[5, (2, 3), 7]])
    inputs.pop("attention_mask")
    change(inputs)
    with pytest.raises(ValueError, match=f"{positions} image positions.* {expected} vision tokens"):
        make_model()(**inputs)


@no_grad
def test_what_contradicts_itself_is_refused(make_model: Any, make_inputs: Any) -> None:
    model, inputs = make_model(), make_inputs([[5, (2, 3), 7]])
    with pytest.raises(ValueError, match="input_ids or inputs_embeds"):
        model()
    with pytest.raises(ValueError, match="segment_ids or attention_mask"):
        model(**inputs, segment_ids=torch.zeros_like(inputs["input_ids"]))
    ids = inputs.pop("input_ids")
    with pytest.raises(ValueError, match="inputs_embeds"):
        model(**inputs, inputs_embeds=model.get_input_embeddings()(ids.clamp(max=9)))


@no_grad
def test_labels_are_refused(make_model: Any, make_inputs: Any) -> None:
    """Else the LLM would compute a loss that nobody gets."""
    inputs = make_inputs([[5, 6, 7]])
    with pytest.raises(ValueError, match=r"computes no loss.*cross_entropy"):
        make_model()(**inputs, labels=inputs["input_ids"])


@no_grad
@FAMILIES
def test_states_of_the_blocks_are_given_where_asked_for(
    make_model: Any, make_inputs: Any, family: str
) -> None:
    model, inputs = make_model(family), make_inputs([[5, (2, 3), 7]])
    model.set_attn_implementation("eager")
    plain = model(**inputs)
    assert plain.hidden_states is None and plain.attentions is None
    output = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert [states.shape for states in output.hidden_states] == [(1, 8, 32)] * 4
    assert [weights.shape for weights in output.attentions] == [(1, 4, 8, 8)] * 3
    assert_close(model.llm.lm_head(output.hidden_states[-1]), plain.logits)


@no_grad
def test_the_result_may_be_a_tuple(make_model: Any, make_inputs: Any) -> None:
    model, inputs = make_model(), make_inputs([[5, (2, 3), 7]])
    expected = model(**inputs).logits
    found = model(**inputs, return_dict=False)
    assert isinstance(found, tuple) and torch.equal(found[0], expected)


@no_grad
@pytest.mark.parametrize("tied", [True, False])
def test_the_table_can_be_resized(
    make_model: Any, make_inputs: Any, tmp_path: Any, tied: bool
) -> None:
    """With the image token in it or outside of it, and kept by a folder."""
    model, inputs = make_model(tie_word_embeddings=tied), make_inputs([[5, (2, 3), 7]])
    rows, image = model.config.text_config.vocab_size, model.config.image_token_id
    expected = model(**inputs).logits
    model.resize_token_embeddings(rows - 2)
    assert torch.equal(model(**inputs).logits, expected[..., : rows - 2])
    assert not model.generation_config.suppress_tokens
    model.resize_token_embeddings(image + 8)
    logits = model(**inputs).logits
    assert logits.shape[-1] == image + 8 == model.config.text_config.vocab_size
    assert torch.equal(logits[..., : rows - 2], expected[..., : rows - 2])
    assert model.generation_config.suppress_tokens == [image]
    model.save_pretrained(tmp_path)
    again = OculiForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again(**inputs).logits, logits)
    assert again.generation_config.suppress_tokens == [image]


@no_grad
@FAMILIES
def test_text_alone_is_the_llm(make_model: Any, make_inputs: Any, family: str) -> None:
    model = make_model(family)
    inputs = make_inputs([[5, 6, 7, 8], [9, 10]])
    real = inputs["attention_mask"].bool()
    expected = model.llm(**inputs).logits
    assert_close(model(**inputs).logits[real], expected[real])
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    assert_close(model(inputs_embeds=embeds, **inputs).logits[real], expected[real])


@no_grad
def test_positions_reach_the_llm(make_model: Any, make_inputs: Any) -> None:
    """Restarting ones cannot show it: rotary positions are relative, and the mask parts samples."""
    model, inputs = make_model(), make_inputs([[5, 6, 7, 8]])
    inputs["position_ids"] = torch.tensor([[0, 3, 4, 9]])
    expected = model.llm(**inputs).logits
    assert_close(model(**inputs).logits, expected)
    inputs.pop("position_ids")
    assert (model(**inputs).logits - expected).abs().max() > 0.1


@no_grad
def test_an_image_token_inside_of_the_table_is_the_same(make_model: Any, make_inputs: Any) -> None:
    """Its embedding is never read, so neither its place nor its value matters."""
    outside, inside = make_model(), make_model()
    inside.config.image_token_id = 11
    inputs = make_inputs([[5, (2, 3), 7]])
    expected = outside(**inputs).logits
    inputs["input_ids"][inputs["input_ids"] == outside.config.image_token_id] = 11
    inside.get_input_embeddings().weight[11] = float("nan")
    assert torch.equal(inside(**inputs).logits, expected)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("qwen2", {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}),
        ("mistral", {"sliding_window": 8}),
        ("gemma3_text", {"head_dim": 8}),
    ],
)
def test_a_sliding_window_is_refused(make_model: Any, family: str, settings: Any) -> None:
    with pytest.raises(ValueError, match=f"{family}.*sliding"):
        make_model(family, **settings)


def test_a_window_that_is_off_is_not_refused(make_model: Any) -> None:
    assert make_model("mistral", sliding_window=None)


def test_an_unknown_policy_is_refused(make_llm_config: Any) -> None:
    with pytest.raises(ValueError, match='"prefix" is none of causal, bidirectional, mutual'):
        OculiConfig(text_config=make_llm_config(), image_attention="prefix")


@no_grad
def test_the_mask_has_the_form_of_the_attention(
    make_model: Any, make_inputs: Any, tmp_path: Any
) -> None:
    """However it was chosen: a mask for sdpa given to eager attention is wrong without a message."""
    model, inputs = make_model(), make_inputs([[5, (2, 3), 7]])
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    loaded = OculiForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    switched = OculiForConditionalGeneration.from_pretrained(tmp_path)
    switched.set_attn_implementation("eager")
    below = OculiForConditionalGeneration.from_pretrained(tmp_path)
    below.llm.set_attn_implementation("eager")
    for each in (loaded, switched, below):
        assert each.llm.config._attn_implementation == "eager"
        assert_close(each(**inputs).logits, expected)


@no_grad
@FAMILIES
@pytest.mark.parametrize("tied", [False, True])
def test_assembled_around_an_llm(
    make_llm_config: Any, make_inputs: Any, tmp_path: Any, family: str, tied: bool
) -> None:
    """The LLM's very weights, a new vision part, and a checkpoint that gives both back."""
    torch.manual_seed(0)
    llm = AutoModelForCausalLM.from_config(make_llm_config(family, tie_word_embeddings=tied)).eval()
    llm.generation_config.repetition_penalty = 1.5
    config = OculiConfig(
        text_config=llm.config,
        vision_config={"kind": "patch_embed", "patch_size": 4, "width": 24, "grid": [4, 4]},
        image_token_id=llm.config.vocab_size,
    )
    model = OculiForConditionalGeneration.assemble(config, llm).eval()
    assert model.llm is llm and model.generation_config.repetition_penalty == 1.5
    assert all(p.isfinite().all() and p.device.type == "cpu" for p in model.parameters())
    inputs = make_inputs([[5, (2, 3), 7]])
    expected = model(**inputs).logits
    model.save_pretrained(tmp_path)
    again, report = OculiForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    assert torch.equal(again(**inputs).logits, expected)
    shared = again.get_input_embeddings().weight is again.get_output_embeddings().weight
    assert shared == tied
