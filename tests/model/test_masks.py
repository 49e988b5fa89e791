"""Who may attend to whom, as drawn pictures and as what the model does with them."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask

from oculi.model import masks_oculi
from oculi.model.masks_oculi import POLICIES, build_mask, mask_function

pytestmark = pytest.mark.usefixtures("no_grad")

# The row of the module's docstring: sample A is a # # b # # c, sample B is d.
IMAGES = torch.tensor([[-1, 0, 0, -1, 1, 1, -1, -1]])
SEGMENTS = torch.tensor([[0, 0, 0, 0, 0, 0, 0, 1]])
PROMPT = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0]]).bool()

PICTURES = {
    "causal": """
        x . . . . . . .
        x x . . . . . .
        x x x . . . . .
        x x x x . . . .
        x x x x x . . .
        x x x x x x . .
        x x x x x x x .
        . . . . . . . x""",
    "bidirectional": """
        x . . . . . . .
        x x x . . . . .
        x x x . . . . .
        x x x x . . . .
        x x x x x x . .
        x x x x x x . .
        x x x x x x x .
        . . . . . . . x""",
    "mutual": """
        x . . . . . . .
        x x x x . . . .
        x x x x . . . .
        x x x x . . . .
        x x x x x x . .
        x x x x x x . .
        x x x x x x x .
        . . . . . . . x""",
}


def drawn(allowed: Tensor) -> list[str]:
    return [" ".join("x" if cell else "." for cell in row) for row in allowed.tolist()]


def picture(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


def table(function: Any, length: int, row: int = 0) -> Tensor:
    index = torch.arange(length)
    zero = torch.tensor(0)
    return function(torch.tensor(row), zero, index[:, None], index[None, :])


@pytest.mark.parametrize("policy", POLICIES)
def test_policy_is_its_picture(policy: str) -> None:
    function = mask_function(policy, IMAGES, SEGMENTS, PROMPT)
    assert drawn(table(function, 8)) == picture(PICTURES[policy])


def test_docstring_draws_the_same_pictures() -> None:
    names = ["a  ", "#0 ", "#0 ", "b  ", "#1 ", "#1 ", "c  ", "d  "]
    columns = [picture(PICTURES[policy]) for policy in POLICIES]
    lines = [
        "    " + (" " * 8).join(f"{name} {column[row]}" for column in columns)
        for row, name in enumerate(names)
    ]
    assert "\n".join(lines) in (masks_oculi.__doc__ or "")


BRANCHES = """
    x . . . . . .
    x x x . . . .
    x x x . . . .
    x x x x . . .
    x x x x x . .
    x x x . . x .
    x x x . . x x"""


def test_branches_see_what_they_share_and_themselves() -> None:
    images, segments = torch.tensor([[-1, 0, 0, -1, -1, -1, -1]]), torch.zeros(1, 7).long()
    branches = torch.tensor([[0, 0, 0, 1, 1, 2, 2]])
    function = mask_function("bidirectional", images, segments, branches_BT=branches)
    assert drawn(table(function, 7)) == picture(BRANCHES)
    names = ["p  ", "#0 ", "#0 ", "e  ", "f  ", "g  ", "h  "]
    lines = [f"    {name} {row}" for name, row in zip(names, picture(BRANCHES), strict=True)]
    assert "\n".join(lines) in (masks_oculi.__doc__ or "")
    with pytest.raises(ValueError, match="no sample may branch"):
        mask_function("mutual", images, segments, segments.bool(), branches_BT=branches)


def test_branches_go_with_segments(make_model: Any, make_inputs: Any) -> None:
    inputs = make_inputs([[1, (2, 2), 3]])
    branches = torch.zeros_like(inputs["input_ids"])
    with pytest.raises(ValueError, match="branch_ids go with segment_ids"):
        make_model("qwen2")(**inputs, branch_ids=branches)


def test_adjacent_images_are_two_blocks() -> None:
    function = mask_function("bidirectional", torch.tensor([[-1, 0, 0, 1, 1, 1, -1]]))
    assert drawn(table(function, 7)) == picture("""
        x . . . . . .
        x x x . . . .
        x x x . . . .
        x x x x x x .
        x x x x x x .
        x x x x x x .
        x x x x x x x""")


def test_rows_that_end_and_begin_with_an_image_do_not_touch() -> None:
    images = torch.tensor([[-1, 0, 0], [1, 1, -1]])
    function = mask_function("bidirectional", images)
    assert drawn(table(function, 3, row=0)) == ["x . .", "x x x", "x x x"]
    assert drawn(table(function, 3, row=1)) == ["x x .", "x x .", "x x x"]


def test_packing_separates_samples_and_padding() -> None:
    images = torch.tensor([[0, 0, -1, 1, 1, -1]])
    segments = torch.tensor([[0, 0, 0, 1, 1, -1]])
    function = mask_function("mutual", images, segments, torch.ones(1, 6).bool())
    assert drawn(table(function, 6)) == picture("""
        x x x . . .
        x x x . . .
        x x x . . .
        . . . x x .
        . . . x x .
        . . . . . x""")


@pytest.mark.parametrize("policy", POLICIES)
def test_offset_shifts_the_block_behind_the_cache(policy: str) -> None:
    """Three cached keys, then text, an image of two and text; a static cache is longer still."""
    images = torch.tensor([[-1, 0, 0, -1]])
    function = mask_function(policy, images, prompt_BT=torch.ones(1, 4).bool(), offset=3)
    query, key = torch.arange(3, 7)[:, None], torch.arange(9)[None, :]
    seen = drawn(function(torch.tensor(0), torch.tensor(0), query, key))
    image = {"causal": 0, "bidirectional": 1, "mutual": 2}[policy]
    assert seen == [
        "x x x x . . . . .",
        ["x x x x x . . . .", "x x x x x x . . .", "x x x x x x x . ."][image],
        ["x x x x x x . . .", "x x x x x x . . .", "x x x x x x x . ."][image],
        "x x x x x x x . .",
    ]


def test_mutual_needs_the_prompt() -> None:
    with pytest.raises(ValueError, match="prompt_mask"):
        mask_function("mutual", IMAGES)


def build(implementation: str, function: Any, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "attention_mask": None,
        "shape_BT": (1, 8),
        "kv_length": 8,
        "q_offset": 0,
        "kv_offset": 0,
        "plain": False,
        "dtype": torch.float32,
        "device": torch.device("cpu"),
    }
    config = SimpleNamespace(_attn_implementation=implementation)
    return build_mask(config, function, **{**arguments, **changes})


@pytest.mark.parametrize("policy", POLICIES)
def test_forms_of_the_mask_say_the_same(policy: str) -> None:
    function = mask_function(policy, IMAGES, SEGMENTS, PROMPT)
    expected = picture(PICTURES[policy])
    sdpa, eager = build("sdpa", function), build("eager", function)
    assert sdpa.dtype == torch.bool and sdpa.shape == (1, 1, 8, 8)
    assert eager.dtype == torch.float32 and set(eager.unique().tolist()) <= {
        0.0,
        torch.finfo(torch.float32).min,
    }
    assert drawn(sdpa[0, 0]) == drawn(eager[0, 0] == 0) == expected


def test_padding_is_hidden() -> None:
    padding = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1]])
    mask = build("sdpa", mask_function("bidirectional", IMAGES), attention_mask=padding)
    assert not mask[0, 0, :, :2].any()
    assert mask[0, 0, 7, 2:].all()


def test_plain_causal_needs_no_tensor() -> None:
    function = mask_function("causal", IMAGES)
    assert build("sdpa", function, plain=True) is None
    assert build("sdpa", function, plain=False) is not None


@pytest.mark.parametrize("implementation", ["flash_attention_2", "flash_attention_3"])
def test_flash_is_refused_unless_plain(implementation: str) -> None:
    function = mask_function("bidirectional", IMAGES)
    with pytest.raises(ValueError, match=f"{implementation}.*sdpa"):
        build(implementation, function)
    assert build(implementation, mask_function("causal", IMAGES), plain=True) is None


@pytest.mark.parametrize("padded", [False, True])
def test_equals_the_mask_of_transformers(make_llm_config: Any, padded: bool) -> None:
    """The library's own way to say bidirectional images, for what it can say: unpacked rows."""
    images = torch.tensor([[-1, 0, 0, -1, 1, 1, 2, 2], [-1, -1, 3, 3, 3, -1, -1, -1]])
    padding = torch.ones(2, 8, dtype=torch.long)
    padding[1, :2] = int(not padded)
    config = make_llm_config()
    config._attn_implementation = "sdpa"
    theirs = create_causal_mask(
        config=config,
        inputs_embeds=torch.zeros(2, 8, 32),
        attention_mask=padding,
        past_key_values=None,
        position_ids=torch.arange(8)[None].expand(2, -1),
        block_sequence_ids=images,
    )
    function = mask_function("bidirectional", images)
    ours = build("sdpa", function, attention_mask=padding, shape_BT=(2, 8))
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("policy", POLICIES)
def test_eager_and_blocked_equal_sdpa(make_model: Any, make_inputs: Any, policy: str) -> None:
    model = make_model(policy=policy)
    inputs = make_inputs([[5, (2, 2), 7, (1, 3), (2, 2), 8, 9], [6, (2, 3), 7]])
    inputs["prompt_mask"] = inputs["attention_mask"].bool()
    real = inputs["attention_mask"].bool()
    by_implementation = {}
    for implementation in ("sdpa", "eager", "blocked"):
        model.set_attn_implementation(implementation)
        by_implementation[implementation] = model(**inputs).logits[real]
    for other in ("eager", "blocked"):
        torch.testing.assert_close(
            by_implementation[other], by_implementation["sdpa"], atol=1e-5, rtol=1e-5
        )


def test_policies_differ(make_model: Any, make_inputs: Any) -> None:
    """Else every comparison of logits in these tests would be blind to the mask."""
    inputs = make_inputs([[5, (2, 2), 7, (2, 2), 8]])
    inputs["prompt_mask"] = inputs["attention_mask"].bool()
    logits = [make_model(policy=policy)(**inputs).logits for policy in POLICIES]
    assert (logits[0] - logits[1]).abs().max() > 0.1
    assert (logits[1] - logits[2]).abs().max() > 0.1


def image_states(model: Any, inputs: dict[str, Tensor]) -> dict[int, Tensor]:
    return model(**inputs, taps=dict.fromkeys((0, 1, 2), Tensor.clone)).taps


def test_mutual_images_see_the_prompt_and_never_the_answer(
    make_model: Any, make_inputs: Any
) -> None:
    model = make_model(policy="mutual")
    row = [5, (2, 2), 7, (1, 2), 8, 30, 31, 32]
    inputs = make_inputs([row])
    inputs["prompt_mask"] = torch.ones_like(inputs["input_ids"]).bool()
    inputs["prompt_mask"][0, -3:] = False
    before = image_states(model, inputs)
    answer, prompt = (
        {**inputs, "input_ids": inputs["input_ids"].clone()} for _ in ("answer", "prompt")
    )
    answer["input_ids"][0, -3:] = torch.tensor([40, 41, 42])
    prompt["input_ids"][0, -4] = 50
    for block, state in image_states(model, answer).items():
        assert torch.equal(state, before[block])
    for block, state in image_states(model, prompt).items():
        assert (state - before[block]).abs().amax(1).min() > 1e-4


def test_mutual_in_the_model_refuses_images_without_a_prompt(
    make_model: Any, make_inputs: Any
) -> None:
    model = make_model(policy="mutual")
    with pytest.raises(ValueError, match="prompt_mask"):
        model(**make_inputs([[5, (2, 2), 7]]))
    assert model(**make_inputs([[5, 6, 7]])).logits.shape == (
        1,
        3,
        model.config.text_config.vocab_size,
    )
